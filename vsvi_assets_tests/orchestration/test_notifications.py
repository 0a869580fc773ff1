import json
import re
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from dagster import (
    DagsterEventType,
    DagsterInstance,
    Failure,
    RunFailureSensorContext,
    build_run_status_sensor_context,
    build_sensor_context,
    job,
    op,
)

from vsvi_assets.database.tile_requests import PostgresTileGate
from vsvi_assets.orchestration.notifications import (
    NotificationError,
    build_notification_sensors,
    send,
)
from vsvi_assets.orchestration.resources import PostgisResource
from vsvi_assets.settings import NotificationSettings, SettingError, Settings
from vsvi_assets_tests.dagster_internals import BulkActionStatus, PartitionBackfill


@contextmanager
def webhook(status: int = 200) -> Iterator[tuple[str, list[str]]]:
    """Serve a webhook; give its address and the texts that it got."""
    texts: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            texts.append(json.loads(body)["text"])
            self.send_response(status)
            self.send_header("Location", "https://elsewhere.invalid/")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/secret-path", texts
        server.shutdown()


@contextmanager
def mail_server() -> Iterator[tuple[str, list[str]]]:
    """Serve SMTP (RFC 5321); give its address and the messages that it got."""
    messages: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 ready\r\n")
            while line := self.rfile.readline().decode().strip():
                if line.upper() == "DATA":
                    self.wfile.write(b"354 go on\r\n")
                    lines = iter(self.rfile.readline, b".\r\n")
                    messages.append(b"".join(lines).decode())
                if line.upper() == "QUIT":
                    self.wfile.write(b"221 bye\r\n")
                    return
                self.wfile.write(b"250 fine\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"smtp://127.0.0.1:{server.server_address[1]}", messages
        server.shutdown()


def settings(tmp_path: Path, **environment: str) -> Settings:
    return Settings.from_environment({"VSVI_DATA_DIR": str(tmp_path), **environment})


def test_nobody_is_notified_by_default(tmp_path: Path) -> None:
    assert build_notification_sensors(settings(tmp_path)) == []


def test_an_e_mail_address_needs_a_server(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="VSVI_SMTP_URL"):
        settings(tmp_path, VSVI_NOTIFY_EMAIL="me@example.org")
    with pytest.raises(SettingError, match="smtps://"):
        settings(tmp_path, VSVI_NOTIFY_EMAIL="a@b", VSVI_SMTP_URL="https://example.org")


def test_no_secret_is_in_the_settings_text(tmp_path: Path) -> None:
    text = repr(
        settings(
            tmp_path,
            VSVI_NOTIFY_WEBHOOK="https://example.org/secret-path",
            VSVI_NOTIFY_EMAIL="me@example.org",
            VSVI_SMTP_URL="smtps://me:secret-password@example.org",
        )
    )
    assert "secret-" not in text


def test_a_message_goes_to_the_webhook_and_by_e_mail() -> None:
    with webhook() as (url, texts), mail_server() as (smtp_url, messages):
        send(NotificationSettings(url, "me@example.org", smtp_url), "vsvi: delft", "Größer\nthan")
    assert texts == ["vsvi: delft\nGrößer\nthan"]
    assert "To: me@example.org" in messages[0]
    assert "Subject: vsvi: delft" in messages[0]


@pytest.mark.parametrize("status", [302, 404, 500])
def test_a_webhook_that_fails_is_reported_without_its_address(status: int) -> None:
    with webhook(status) as (url, texts), mail_server() as (smtp_url, messages):
        both = NotificationSettings(url, "me@example.org", smtp_url)
        with pytest.raises(NotificationError) as raised:
            send(both, "subject", "text")
    assert str(raised.value) == f"Not sent: subject (VSVI_NOTIFY_WEBHOOK answered {status})"
    assert len(texts) == len(messages) == 1


def test_servers_that_are_gone_are_reported_without_their_addresses() -> None:
    with webhook() as (url, _), mail_server() as (smtp_url, _):
        gone = NotificationSettings(url, "me@example.org", smtp_url)
    with pytest.raises(NotificationError) as raised:
        send(gone, "subject", "text")
    assert "secret-path" not in str(raised.value)
    assert re.search(r"WEBHOOK: ConnectionError; VSVI_SMTP_URL: \w+\)", str(raised.value))


def failed_run(instance: DagsterInstance, name: str) -> RunFailureSensorContext:
    """Let a run of the city delft fail, and return what the sensor `name` gets of it."""

    @op
    def image_files() -> None:
        raise Failure("the disk is full")

    @job(tags={"vsvi/city": "delft"})
    def download() -> None:
        image_files()

    result = download.execute_in_process(instance=instance, raise_on_error=False)
    [event] = [
        event for event in result.all_events if event.event_type == DagsterEventType.RUN_FAILURE
    ]
    context = build_run_status_sensor_context(
        sensor_name=name,
        dagster_event=event,
        dagster_instance=instance,
        dagster_run=result.dagster_run,
    )
    return context.for_run_failure()


def test_a_failed_run_is_reported_with_its_city_and_reason(tmp_path: Path) -> None:
    with webhook() as (url, texts), DagsterInstance.ephemeral() as instance:
        sensor, _ = build_notification_sensors(settings(tmp_path, VSVI_NOTIFY_WEBHOOK=url))
        sensor(failed_run(instance, sensor.name))
    assert re.fullmatch(r"vsvi: delft: run \w{8} failed\nimage_files: the disk is full", texts[0])


def ended_backfill(instance: DagsterInstance, id_: str, status: BulkActionStatus) -> None:
    backfill = PartitionBackfill(
        id_, status, from_failure=False, tags={}, backfill_timestamp=time.time()
    )
    instance.add_backfill(backfill.with_end_timestamp(time.time()))


def test_a_block_and_each_ended_backfill_are_reported_once(
    tmp_path: Path, postgis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VSVI_POSTGRES_URL", postgis_url)
    postgis = PostgisResource(data_dir=str(tmp_path))
    with webhook() as (url, texts), DagsterInstance.ephemeral() as instance:
        notifying = settings(tmp_path, VSVI_NOTIFY_WEBHOOK=url)
        _, sensor = build_notification_sensors(notifying)
        ended_backfill(instance, "earlier", BulkActionStatus.COMPLETED_SUCCESS)
        cursor = None

        def evaluate() -> list[str]:
            nonlocal cursor
            texts.clear()
            context = build_sensor_context(instance, cursor, resources={"postgis": postgis})
            sensor(context)
            cursor = context.cursor
            return texts

        assert evaluate() == []
        gate = PostgresTileGate(
            postgis.database(), notifying.tiles_url, per_minute=40, per_day=50_000, block_hours=24
        )
        gate.state()
        gate.blocked("302 to its login page")
        [text] = evaluate()
        assert "vsvi: Mapillary blocks this address\nSince " in text
        assert "302 to its login page. No tile is requested before" in text
        assert evaluate() == []
        ended_backfill(instance, "one", BulkActionStatus.COMPLETED_FAILED)
        ended_backfill(instance, "two", BulkActionStatus.CANCELED)
        assert [text.split("\n")[0] for text in evaluate()] == [
            "vsvi: backfill one is over",
            "vsvi: backfill two is over",
        ]
        assert evaluate() == []
