"""When a city is refreshed: cron expressions and timezones."""

import re
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from croniter import CroniterBadDateError, croniter

_NAMES = frozenset(
    {
        *("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
        *("sun", "mon", "tue", "wed", "thu", "fri", "sat", "l"),
    }
)
"""Months, days of the week and `L` for the last day. croniter knows more letters, such as W,
which the croniter inside Dagster refuses."""


def check_cron(expression: str) -> str:
    """Return a cron expression; raise ValueError unless it has five fields and comes due."""
    words = set(re.findall(r"[a-z]+", expression.lower()))
    if len(expression.split()) != 5 or not words <= _NAMES or not croniter.is_valid(expression):
        raise ValueError('must be a cron expression of five fields, such as "0 3 * * 1"')
    try:
        croniter(expression, datetime.now(UTC)).get_next()
    except CroniterBadDateError as error:
        raise ValueError(
            'is a date that never comes; write a cron expression such as "0 3 * * 1"'
        ) from error
    return expression


def check_timezone(name: str) -> str:
    """Return the name of a timezone; raise ValueError unless the IANA database has it."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError('must be a timezone such as "Europe/Amsterdam"') from error
    return name
