"""The start of the `vsvi` command, which Ctrl-C ends quietly while it is still loading."""

import signal


def main() -> None:
    """Run the `vsvi` command."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from vsvi_assets import cli

    signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


if __name__ == "__main__":
    main()
