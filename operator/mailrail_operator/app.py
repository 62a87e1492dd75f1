"""The loop of the leader: wait for a change, gather, compile and publish, plan, hand on what is to be written.

Level, not edge: each round starts from all objects as they are. An event is only a hint that a round is due. What the
operator remembers between rounds could be lost at any time; the next leader finds it in statuses and in the config
service.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp
import grpc

from mailrail.core.config.building import BuildOptions
from mailrail.core.config.diagnostics import WARNINGS, ConsumerState, Diagnostics
from mailrail.core.config.loader import Document
from mailrail.core.config.reading import Sources
from mailrail.core.config.state import SecretUse, UnreadableState
from mailrail.core.config.stored import StoredRevision, difference, reason_to_publish
from mailrail.core.dnscheck.answers import DnsVerdict
from mailrail.core.resources import API_VERSION, KINDS
from mailrail.core.revision.revision import Domain, ObjectRef
from mailrail.core.revision.sealing import Keyring
from mailrail.kit import log
from mailrail.kit.config_client import keyring
from mailrail.kit.dns_check import DnsCheckResolver
from mailrail.kit.kubernetes import Api, ApiError, core_path, resource_path
from mailrail.kit.publisher import Publisher, PublishOutcome, SetBack, Superseded
from mailrail.kit.settings import BadSettings, port_map
from mailrail_operator import clients, metrics
from mailrail_operator.dkim_keys import key_rows, remembered
from mailrail_operator.dns import DnsChecks
from mailrail_operator.mail_probe import MailProbe, has_mx_listener
from mailrail_operator.model import ClusterView, Controller, ObjectMemory, Observed, Running, SealingKey
from mailrail_operator.plan import plan
from mailrail_operator.secrets import Secrets
from mailrail_operator.settings import OperatorSettings
from mailrail_operator.store import ObjectStore, referenced_secrets
from mailrail_operator.transport_health import HEALTHY, TransportHealth
from mailrail_operator.transport_watch import TransportWatch
from mailrail_operator.watches import MetadataWatch, ResourceWatch
from mailrail_operator.writer import Writer

_API_BROKEN: Final = (ApiError, aiohttp.ClientError, TimeoutError, OSError)
_LIST_BACKOFF: Final = 1.0
_WATCH_BACKOFF: Final = 2.0
_DEBOUNCE_LIMIT: Final = 2.0
_ARRIVAL_LOOK: Final = 0.5
_METADATA: Final = ("name", "namespace", "uid", "creationTimestamp", "generation")
_DNS_OFF: Final = DnsVerdict.not_checked("the check is switched off")


def document_of(seen: Observed) -> Document:
    """What the compiler reads of an object: identity, age, generation and spec."""
    metadata = seen.body["metadata"]
    return Document(
        {
            "apiVersion": API_VERSION,
            "kind": seen.ref.kind,
            "metadata": {k: metadata[k] for k in _METADATA if k in metadata},
            "spec": seen.spec,
        }
    )


class Leader:
    """One term. `may_write` says whether the lease is still ours."""

    def __init__(self, settings: OperatorSettings, api: Api, keys: Keyring, may_write: Callable[[], bool]) -> None:
        self._settings, self._api = settings, api
        self._store = ObjectStore(self._on_restated)
        self._keys = keys
        self._publisher = Publisher(settings, keys, f"operator {settings.node_id}")
        self._options = BuildOptions(
            port_map=port_map("MAILRAIL_OPERATOR_PORT_MAP", settings.port_map),
            own_ports=settings.checked_ingress_ports(),
        )
        self._writer = Writer(
            api, self._store, settings.node_id, settings.controller_name, may_write, overtaken=self._replan
        )
        paths = [core_path("secrets", namespace) for namespace in settings.namespaces] or [core_path("secrets", None)]
        self._secret_watch = MetadataWatch(api, paths, self._on_secret)
        self._namespace_watch = MetadataWatch(api, [core_path("namespaces", None)], lambda _: self._nudge())
        self._secrets = Secrets(api, self._secret_watch)
        self._keys_seen: dict[tuple[str, str], float] = {}
        self._remembered = False
        self._domains: tuple[Domain, ...] = ()  # of the last publish
        self._dns: DnsChecks | None = None
        if settings.dns_check:
            resolver = DnsCheckResolver(settings.resolver)
            self._dns = DnsChecks(
                resolver,
                settings.checked_egress_addresses(),
                settings.dns_seconds,
                self._replan,
                self._keys_seen,
                self._nudge,
            )
        self._transports = TransportWatch(settings, self._replan)
        self._mail_probe = MailProbe(settings, lambda: self._keys, self._wants_probes)
        self._relisted: set[str] = set()
        self._look_again = asyncio.Event()  # a plan is due, no compilation
        self._diagnostics = Diagnostics()
        self._uses: tuple[SecretUse, ...] = ()
        self._memory: Mapping[ObjectRef, ObjectMemory] = {}
        self._running = Running()
        self._waiting = ""
        self._others = 0
        self._last_round = 0.0
        self._publishing = False
        self._again: asyncio.TimerHandle | None = None
        self._may_write = may_write
        self._log = log.get_logger()
        self.synced = False
        self.published = False

    # --- hints ---

    def _nudge(self) -> None:
        self._store.changed.set()

    def _replan(self) -> None:
        self._look_again.set()

    def _on_secret(self, key: tuple[str, str]) -> None:
        if key in self._secrets.referenced:
            self._nudge()

    def _on_restated(self, before: Observed, seen: Observed) -> None:
        """What another controller says may make us the judge of an object, or end that. Our own words are no news."""
        if (before.judged_by or seen.judged_by) and seen.judged_by != self._settings.controller_name:
            self._replan()

    def _on_relist(self, kind: str) -> None:
        self._relisted.add(kind)
        self._nudge()

    def _questions_of_the_queue(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """Loops that ask the queue, where the settings say where it is."""
        if not self._settings.queue_target:
            return []
        loops = [("transports", self._transports.run())]
        if self._probes_mail:
            loops.append(("mail probe", self._mail_probe.run()))
        return loops

    def _health(self) -> Mapping[ObjectRef, TransportHealth] | None:
        """Of each transport; None: the queue is asked and has not answered yet."""
        if not self._settings.queue_target:
            return {}
        failing = self._transports.failing
        if failing is None:
            return None
        return {ref: failing.get(ref, HEALTHY) for ref in self._store.objects() if ref.kind == "MailTransport"}

    @property
    def _probes_mail(self) -> bool:
        return bool(self._settings.queue_target and self._settings.mail_probe_target)

    def _wants_probes(self) -> bool:
        return has_mx_listener(self._store.objects().values())

    def _expect_probes(self) -> None:
        """Say whether probes are to be sent. Their own loop does not say it, because it may be what fails
        (MailrailProbeNotSent). Before everything is listed they are: no object says yet that no listener takes one."""
        metrics.MAIL_PROBES_EXPECTED.set(self._probes_mail and (not self.synced or self._wants_probes()))

    # --- the term ---

    async def lead(self) -> None:
        """Until cancelled. Raises Superseded when another publisher took over, and whatever a task fails with."""
        tasks = [
            asyncio.create_task(self._secret_watch.run(), name="secrets"),
            asyncio.create_task(self._namespace_watch.run(), name="namespaces"),
        ]
        self._expect_probes()
        listing = asyncio.create_task(self._list_everything(), name="first list")
        try:
            done, _ = await asyncio.wait((*tasks, listing), return_when=asyncio.FIRST_COMPLETED)
            for task in done - {listing}:  # a watch that broke: nobody else would say so, and the wait would not end
                task.result()
                raise RuntimeError(f"{task.get_name()} ended by itself")
            listing.result()
            self.synced = True
            metrics.SYNCED.set(1)
            self._log.info("all objects are listed", objects=len(self._store))
            loops = (
                ("watch", self._watch()),
                ("rounds", self._rounds()),
                ("plans", self._plans()),
                ("writer", self._writer.run(self._settings.status_writers)),
                ("consumers", self._consumers()),
                ("resync", self._resync()),
                ("counts", self._counts()),
                ("poll", self._poll_secrets()),
                ("keys", self._watch_keys()),
                *((("dns", self._dns.run()),) if self._dns is not None else ()),
                *self._questions_of_the_queue(),
            )
            tasks += [asyncio.create_task(loop, name=name) for name, loop in loops]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
                raise RuntimeError(f"{task.get_name()} ended by itself")
        finally:
            for task in (*tasks, listing):
                task.cancel()
            await asyncio.gather(*tasks, listing, return_exceptions=True)
            metrics.SYNCED.set(0)
            metrics.MAIL_PROBES_EXPECTED.set(0)

    # --- reading ---

    async def _list_everything(self) -> None:
        await self._secret_watch.synced.wait()
        await self._namespace_watch.synced.wait()
        await self._first_list()

    async def _first_list(self) -> None:
        """Nothing is compiled before everything was read: a missing half would look like a deletion."""
        while True:
            if await self._list(tuple(KINDS), "start"):
                return
            await asyncio.sleep(_LIST_BACKOFF)  # the CRDs are not there yet, or the API server is not

    def _places(self) -> tuple[str | None, ...]:
        return self._settings.namespaces or (None,)

    async def _list(self, kinds: tuple[str, ...], cause: str) -> bool:
        """Replace kinds by authoritative lists. False if that did not work; the store is as it was for those."""
        good = True
        for kind in kinds:
            for namespace in self._places():
                try:
                    bodies, version = await self._api.list(resource_path(kind, namespace))
                except _API_BROKEN as error:
                    self._log.warning("cannot list", kind=kind, cause=cause, error=str(error) or type(error).__name__)
                    good = False
                    continue
                gone = self._store.replace(kind, namespace, bodies, version)
                metrics.RESYNCS.labels(cause).inc()
                metrics.LAST_WATCH.set(time.time())  # nothing may change for hours, and no watch say a word
                if gone:
                    self._log.info("objects deleted without an event", kind=kind, objects=len(gone), cause=cause)
        return good

    async def _watch(self) -> None:
        """Keep kopf running. When it ends (the API server was away for long, a CRD went), it starts anew."""
        while True:
            watch = ResourceWatch(self._api.credentials, self._settings.namespaces, self._store, self._on_relist)
            watch.start()
            try:
                await watch.ended.wait()
            finally:
                await asyncio.shield(watch.stop())
            metrics.WATCH_RESTARTS.inc()
            self._log.warning("watches ended; restarting them", error=repr(watch.error))
            # kopf looks for the kinds once, at its start; one that is missing then would not be watched again.
            while True:
                await asyncio.sleep(_WATCH_BACKOFF)
                if await self._list(tuple(KINDS), "relist"):
                    break

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(self._settings.resync_seconds)
            await self._list(tuple(KINDS), "period")
            self._replan()  # somebody may have written into a status of ours

    async def _counts(self) -> None:
        """A watch that restarts after everything of a kind was deleted gives no event at all; the count tells."""
        while True:
            await asyncio.sleep(self._settings.count_seconds)
            for kind in KINDS:
                for namespace in self._places():
                    with contextlib.suppress(*_API_BROKEN):
                        there = await self._api.count(resource_path(kind, namespace))
                        if there != self._store.count(kind, namespace):
                            await self._list((kind,), "count")

    async def _poll_secrets(self) -> None:
        while True:
            await asyncio.sleep(self._settings.secrets_poll_seconds)
            if not self._secret_watch.permitted and await self._secrets.poll():
                self._nudge()

    async def _watch_keys(self) -> None:
        """A new sealing key is a change: everything is sealed anew with it, without a restart (CFG-02)."""
        while True:
            await asyncio.sleep(self._settings.keys_seconds)
            try:
                keys = await asyncio.to_thread(keyring, self._settings)
            except BadSettings as error:
                self._log.error("cannot read sealing keys; the last ones stay in use", error=str(error))
                continue
            another = keys.newest != self._keys.newest
            self._keys = keys
            if another:
                self._nudge()

    # --- compiling and publishing ---

    async def _rounds(self) -> None:
        self._nudge()
        while True:
            await self._store.changed.wait()
            began = time.monotonic()
            await self._settle()
            self._store.changed.clear()
            if self._relisted:
                kinds, self._relisted = tuple(sorted(self._relisted)), set()
                if not await self._list(kinds, "relist"):  # what went unheard in the gap is still to be found
                    self._relisted.update(kinds)
                    asyncio.get_running_loop().call_later(self._settings.retry_publish_seconds, self._nudge)
            try:
                outcome = await self._publish()
            except SetBack as error:  # only whose turn it is may take the next epoch
                if not self._may_write():
                    raise Superseded(str(error)) from error
                self._log.warning("publishing again", reason=str(error))
                self._nudge()
                continue
            except (grpc.aio.AioRpcError, UnreadableState, *_API_BROKEN) as error:
                self._waiting = clients.why_unpublished(error)
                self.published = False
                metrics.PUBLISHES.labels("failed").inc()
                self._log.error("cannot publish", error=self._waiting)
                self._replan()
                await asyncio.sleep(self._settings.retry_publish_seconds)
                self._nudge()
                continue
            self._last_round = time.monotonic() - began
            metrics.CYCLE.observe(self._last_round)
            self._take(outcome)

    async def _settle(self) -> None:
        """Wait until nothing came for a moment, but not for long: many changes at once are one round (CFG-06)."""
        longest = min(max(self._settings.debounce_seconds, self._last_round), _DEBOUNCE_LIMIT)
        until = time.monotonic() + longest
        while time.monotonic() < until:
            self._store.changed.clear()
            try:
                async with asyncio.timeout(self._settings.quiet_seconds):
                    await self._store.changed.wait()
            except TimeoutError:
                return

    async def _publish(self) -> PublishOutcome:
        self._publisher.use_keys(self._keys)
        previous = await self._publisher.prepare()
        objects = self._store.objects()
        if not self._remembered:  # what the leader before this one saw of records of keys
            self._keys_seen.update(remembered(objects.values()))
            self._remembered = True
        names = {name for seen in objects.values() for name in referenced_secrets(seen.ref.namespace, seen.spec)}
        # The version that serves may be an older one than the API server shows, with Secrets of its own.
        names |= {(use.owner.namespace, use.secret) for use in previous.uses if self._ours(use.owner)}
        secrets, unreadable = await self._secrets.read(names)
        sources = Sources(
            (*map(document_of, objects.values()), *secrets),
            tuple(unreadable),
            {
                name: {k: str(v) for k, v in (metadata.get("labels") or {}).items()}
                for (_, name), metadata in self._namespace_watch.metadata.items()
            },
            now=int(time.time()),
            keys_seen=self._keys_seen,
        )
        if unreadable:
            asyncio.get_running_loop().call_later(self._settings.retry_publish_seconds, self._nudge)
        self._publishing = True
        try:
            return await self._publisher.publish(sources, self._options)
        finally:
            self._publishing = False

    def _ours(self, ref: ObjectRef) -> bool:
        return not self._settings.namespaces or ref.namespace in self._settings.namespaces

    def _take(self, outcome: PublishOutcome) -> None:
        compiled = outcome.compiled
        self._diagnostics, self._waiting = compiled.diagnostics, ""
        self.published = True
        metrics.UNREADABLE_OBJECTS.set(len(compiled.held))
        if outcome.held:
            metrics.PUBLISHES.labels("held").inc()
            self._replan()
            return
        self._uses = compiled.state.uses
        self._domains = compiled.revision.domains
        if self._again is not None:
            self._again.cancel()
        if compiled.again_at is not None:
            self._again = asyncio.get_running_loop().call_later(max(1.0, compiled.again_at - time.time()), self._nudge)
        head = outcome.revision if outcome.activated else self._running.head
        self._running = replace(
            self._running,
            newest=outcome.revision,
            checksum=compiled.checksum,
            head=head,
            pinned=not outcome.activated,
            difference="",
        )
        result = "unchanged" if outcome.unchanged else "stored" if outcome.activated else "pinned"
        metrics.PUBLISHES.labels(result).inc()
        metrics.REVISION.set(outcome.revision)
        warned = compiled.diagnostics.warned()
        for kind in KINDS:
            for condition in WARNINGS:
                metrics.OBJECT_WARNINGS.labels(kind, condition.value).set(warned.get((kind, condition), 0))
        metrics.LAST_PUBLISH.set(time.time())
        if not outcome.unchanged:
            self._log.info(
                "published",
                revision=outcome.revision,
                summary=compiled.summary,
                seconds=round(self._last_round, 3),
                errors=len(compiled.diagnostics.errors),
            )
        if self._dns is not None:
            self._dns.take(compiled, outcome.revision)
        self._replan()

    # --- status ---

    async def _consumers(self) -> None:
        while True:
            try:
                async with clients.view(self._settings) as config:
                    keys_due = 0.0
                    while True:
                        keys = self._running.keys
                        if time.monotonic() >= keys_due:
                            keys = await config.sealing_keys()
                            keys_due = time.monotonic() + self._settings.keys_seconds
                        before = self._publisher.published
                        self._take_standing(await config.standing(), keys, before)
                        await asyncio.sleep(self._settings.consumers_seconds)
            except (grpc.aio.AioRpcError, BadSettings) as error:
                self._log.warning("cannot list consumers", error=clients.words_of(error))
            await asyncio.sleep(self._settings.consumers_seconds)

    def _take_standing(
        self, standing: clients.ConfigStanding, keys: tuple[SealingKey, ...], before: StoredRevision | None
    ) -> None:
        """What config says. `before`: what was published last when it was asked. Nothing is awaited here: what a
        publish says meanwhile would be forgotten."""
        running = replace(
            self._running, head=standing.head, pinned=standing.pinned, consumers=standing.consumers, keys=keys
        )
        published = self._publisher.published
        if published is None:  # by this process; the leader before it published what is there
            running = replace(running, newest=standing.newest.revision, checksum=standing.newest.checksum)
        elif before is published and not self._publishing:
            running = replace(running, difference=self._compare(before, standing.newest))
        self._set_running(running)

    def _compare(self, published: StoredRevision, newest: StoredRevision) -> str:
        """Why the store does not have what was published last; then, and when its data are of another history, it is
        published again: nothing else may change for days (CFG-09)."""
        found = difference(published, newest)
        if reason := reason_to_publish(published, newest):
            if found != self._running.difference or not found:
                self._log.warning("publishing again", reason=reason, revision=newest.revision)
            self._nudge()
        return found

    def _set_running(self, running: Running) -> None:
        _count(running.consumers, running.head)
        if self._dns is not None:
            self._dns.heard(running.consumers)
        metrics.REVISION.set(running.newest)
        metrics.PINNED.set(running.pinned)
        if running != self._running:
            self._running = running
            self._replan()

    def _verdicts(self) -> Mapping[ObjectRef, DnsVerdict]:
        """What DNS says of each domain; when nobody looks, that, so that no older word stands for ever."""
        if self._dns is not None:
            return dict(self._dns.verdicts)
        return {ref: _DNS_OFF for ref in self._store.objects() if ref.kind == "MailDomain"}

    async def _plans(self) -> None:
        while True:
            await self._look_again.wait()
            self._look_again.clear()
            self._expect_probes()
            view = ClusterView(
                self._store.objects(),
                self._diagnostics,
                self._uses,
                self._running,
                self._verdicts(),
                datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                self._waiting,
                Controller(self._settings.controller_name, frozenset(self._settings.former_controller_names)),
                health=self._health(),
                keys=key_rows(self._domains, self._keys_seen),
                arrival_seconds=self._settings.arrival_seconds,
            )
            made = await asyncio.to_thread(plan, view, self._memory)
            self._memory = made.memory
            for kind in KINDS:
                for ready in ("True", "False", "Unknown"):
                    metrics.OBJECTS.labels(kind, ready).set(made.counts.get((kind, ready), 0))
                metrics.OTHERS.labels(kind).set(made.others.get(kind, 0))
            if (others := sum(made.others.values())) != self._others:
                self._others = others
                self._log.info("objects that another controller judges", objects=others, reason="OwnedByOther")
            if made.arriving:
                asyncio.get_running_loop().call_later(_ARRIVAL_LOOK, self._replan)
            await self._writer.put(made.changes)


def _count(found: tuple[ConsumerState, ...], head: int) -> None:
    live = [c for c in found if c.live]
    metrics.HEAD.set(head)
    metrics.CONSUMERS.labels("current").set(sum(c.revision == head for c in live))
    metrics.CONSUMERS.labels("rejecting").set(sum(c.rejected > c.revision for c in live))
    metrics.CONSUMERS.labels("behind").set(sum(c.revision < head and c.rejected <= c.revision for c in live))
