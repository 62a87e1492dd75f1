"""The watcher: how often it looks, what it says, and that it says it once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import structlog

from mailrail.core.config.building import BuildOptions
from mailrail.core.config.compiler import compile
from mailrail.core.config.reading import Sources
from mailrail.core.config.state import CompilerState, UnreadableState
from mailrail.core.revision.sealing import KEY_SIZE, Keyring
from mailrail.kit.publisher import Publisher, PublishOutcome
from mailrail.local import example, folder
from mailrail.local.documents import Folder, Snapshot
from mailrail.local.folder import FindingReporter, FolderSettings, Watcher

from testkit.conditions import eventually

KEYS = Keyring({"k": b"k" * KEY_SIZE})


class Config:
    """A publisher that refuses as often as it is told to."""

    def __init__(self, *refusals: tuple[grpc.StatusCode, str] | Exception) -> None:
        self.refusals = list(refusals)
        self.published = None
        self.handed_in: list[Sources] = []

    def use_keys(self, keys: Keyring) -> None:
        """Nothing is sealed here."""

    async def publish(self, sources: Sources, options: BuildOptions) -> PublishOutcome:
        """As the real one does."""
        if self.refusals:
            refusal = self.refusals.pop(0)
            if isinstance(refusal, Exception):
                raise refusal
            code, details = refusal
            raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)
        self.handed_in.append(sources)
        return PublishOutcome(
            compile(sources, CompilerState(), KEYS, options), len(self.handed_in), activated=True, unchanged=False
        )


@pytest.fixture
def events() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as found:
        yield found


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderSettings:
    monkeypatch.setattr(folder, "keyring", lambda _: KEYS)
    example.write(tmp_path / "mail.d")
    return FolderSettings(resources=tmp_path / "mail.d", look_seconds=0.005)


def watcher(settings: FolderSettings, config: Config) -> Watcher:
    publisher: Publisher = config  # type: ignore[assignment]
    return Watcher(settings, publisher, FindingReporter("console", lambda _: None))


@contextlib.asynccontextmanager
async def watching(watcher: Watcher) -> AsyncIterator[None]:
    task = asyncio.create_task(watcher.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(("look", "pause"), [(0.001, 0.1), (0.02, 0.2), (3.0, 0.4)])
async def test_a_look_that_found_nothing_is_followed_by_a_rest_of_at_most_four_pauses_CFG_06(
    settings: FolderSettings, monkeypatch: pytest.MonkeyPatch, look: float, pause: float
) -> None:
    now = 0.0
    pauses: list[float] = []
    snapshot = Folder.snapshot

    class Changed(Exception):
        """Enough seen."""

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise Changed

    def looked(of: Folder) -> Snapshot:
        nonlocal now
        now += look
        return snapshot(of)

    monkeypatch.setattr(folder, "asyncio", SimpleNamespace(sleep=sleep, to_thread=asyncio.to_thread))
    monkeypatch.setattr(folder, "time", SimpleNamespace(monotonic=lambda: now, time=lambda: now))
    monkeypatch.setattr(Folder, "snapshot", looked)
    one = watcher(replace(settings, look_seconds=0.1), Config())
    with pytest.raises(Changed):
        await one._wait_until_still(one._folder.snapshot())
    assert pauses == pytest.approx([pause, pause])


async def test_a_folder_that_is_gone_is_said_once_and_so_is_that_it_is_back(
    settings: FolderSettings, events: list[Any]
) -> None:
    config = Config()
    away = settings.resources.with_name("away")

    def told() -> list[str]:
        return [e["event"] for e in events if "folder" in e["event"]]  # that it has published is said a moment later

    async with watching(watcher(settings, config)):
        await eventually(lambda: len(config.handed_in) == 1)
        for turn in range(2):
            settings.resources.rename(away)
            await eventually(lambda n=turn: len(told()) == 2 * n + 1)  # type: ignore[misc]
            away.rename(settings.resources)
            await eventually(lambda n=turn: len(told()) == 2 * n + 2)  # type: ignore[misc]
    assert (
        told()
        == [
            "the resources folder is missing; its last content stays in force",
            "the resources folder is back",
        ]
        * 2
    )
    assert len(config.handed_in) == 1  # nothing changed


async def test_a_folder_that_vanishes_while_it_is_looked_at_is_not_taken_for_an_empty_one(
    settings: FolderSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = settings.resources.with_name("away")
    snapshot, looks = Folder.snapshot, list[Snapshot]()

    class Enough(Exception):
        """Looked at often enough."""

    def vanishing(of: Folder) -> Snapshot:
        settings.resources.rename(away)
        looks.append(snapshot(of))
        return looks[-1]

    async def sleep(_: float) -> None:
        away.rename(settings.resources)
        if len(looks) == 3:
            raise Enough

    one = watcher(settings, Config())
    before = one._folder.snapshot()
    monkeypatch.setattr(folder, "asyncio", SimpleNamespace(sleep=sleep, to_thread=asyncio.to_thread))
    monkeypatch.setattr(Folder, "snapshot", vanishing)
    with pytest.raises(Enough):
        await one._wait_until_still(before)
    assert looks[0] == looks[1] != before


async def test_a_refusal_is_tried_again_and_said_once_and_a_service_that_is_away_is_not_said(
    settings: FolderSettings, events: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = grpc.StatusCode.FAILED_PRECONDITION
    away = (grpc.StatusCode.UNAVAILABLE, "no connection")
    config = Config(away, (refused, "too large"), (refused, "too large"), away, (refused, "no room"))

    async def sleep(_: float) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(folder, "asyncio", SimpleNamespace(sleep=sleep, to_thread=asyncio.to_thread))
    async with watching(watcher(settings, config)):
        await eventually(lambda: len(config.handed_in) == 1)
    told = [e["reason"] for e in events if e["event"] == "configuration refused"]
    assert told == ["too large", "no room"]


async def test_a_state_of_a_newer_version_is_said_with_what_to_do_and_the_watcher_goes_on(
    settings: FolderSettings, events: list[Any]
) -> None:
    config = Config(UnreadableState("state format 9 is newer than 1; upgrade this publisher"))
    async with watching(watcher(settings, config)):
        await eventually(lambda: not config.refusals)
        await eventually(lambda: any(e["log_level"] == "error" for e in events))
        (settings.resources / "another.yaml").write_text("# a change\n", encoding="utf-8")
        await eventually(lambda: len(config.handed_in) == 1)
    told = [e for e in events if e["log_level"] == "error"]
    assert [e["reason"] for e in told] == ["state format 9 is newer than 1; upgrade this publisher"]
    assert "start the version of Mailrail that published it" in told[0]["event"]
