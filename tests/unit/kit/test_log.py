"""Log lines: what each has, that none is too long, and when they are written."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog

from mailrail.kit import log


class Stream(io.StringIO):
    """Standard output that remembers its writes."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        return super().write(text)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    before = structlog.get_config()
    stream = Stream()
    monkeypatch.setattr("sys.stdout", stream)
    log.setup("queue", "node-1", "json", "info")
    yield stream
    structlog.configure(**before)


def test_an_event_tells_where_it_comes_from_its_level_and_its_time(stream: Stream) -> None:
    log.get_logger(queue="a").info("message accepted", size=5)
    (event,) = stream.events
    when = datetime.fromisoformat(event.pop("timestamp"))
    assert abs(datetime.now(UTC) - when) < timedelta(minutes=1)
    assert event == {
        "event": "message accepted",
        "queue": "a",
        "size": 5,
        "service": "queue",
        "node": "node-1",
        "level": "info",
    }


def test_for_people_a_line_does_not_repeat_which_process_it_is_from(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", stream)
    log.setup("queue", "node-1", "console", "info")
    log.get_logger().info("message accepted", size=5)
    assert "message accepted" in stream.getvalue()
    assert "size=5" in stream.getvalue()
    assert "node-1" not in stream.getvalue()
    assert "service=" not in stream.getvalue()


@pytest.mark.parametrize("text", ["\x1b[2J", "\x1b[2J and a blank", "\x9b31mred", "\u202egnp.exe", "a\nb=c"])
def test_on_a_terminal_a_strangers_text_repaints_nothing(
    text: str, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout", stream)
    log.setup("queue", "node-1", "console", "info")
    log.get_logger().info("connected", hello=text)
    log.get_logger().info(text)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines), lines


def test_an_exception_comes_with_its_traceback_on_the_same_line(stream: Stream) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        log.get_logger().exception("crashed")
    (event,) = stream.events
    assert event["level"] == "error"
    assert "ValueError: broken" in event["exception"]


def test_a_traceback_for_people_shows_no_local_variables(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", stream)
    log.setup("queue", "node-1", "console", "info")

    def fail(content: bytes) -> None:
        raise ValueError(f"a message of {len(content)} octets is broken")

    mail = [b"Subject: nobody's business"]
    try:
        fail(*mail)
    except ValueError:
        log.get_logger().exception("crashed")
    assert "ValueError: a message of" in stream.getvalue()
    assert "business" not in stream.getvalue()


def test_what_a_library_logs_is_an_event_like_ours(stream: Stream) -> None:
    library = logging.Logger("psycopg.pool")  # none of the process's own, which others listen to
    library.addHandler(log.LibraryLog())
    library.warning("error connecting in %r", "pool-1")
    try:
        raise OSError("refused")
    except OSError:
        library.exception("gave up")
    warning, error = stream.events
    assert (warning["event"], warning["library"]) == ("error connecting in 'pool-1'", "psycopg.pool")
    assert (warning["level"], warning["service"]) == ("warning", "queue")
    assert error["level"] == "error"
    assert "OSError: refused" in error["exception"]


def test_a_stranger_text_is_cut_and_cannot_make_a_line_of_its_own(stream: Stream) -> None:
    log.get_logger().info("delivery failed", reply="no\n" * 10_000)
    (event,) = stream.events
    assert len(event["reply"]) == 2001
    assert event["reply"].endswith("…")


def test_the_lines_of_one_turn_of_the_loop_are_one_write(stream: Stream) -> None:
    async def two_turns() -> None:
        logger = log.get_logger()
        logger.info("one")
        logger.info("two")
        assert stream.writes == []
        await asyncio.sleep(0)
        assert [event["event"] for event in stream.events] == ["one", "two"]
        assert len(stream.writes) == 1
        logger.info("three")

    asyncio.run(two_turns())
    assert [event["event"] for event in stream.events] == ["one", "two", "three"]


def test_outside_of_a_loop_a_line_is_written_at_once(stream: Stream) -> None:
    log.get_logger().info("starting")
    assert len(stream.writes) == 1


def test_a_level_that_is_not_wanted_costs_no_line(stream: Stream) -> None:
    log.get_logger().debug("hello")
    assert stream.writes == []
