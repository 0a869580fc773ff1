"""What keeps the sandbox from serving."""


class SandboxError(Exception):
    """The sandbox cannot serve; the message says what to do."""
