"""What can go wrong with the database, each as one sentence for people."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import psycopg2
from psycopg2 import errors


class PostgisError(Exception):
    """The database cannot be used as it is; the message says what to do.

    `may_pass` says whether the same may succeed minutes later, with nothing changed.
    """

    may_pass = False


class DatabaseAddressError(PostgisError):
    """The address of the database is not written as it has to be."""


class ServerUnreachableError(PostgisError):
    """The database server does not answer, does not accept the connection, or broke it off."""

    may_pass = True


class PostgisMissingError(PostgisError):
    """The database has no PostGIS, or the role may not use it."""


class PrivilegeMissingError(PostgisError):
    """The role may not do in this database what the project has to do."""


class EncodingError(PostgisError):
    """The encoding of the database lacks a character that is to be stored."""


class DatabaseFullError(PostgisError):
    """The disk of the database server is full."""


class TableInUseError(PostgisError):
    """Another session uses a table for so long that it cannot be replaced."""

    may_pass = True


class TableNotOwnError(PostgisError):
    """A table that this project did not make is where one of its own has to be."""


class DependentViewError(PostgisError):
    """Something of the user's depends on a table that is to be replaced."""


class SelectionOutdatedError(PostgisError):
    """The selection was made before the city file said what it says now."""


class LockHeldError(PostgisError):
    """Another process holds the lock.

    Attributes
    ----------
    holder
        The application name of its session: the machine and the process id.
    since
        When that session began (UTC); None where the database does not show it to this role.
    """

    def __init__(self, name: str, holder: str, since: datetime | None) -> None:
        began = f" since {since:%Y-%m-%d %H:%M} UTC" if since else ""
        super().__init__(f"{name} is locked by {holder}{began}.")
        self.holder, self.since = holder, since


@contextmanager
def explained() -> Iterator[None]:
    """Turn those errors of psycopg2 that a person can do something about into `PostgisError`."""
    try:
        yield
    except errors.InsufficientPrivilege as error:
        raise PrivilegeMissingError(
            f"The role of the database may not do this: {_text(error)}. Its administrator has to "
            "grant it: GRANT CREATE ON DATABASE … TO …, and USAGE on the schema of PostGIS."
        ) from error
    except (errors.UntranslatableCharacter, errors.CharacterNotInRepertoire) as error:
        raise EncodingError(
            f"The database cannot store a character: {_text(error)}. Make a database for this "
            "project whose encoding is UTF8, and set VSVI_POSTGRES_URL to it."
        ) from error
    except errors.DiskFull as error:
        raise DatabaseFullError(
            f"The disk of the database server is full: {_text(error)}. Make room there, and run "
            "again: nothing was changed."
        ) from error
    except psycopg2.OperationalError as error:
        # Without a code there was no answer: the connection is lost. Class 57P is a shutdown.
        if error.pgcode is None or error.pgcode.startswith("57P"):
            raise ServerUnreachableError(
                f"The connection to the database was lost: {_text(error)}"
            ) from error
        raise
    except psycopg2.InterfaceError as error:
        raise ServerUnreachableError("The connection to the database was lost.") from error


def _text(error: psycopg2.Error) -> str:
    return (error.diag.message_primary or str(error)).strip()


class StreetsNotKeptError(PostgisError):
    """A city's streets are not in its tables, since an earlier version did not keep them."""
