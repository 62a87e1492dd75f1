"""Local mode's publisher: watches the folder of resources and publishes what it says, in the operator's place.

A changed file is live within 2 s (CFG-06): the folder is looked at ten times a second, which works on every file
system and every desktop; a change is taken up once nothing has moved for one look, so a file that an editor is still
writing is not read half. What is refused is said with file, line and reason; everything else goes live (CFG-01).

The folder is made with a working example when it is not there at the first start. A folder that vanishes later changes
nothing: only a file that is gone from a folder that is there means that its objects are gone, and that only while no
unreadable file may be its new name.
"""

import asyncio
import math
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import grpc

from mailrail.core.config.building import BuildOptions
from mailrail.core.config.diagnostics import Finding, Severity
from mailrail.core.config.state import UnreadableState
from mailrail.core.config.stored import reason_to_publish
from mailrail.kit import log
from mailrail.kit.config_client import keyring
from mailrail.kit.publisher import Publisher, PublishOutcome, SetBack, Superseded
from mailrail.kit.run import run
from mailrail.kit.settings import BadSettings, ServiceSettings
from mailrail.local import example
from mailrail.local.documents import Folder, Snapshot


@dataclass(frozen=True, kw_only=True)
class FolderSettings(ServiceSettings):
    """Settings of the watcher: `MAILRAIL_FOLDER_*` in the environment."""

    resources: Path = Path("mail.d")
    """The folder."""
    captive: bool = True
    """Whether the MX listener takes any recipient (design 10)."""
    port_offset: int = 0
    """Added to the port of every listener."""
    certificate: Path | None = None
    """PEM certificate for the listeners; with the key it becomes the Secret `local-tls`."""
    certificate_key: Path | None = None
    """Its key."""
    look_seconds: float = 0.1
    """How often the folder is looked at. A change is taken up after two looks (CFG-06: within 200 ms)."""
    policies_listen: str = ""
    """HOST:PORT at which MTA-STS policies are served; empty = nowhere."""
    policies_tls_dir: Path | None = None
    """As `tls_dir`, of the policy service."""
    store_seconds: float = 1.0
    """How often what the store holds is compared with what was published last (CFG-09)."""


_REST = 10
"""A look is followed by ten times as much rest as it took ..."""
_LONGEST_REST = 4
"""... up to four times the usual pause: a change is still seen within half a second (CFG-06)."""


class FindingReporter:
    """Says what is wrong, once, and when nothing is any more; a finding is repeated only after it was gone."""

    def __init__(self, log_format: str, write: Callable[[str], object] | None = None) -> None:
        self._json = log_format == "json"
        self._write = write or _to_console
        self._said: frozenset[str] = frozenset()
        self._log = log.get_logger()

    def findings(self, findings: Iterable[Finding]) -> None:
        """The findings of one compilation."""
        now = [(str(finding), finding) for finding in findings]
        fresh = [(text, finding) for text, finding in now if text not in self._said]
        for text, finding in fresh:
            if self._json:
                place = str(finding.place)
                self._log.warning(
                    "resource", place=place, severity=finding.severity, reason=finding.reason, message=text
                )
            else:
                self._write(f"{_WORDS[finding.severity]}{text}")
        if self._said and not now:
            if self._json:
                self._log.info("all resources are valid again")
            else:
                self._write("mended: all resources are valid again")
        elif not fresh and (mended := len(self._said) - len(now)) > 0:
            if self._json:
                self._log.info("resources are mended", mended=mended, remaining=len(now))
            else:
                self._write(f"mended: {mended} fixed, {len(now)} still wrong, see `mailrail config status`")
        self._said = frozenset(text for text, _ in now)

    def report_published(self, outcome: PublishOutcome) -> None:
        """Say that a change is on its way to the services."""
        if outcome.unchanged:
            return
        if outcome.activated:
            self._log.info("resources published", revision=outcome.revision, content=outcome.compiled.summary)
        else:
            self._log.warning(
                "resources stored but not in force: head is pinned; run `mailrail config unpin`",
                revision=outcome.revision,
            )


_WORDS = {Severity.ERROR: "refused: ", Severity.WAITING: "waiting: ", Severity.WARNING: "warning: "}


def _to_console(text: str) -> None:
    print("".join(c if c.isprintable() else "?" for c in text), flush=True)


