"""What can go wrong with the database, each as one sentence for people."""

from datetime import datetime
from typing import ClassVar


class PostgisError(Exception):
    """The database cannot be used as it is; the message says what to do.

    `may_pass` says whether the same may succeed later, without anybody changing anything.
    """

    may_pass: ClassVar[bool] = False


class ServerUnreachableError(PostgisError):
    """The database server does not answer, or does not accept the connection."""

    may_pass = True


class LockHeldError(PostgisError):
    """Another process holds the lock.

    Attributes
    ----------
    holder
        The application name of its session: command, machine and process id.
    since
        When that session began (UTC); None where the database does not show it to this role.
    """

    def __init__(self, name: str, holder: str, since: datetime | None) -> None:
        began = f" since {since:%Y-%m-%d %H:%M} UTC" if since else ""
        super().__init__(f"{name} is locked by {holder}{began}.")
        self.holder, self.since = holder, since
