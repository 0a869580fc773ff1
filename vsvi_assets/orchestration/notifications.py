"""Messages to people: a run failed, Mapillary blocks this address, a backfill is over.

Off unless a webhook or an e-mail address is set. The switches are on Dagster's page
*Automation*, where both sensors run from the start once there is somebody to send to; they
work while Dagster's daemon runs.
"""

import smtplib
import time
from collections.abc import Sequence
from email.message import EmailMessage
from urllib.parse import unquote, urlsplit

import orjson
import requests
from dagster import (
    DefaultSensorStatus,
    RunFailureSensorContext,
    SensorDefinition,
    SensorEvaluationContext,
    SkipReason,
    run_failure_sensor,
    sensor,
)

from vsvi_assets.database.tile_requests import tile_gate
from vsvi_assets.orchestration.common import CITY_TAG
from vsvi_assets.orchestration.dagster_internals import backfills_ended_since
from vsvi_assets.orchestration.resources import PostgisResource
from vsvi_assets.orchestration.retries import reason
from vsvi_assets.proxies import proxies_for
from vsvi_assets.settings import NotificationSettings, Settings

TIMEOUT_SECONDS = 30


class NotificationError(Exception):
    """A message could not be sent. The text holds no address: a webhook's is a secret."""


def send(settings: NotificationSettings, subject: str, text: str) -> None:
    """Send a message to the webhook, by e-mail, or both, as the settings say.

    The webhook gets a POST of `{"text": …}`, as Slack, Mattermost and others take it.

    Raises
    ------
    NotificationError
        When one of them does not take it; the other was tried all the same.
    """
    errors = []
    if settings.webhook_url:
        try:
            answer = requests.post(
                settings.webhook_url,
                json={"text": f"{subject}\n{text}"},
                timeout=TIMEOUT_SECONDS,
                allow_redirects=False,
                proxies=proxies_for(settings.webhook_url),
            )
            if answer.status_code >= 300:
                errors.append(f"VSVI_NOTIFY_WEBHOOK answered {answer.status_code}")
        except requests.RequestException as error:
            errors.append(f"VSVI_NOTIFY_WEBHOOK: {type(error).__name__}")
    if settings.email and settings.smtp_url:
        try:
            _send_email(settings.smtp_url, settings.email, subject, text)
        except (OSError, smtplib.SMTPException) as error:
            errors.append(f"VSVI_SMTP_URL: {type(error).__name__}")
    if errors:
        raise NotificationError(f"Not sent: {subject} ({'; '.join(errors)})")


def _send_email(smtp_url: str, to: str, subject: str, text: str) -> None:
    parts = urlsplit(smtp_url)
    assert parts.hostname
    message = EmailMessage()
    user = unquote(parts.username or "")
    message["From"] = user if "@" in user else to
    message["To"] = to
    message["Subject"] = subject
    message.set_content(text)
    kind = smtplib.SMTP_SSL if parts.scheme == "smtps" else smtplib.SMTP
    with kind(parts.hostname, parts.port or 0, timeout=TIMEOUT_SECONDS) as server:
        if parts.scheme == "smtp":
            server.ehlo()
            if server.has_extn("starttls"):
                server.starttls()
        if user:
            server.login(user, unquote(parts.password or ""))
        server.send_message(message)


def build_notification_sensors(settings: Settings) -> Sequence[SensorDefinition]:
    """Build the sensors that send messages; none where nobody is to be notified."""
    notifications = settings.notifications
    if not notifications.is_on:
        return []

    @run_failure_sensor(
        name="notify_of_failures",
        default_status=DefaultSensorStatus.RUNNING,
        monitor_all_code_locations=True,  # runs of `vsvi materialize` belong to none
        description="Sends a message when a run fails (VSVI_NOTIFY_WEBHOOK, VSVI_NOTIFY_EMAIL).",
    )
    def notify_of_failures(context: RunFailureSensorContext) -> None:
        run = context.dagster_run
        city = run.tags.get(CITY_TAG)
        reasons = [
            f"{event.step_key}: {reason(event)}" for event in context.get_step_failure_events()
        ]
        text = "\n".join(reasons or [context.failure_event.message or "No reason is recorded."])
        send(notifications, _subject(f"run {run.run_id[:8]} failed", city), text)

    @sensor(
        name="notify_of_blocks_and_backfills",
        default_status=DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=60,
        description=(
            "Sends a message when Mapillary blocks this address, and when a backfill is over "
            "(VSVI_NOTIFY_WEBHOOK, VSVI_NOTIFY_EMAIL)."
        ),
    )
    def notify_of_blocks_and_backfills(
        context: SensorEvaluationContext, postgis: PostgisResource
    ) -> SkipReason:
        # What ended before this sensor was first evaluated is no news.
        seen = orjson.loads(context.cursor or b"{}") or {"ended": time.time(), "blocked": None}
        mapillary = settings.services_of("mapillary")
        state = tile_gate(mapillary, settings, postgis.database()).state()
        blocked = None
        if state.is_blocked and state.blocked_since and state.blocked_until:
            blocked = state.blocked_since.isoformat()
            if blocked != seen["blocked"]:
                send(
                    notifications,
                    _subject("Mapillary blocks this address"),
                    f"Since {state.blocked_since:%Y-%m-%d %H:%M} UTC: {state.block_reason}. "
                    f"No tile is requested before {state.blocked_until:%Y-%m-%d %H:%M} UTC.",
                )
        seen["blocked"] = blocked
        context.update_cursor(orjson.dumps(seen).decode())
        for backfill in backfills_ended_since(context.instance, seen["ended"]):
            send(
                notifications,
                _subject(f"backfill {backfill.id} is over", backfill.tags.get(CITY_TAG)),
                f"{backfill.outcome}: {', '.join(backfill.assets)}",
            )
            seen["ended"] = backfill.ended_at
            context.update_cursor(orjson.dumps(seen).decode())
        return SkipReason("Nothing is new.")

    return [notify_of_failures, notify_of_blocks_and_backfills]


def _subject(what: str, city: str | None = None) -> str:
    return f"vsvi: {city}: {what}" if city else f"vsvi: {what}"