class Watcher:
    """Looks, reads, publishes; one change at a time."""

    def __init__(self, settings: FolderSettings, publisher: Publisher, reporter: FindingReporter) -> None:
        self._settings, self._publisher, self._reporter = settings, publisher, reporter
        self._folder = Folder(
            settings.resources, settings.certificate, settings.certificate_key, watched=settings.sealing_keys_dir
        )
        self._options = BuildOptions(captive=settings.captive, port_offset=settings.port_offset)
        self._refused: str | None = None
        self._compare_at = 0.0
        self._again_at = math.inf
        self._log = log.get_logger()

    async def run(self) -> None:
        """Watch until cancelled."""
        published: Snapshot | None = None
        while True:
            snapshot = await self._wait_until_still(published)
            try:
                self._publisher.use_keys(keyring(self._settings))  # a new sealing key is one of the changes (CFG-02)
            except BadSettings as error:
                self._log.error("cannot read sealing keys; the last ones stay in use", reason=str(error))
            if await self._publish():
                published = snapshot

    async def _wait_until_still(self, published: Snapshot | None) -> Snapshot:
        """The next snapshot that differs from the published one and stayed the same for one look; or the published one,
        when the store does not have it any more, or when a name that was kept for an object becomes free."""
        before = published
        gone = False
        while True:
            pause = self._settings.look_seconds
            if not self._folder.exists():
                if not gone:
                    self._log.error(
                        "the resources folder is missing; its last content stays in force",
                        folder=str(self._settings.resources),
                    )
                gone = True
                before = published
            else:
                if gone:
                    self._log.info("the resources folder is back", folder=str(self._settings.resources))
                gone = False
                began = time.monotonic()
                now = await asyncio.to_thread(self._folder.snapshot)
                took = time.monotonic() - began
                if now == published and (time.time() >= self._again_at or await self._store_differs()):
                    return now
                if now == published:  # nothing is going on: thousands of files are not to take a quarter of a processor
                    pause = min(max(pause, _REST * took), _LONGEST_REST * pause)
                if not self._folder.exists():  # it went while it was looked at: what was seen of it means nothing
                    before = published
                elif now != published and (now == before or published is None):
                    return now
                else:
                    before = now
            await asyncio.sleep(pause)

    async def _store_differs(self) -> bool:
        """Whether the store has something else than was published last; asked once in a while."""
        published = self._publisher.published
        if published is None or time.monotonic() < self._compare_at:
            return False
        self._compare_at = time.monotonic() + self._settings.store_seconds
        try:
            newest = await self._publisher.newest()
        except grpc.aio.AioRpcError:  # out of reach: then nothing is known
            return False
        reason = reason_to_publish(published, newest)
        if reason:
            self._log.warning("publishing again", reason=reason)
        return bool(reason)

    async def _publish(self) -> bool:
        """Read and publish. False when it must be tried again."""
        sources = await asyncio.to_thread(self._folder.read)
        try:
            outcome = await self._publisher.publish(sources, self._options)
        except Superseded as error:
            self._log.warning("another publisher took over; the next change here takes over again", who=str(error))
            return True
        except UnreadableState as error:  # only another version mends it: the next change tries and says it again
            self._log.error(
                "no change of the folder goes live, and what is in force stays: start the version of Mailrail that"
                " published it",
                reason=str(error),
            )
            return True
        except SetBack:  # the next try acquires a new epoch
            return False
        except grpc.aio.AioRpcError as error:
            reachable = error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            if reachable and error.details() != self._refused:  # it is tried again, and said once
                self._refused = error.details()
                self._log.error("configuration refused", reason=error.details())
            await asyncio.sleep(0.5)
            return False
        self._refused = None
        self._again_at = math.inf if outcome.compiled.again_at is None else outcome.compiled.again_at
        self._reporter.findings(outcome.compiled.diagnostics.findings)
        self._reporter.report_published(outcome)
        return True


def prepare(settings: FolderSettings) -> None:
    """Make the folder with the example, if there is none."""
    if settings.resources.exists():
        return
    example.write(settings.resources)
    log.get_logger().info("made a folder of example resources", folder=str(settings.resources))


async def start(settings: FolderSettings, stop: asyncio.Event) -> None:
    """Publish the folder until `stop` is set."""
    prepare(settings)
    publisher = Publisher(settings, keyring(settings), f"folder {settings.resources.name} on {settings.node_id}")
    watching = asyncio.create_task(Watcher(settings, publisher, FindingReporter(settings.log_format)).run())
    stopping = asyncio.create_task(stop.wait())
    try:
        async with _policies(settings):
            await asyncio.wait((watching, stopping), return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            watching.result()
    finally:
        for task in (watching, stopping):
            task.cancel()
        await asyncio.gather(watching, stopping, return_exceptions=True)


@asynccontextmanager
async def _policies(settings: FolderSettings) -> AsyncIterator[None]:
    """The policy service, here since a process of its own would cost 20 MiB; it knows no more than it would there."""
    if not settings.policies_listen:
        yield
        return
    if find_spec("mailrail_policy") is None:
        log.get_logger().error("MTA-STS policies are not served", reason="mailrail_policy is not installed")
        yield
        return
    from mailrail_policy.app import serving  # here, since it may not be installed
    from mailrail_policy.settings import PolicySettings

    own = PolicySettings(
        node_id=f"{settings.node_id}-policy",
        listen=settings.policies_listen,
        tls_dir=settings.policies_tls_dir,
        plaintext=settings.plaintext,
        config_target=settings.config_target,
        cache_dir=settings.cache_dir,
    )
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(serving(own))
        except BadSettings as error:  # mail goes on without it
            log.get_logger().error("MTA-STS policies are not served", reason=str(error))
        yield


def main() -> int:
    """Run the process; returns its exit status."""
    return run("folder", FolderSettings, start)


if __name__ == "__main__":
    sys.exit(main())
