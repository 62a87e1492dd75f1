"""The shells around the plan, with an API server of a few lines: credentials, Secrets, the writer."""

import asyncio
import base64
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import grpc
import pytest
import structlog
import yaml
from aiohttp import web
from prometheus_client import REGISTRY

from mailrail.core.config.compiler import Compiled
from mailrail.core.config.diagnostics import ConsumerState, Diagnostics
from mailrail.core.config.loader import Unreadable
from mailrail.core.config.state import CompilerState, UnreadableState
from mailrail.core.config.stored import StoredRevision
from mailrail.core.dnscheck.answers import DnsAnswer, DnsReason, Question
from mailrail.core.mtasts.own import own_record
from mailrail.core.mtasts.policy import Mode, Policy
from mailrail.core.revision.revision import Domain, DomainDelivery, Gateway, MtaSts, ObjectRef, Revision, Role
from mailrail.core.revision.sealing import Keyring
from mailrail.kit import kubernetes
from mailrail.kit.dns_check import DnsCheckResolver
from mailrail.kit.kubernetes import Api, ApiCredentials, ApiError, connect, find_credentials
from mailrail.kit.publisher import PublishOutcome
from mailrail.kit.settings import BadSettings
from mailrail_operator import probes, watches, writer
from mailrail_operator.app import Leader
from mailrail_operator.clients import ConfigStanding
from mailrail_operator.dns import DnsChecks
from mailrail_operator.model import Change, EventRecord, EventType
from mailrail_operator.secrets import Secrets
from mailrail_operator.settings import OperatorSettings
from mailrail_operator.store import ObjectStore
from mailrail_operator.watches import MetadataWatch
from mailrail_operator.writer import Writer

from testkit.conditions import eventually

REF = ObjectRef("MailRoute", "mail", "a")


class Server:
    """What the shells ask of an API server, and what they did to it."""

    def __init__(self) -> None:
        self.secrets: dict[str, dict[str, Any]] = {}
        self.error: Exception | None = None
        self.reads = 0
        self.asked: list[Mapping[str, Any]] = []
        self.answers = asyncio.Event()  # cleared, it is slow to write
        self.answers.set()
        self.statuses: list[Mapping[str, Any]] = []
        self.applied: list[tuple[str, str | None]] = []  # field manager, and the resourceVersion that it asked for
        self.events: list[Mapping[str, Any]] = []
        self.undeclared: set[str] = set()  # fields that the CRD lacks

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error

    async def get(self, path: str) -> dict[str, Any] | None:
        self.reads += 1
        self._fail()
        return self.secrets.get(path.rpartition("/")[2])

    async def apply_status(
        self,
        kind: str,
        namespace: str,
        name: str,
        uid: str,
        status: Mapping[str, Any],
        *,
        manager: str,
        version: str | None = None,
    ) -> dict[str, Any]:
        self.applied.append((manager, version))
        self._fail()
        if lacking := [name for name in self.undeclared if name in status]:
            fields = [f".status.{name}: field not declared in schema" for name in lacking]
            words = fields[0] if len(fields) == 1 else "\n  ".join(("errors:", *fields))
            whose = f"{namespace}/{name}; mailrail.dev/v1alpha1, Kind={kind}"
            raise ApiError(500, f"failed to create typed patch object ({whose}): {words}")
        self.asked.append(status)
        await self.answers.wait()
        self.statuses.append(status)
        return route(uid, len(self.statuses) + 1) | {"status": status}

    async def call(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self.events.append(body)
        return {}


def route(uid: str = "u", version: int = 1) -> dict[str, Any]:
    metadata = {"name": "a", "namespace": "mail", "uid": uid, "generation": 1, "resourceVersion": str(version)}
    return {"kind": "MailRoute", "metadata": metadata, "spec": {}}


def secret(version: str, **values: str) -> dict[str, Any]:
    data = {k: base64.b64encode(v.encode()).decode() for k, v in values.items()}
    metadata = {"name": "s", "resourceVersion": version, "annotations": {"last-applied": "a copy of the password"}}
    return {"metadata": metadata, "type": "Opaque", "data": data}


# --- Secrets ---


def watched(server: Server, *, permitted: bool = True) -> tuple[Secrets, MetadataWatch]:
    watch = MetadataWatch(cast(Api, server), [], lambda _: None)
    if not permitted:
        watch.refused.add("/api/v1/secrets")
    return Secrets(cast(Api, server), watch), watch


async def test_a_secret_is_read_once_a_version_and_without_its_annotations() -> None:
    server = Server()
    secrets, watch = watched(server)
    server.secrets["s"] = secret("1", password="one")
    watch.metadata[("mail", "s")] = {"resourceVersion": "1"}
    for _ in range(2):
        documents, unreadable = await secrets.read([("mail", "s")])
    assert server.reads == 1
    assert unreadable == []
    assert set(documents[0].content["metadata"]) == {"namespace", "name"}
    server.secrets["s"] = secret("2", password="two")
    watch.metadata[("mail", "s")] = {"resourceVersion": "2"}
    documents, _ = await secrets.read([("mail", "s")])
    assert documents[0].content["data"] == {"password": base64.b64encode(b"two").decode()}


async def test_a_secret_that_is_not_there_is_not_asked_for_again_and_again() -> None:
    server = Server()
    secrets, _ = watched(server)
    assert await secrets.read([("mail", "s")]) == ([], [])
    assert server.reads == 0


async def test_a_secret_that_cannot_be_read_is_unreadable_and_not_absent_CFG_01() -> None:
    server = Server()
    secrets, watch = watched(server)
    watch.metadata[("mail", "s")] = {"resourceVersion": "1"}
    server.error = ApiError(500, "the password is hunter2")
    documents, unreadable = await secrets.read([("mail", "s")])
    assert documents == []
    assert isinstance(unreadable[0], Unreadable)
    assert unreadable[0].place.origin == "secret mail/s"
    assert "hunter2" not in unreadable[0].reason


async def test_without_the_right_to_watch_a_poll_finds_what_changed() -> None:
    server = Server()
    secrets, _ = watched(server, permitted=False)
    server.secrets["s"] = secret("1", password="one")
    await secrets.read([("mail", "s")])
    assert not await secrets.poll()
    server.secrets["s"] = secret("2", password="two")
    assert await secrets.poll()
    del server.secrets["s"]
    assert await secrets.poll()


# --- the watch of metadata ---


class Secretariat:
    """An API server for a watch of Secrets: the lists and watches that it was asked for, and events to send."""

    def __init__(self) -> None:
        self.lists = 0
        self.watches: list[str] = []
        self.ended = 0
        self.status = 200
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            self.lists += 1
            return web.json_response({"kind": "SecretList", "metadata": {"resourceVersion": "7"}, "items": []})
        self.watches.append(request.query["resourceVersion"])
        response = web.StreamResponse(status=self.status)
        await response.prepare(request)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(float(request.query["timeoutSeconds"]) if self.status == 200 else 0):
                while True:
                    await response.write(json.dumps(await self.events.get()).encode() + b"\n")
        self.ended += 1
        return response


@contextlib.asynccontextmanager
async def secretariat(server: Secretariat) -> AsyncIterator[tuple[Api, MetadataWatch]]:
    app = web.Application()
    app.add_routes([web.get("/api/v1/secrets", server.answer)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with connect(ApiCredentials(f"http://127.0.0.1:{runner.addresses[0][1]}")) as api:
            watch = MetadataWatch(api, ["/api/v1/secrets"], lambda _: None)
            task = asyncio.create_task(watch.run())
            try:
                yield api, watch
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
    finally:
        await runner.cleanup()


async def test_a_watch_in_which_nothing_happens_is_ended_by_the_server_and_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert kubernetes.WATCH_SECONDS + 10 <= kubernetes.SILENCE_SECONDS
    monkeypatch.setattr(kubernetes, "WATCH_SECONDS", 1)
    monkeypatch.setattr(kubernetes, "SILENCE_SECONDS", 8.0)
    server = Secretariat()
    async with secretariat(server) as (_, watch):
        await eventually(lambda: server.ended == 1 and len(server.watches) == 2)
        assert (server.lists, server.watches) == (1, ["7", "7"])
        metadata = {"namespace": "mail", "name": "s", "resourceVersion": "8"}
        server.events.put_nowait({"type": "ADDED", "object": {"metadata": metadata}})
        await eventually(lambda: ("mail", "s") in watch.metadata)
        assert server.lists == 1


async def test_a_watch_that_is_dead_is_noticed_by_its_silence_and_what_it_missed_is_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kubernetes, "WATCH_SECONDS", 60)
    monkeypatch.setattr(kubernetes, "SILENCE_SECONDS", 0.3)
    server = Secretariat()
    async with secretariat(server):
        await eventually(lambda: server.lists >= 2)


async def test_watches_that_fail_while_lists_work_are_tried_ever_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "_BACKOFF", (0.0, 0.0, 3600.0))
    server = Secretariat()
    server.status = 500
    async with secretariat(server):
        await eventually(lambda: server.ended == 3)
        await asyncio.sleep(0.3)  # were the wait not to grow, there would be hundreds by now
        assert server.ended == server.lists == 3


@pytest.mark.parametrize(
    ("status", "wait"),
    [(429, "²"), (429, "9" * 5000), (401, "Fri, 31 Dec 1999 23:59:59 GMT")],
    ids=["no digit", "too many digits", "a date"],
)
async def test_a_wait_that_is_no_number_of_seconds_is_the_refusal_that_it_came_with(status: int, wait: str) -> None:
    async def busy(_: web.Request) -> web.Response:
        return web.json_response({"message": "too many requests"}, status=status, headers={"Retry-After": wait})

    app = web.Application()
    app.add_routes([web.get("/{path:.*}", busy)])
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with connect(ApiCredentials(f"http://127.0.0.1:{runner.addresses[0][1]}")) as api:
            with pytest.raises(ApiError, match=f"{status}: too many requests"):
                await api.call("GET", "/api")
    finally:
        await runner.cleanup()


# --- the writer ---


OPERATOR, OTHER = "mailrail.dev/operator", "other.example/operator"


def judging(judged_by: str = "", ends: tuple[str, ...] = ()) -> Change:
    """A change that makes this operator the judge, or keeps it so."""
    one = change("x")
    return replace(one, status={**one.status, "controllerName": OPERATOR}, judged_by=judged_by, ends=ends)


async def test_who_becomes_the_judge_writes_over_nobodys_words_unseen_and_tries_again_CFG_11(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mailrail_operator.writer._BACKOFF", 0.0)
    server = Server()
    server.error = ApiError(409, "the object has been modified")
    work = Writing(server)
    await work.writer.put([judging()])
    await eventually(lambda: len(server.applied) > 1)
    server.error = None
    await eventually(lambda: bool(server.statuses))
    await work.writer.put([replace(judging(), status={**judging().status, "observedGeneration": 2})])
    await eventually(lambda: len(server.statuses) == 2)
    await work.stop()
    assert set(server.applied[:-1]) == {(OPERATOR, "1")}
    assert server.applied[-1] == (OPERATOR, None), "it is the judge already: its own words may follow each other"


async def test_a_status_that_was_planned_for_another_judge_is_not_written_but_planned_again_CFG_11() -> None:
    entries = {"parents": [{"kind": "MailGateway", "namespace": "mail", "name": "a", "controllerName": OPERATOR}]}
    for judged_by, planned in (
        (OTHER, judging()),
        (OTHER, judging(OPERATOR)),
        (OPERATOR, replace(change("x"), status=entries, judged_by=OTHER)),
        ("", replace(change("x"), status=entries, judged_by=OTHER)),
    ):
        server = Server()
        work = Writing(server)
        work.store.put(route(version=2) | {"status": {"controllerName": judged_by}})
        await work.writer.put([planned])
        await eventually(lambda: work.overtaken == 1)  # noqa: B023
        await work.stop()
        assert server.applied == []


async def test_words_from_before_another_judged_the_object_are_taken_back_though_they_say_nothing_else_CFG_11() -> None:
    server = Server()
    work = Writing(server)
    said = [{"manager": OPERATOR, "subresource": "status", "fieldsV1": {"f:status": {"f:conditions": {}}}}]
    seen = route(version=2) | {"status": {"controllerName": OTHER}}
    seen["metadata"]["managedFields"] = said
    work.store.put(seen)
    nothing = Change(REF, "u", {}, (), OTHER)
    await work.writer.put([nothing])
    await eventually(lambda: len(server.statuses) == 1)
    await work.writer.put([nothing])
    await work.settle()
    await work.stop()
    assert server.applied == [(OPERATOR, None)]


async def test_the_words_of_the_judge_before_go_after_ours_are_there_CFG_11() -> None:
    server = Server()
    work = Writing(server)
    work.store.put(route(version=2) | {"status": {"controllerName": OTHER}})
    await work.writer.put([judging(OTHER, (OTHER,))])
    await eventually(lambda: len(server.statuses) == 2)
    await work.stop()
    assert server.applied == [(OPERATOR, "2"), (OTHER, None)]
    assert server.statuses == [judging().status, {}]


def change(message: str, uid: str = "u") -> Change:
    row = {"type": "Ready", "status": "True", "reason": "Ready", "message": message, "observedGeneration": 1}
    rows = [row, row | {"type": "Accepted", "status": "False", "reason": "Why"}]
    return Change(REF, uid, {"conditions": rows}, (EventRecord(EventType.WARNING, "Why", message),))


class Writing:
    """A writer at work."""

    def __init__(self, server: Server, *, leading: bool = True) -> None:
        self.leading = leading
        self.overtaken = 0
        self.store = ObjectStore()
        self.store.put(route())
        self.writer = Writer(
            cast(Api, server), self.store, "here", "mailrail.dev/operator", lambda: self.leading, self._note_overtaken
        )
        self._task = asyncio.create_task(self.writer.run(2))

    def _note_overtaken(self) -> None:
        self.overtaken += 1

    async def settle(self) -> None:
        """Until nothing waits."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_a_status_is_written_once_with_its_event_and_the_store_learns_it() -> None:
    server = Server()
    work = Writing(server)
    await work.writer.put([change("x")])
    await eventually(lambda: len(server.events) == 1)
    await work.writer.put([change("x")])  # an older plan, made before the answer came
    await work.settle()
    await work.stop()
    assert len(server.statuses) == 1
    assert server.events[0]["regarding"]["name"] == "a"
    seen = work.store.get(REF)
    assert seen is not None
    assert seen.status == server.statuses[0]


async def test_a_newer_status_waits_until_the_older_one_is_written_and_so_has_the_last_word() -> None:
    server = Server()
    server.answers.clear()
    work = Writing(server)
    await work.writer.put([change("older")])
    await eventually(lambda: len(server.asked) == 1)
    await work.writer.put([change("newer")])
    await work.settle()
    assert len(server.asked) == 1
    server.answers.set()
    await eventually(lambda: len(server.statuses) == 2)
    await work.stop()
    assert server.statuses == [change("older").status, change("newer").status]
    assert len(server.events) == 1, "both plans saw the same change; it is told once"
    assert work.overtaken == 0


async def test_a_plan_that_took_the_status_before_a_write_for_right_is_made_again() -> None:
    server = Server()
    server.answers.clear()
    work = Writing(server)
    await work.writer.put([change("x")])
    await eventually(lambda: len(server.asked) == 1)
    await work.writer.put([])  # the status as it was then is right: nothing is to be done
    server.answers.set()
    await eventually(lambda: work.overtaken == 1)
    await work.stop()


async def test_whoever_does_not_lead_any_more_writes_nothing() -> None:
    server = Server()
    work = Writing(server, leading=False)
    await work.writer.put([change("x")])
    await work.settle()
    await work.stop()
    assert server.statuses == []


async def test_an_object_that_was_made_anew_gets_no_status_of_its_predecessor() -> None:
    server = Server()
    work = Writing(server)
    await work.writer.put([change("x", uid="before")])
    await work.settle()
    await work.stop()
    assert server.statuses == []


async def test_a_status_that_could_not_be_written_for_want_of_a_server_waits_and_is_written() -> None:
    server = Server()
    server.error = OSError("no route to host")
    work = Writing(server)
    await work.writer.put([change("x")])
    await work.settle()
    server.error = None
    await eventually(lambda: len(server.statuses) == 1)
    await work.stop()


@pytest.mark.parametrize("code", [401, 429, 500, 504])
async def test_a_status_that_the_server_could_not_take_just_then_waits_and_is_written(code: int) -> None:
    server = Server()
    server.error = ApiError(code, "etcd has no leader")
    work = Writing(server)
    await work.writer.put([change("x")])
    await work.settle()
    server.error = None
    await eventually(lambda: len(server.statuses) == 1)
    await work.stop()


async def test_a_status_that_is_refused_counts_as_unwritten_until_it_is_written() -> None:
    server = Server()
    server.error = ApiError(403, "mailroutes/status is forbidden")
    work = Writing(server)
    await work.writer.put([change("x")])
    await work.settle()
    assert REGISTRY.get_sample_value("mailrail_operator_status_pending") == 1
    server.error = None
    await work.writer.put([change("x")])
    await eventually(lambda: REGISTRY.get_sample_value("mailrail_operator_status_pending") == 0)
    await work.stop()
    assert len(server.statuses) == 1


@pytest.mark.parametrize("lacking", [{"listeners"}, {"listeners", "config"}])
async def test_fields_that_an_older_crd_lacks_are_left_out_and_named_once_with_what_to_do(lacking: set[str]) -> None:
    server = Server()
    server.undeclared = lacking
    wanted = replace(change("x"), status={**change("x").status, "listeners": [{"name": "mx"}], "config": {"head": 1}})
    with structlog.testing.capture_logs() as events:
        work = Writing(server)
        for plans in (1, 2):
            await work.writer.put([wanted])
            await eventually(lambda n=plans: len(server.statuses) == n)  # type: ignore[misc]
            await eventually(lambda: REGISTRY.get_sample_value("mailrail_operator_status_pending") == 0)
        await work.stop()
    assert all(written == {k: v for k, v in wanted.status.items() if k not in lacking} for written in server.statuses)
    told = [event for event in events if event["log_level"] in ("warning", "error")]
    assert [event["fields"] for event in told] == [", ".join(sorted(lacking))]
    assert "apply the CRDs of the operator's version" in told[0]["event"]


async def test_a_status_that_the_schema_refuses_for_good_waits_for_the_next_plan_whatever_the_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writer, "_BACKOFF", 0.0)
    server = Server()
    server.error = ApiError(500, "failed to create typed patch object (mail/a): .status.config: expected list, got map")
    work = Writing(server)
    await work.writer.put([change("x")])
    await work.settle()
    assert len(server.applied) == 1
    assert REGISTRY.get_sample_value("mailrail_operator_status_pending") == 1
    server.error = None
    await work.writer.put([change("x")])
    await eventually(lambda: len(server.statuses) == 1)
    await work.stop()


async def test_once_the_crd_has_the_fields_they_are_written() -> None:
    server = Server()
    server.undeclared = {"listeners"}
    wanted = replace(change("x"), status={**change("x").status, "listeners": [{"name": "mx"}]})
    work = Writing(server)
    await work.writer.put([wanted])
    await eventually(lambda: len(server.statuses) == 1)
    await work.settle()
    server.undeclared = set()
    await work.writer.put([wanted])
    await eventually(lambda: len(server.statuses) == 2)
    await work.stop()
    assert server.statuses[-1] == wanted.status


# --- the leader ---


async def test_a_watch_that_breaks_before_everything_was_listed_ends_the_term() -> None:
    async def nonsense(_: web.Request) -> web.Response:
        return web.json_response({"no": "metadata"})  # a proxy's, say

    app = web.Application()
    app.add_routes([web.get("/{path:.*}", nonsense)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with connect(ApiCredentials(f"http://127.0.0.1:{runner.addresses[0][1]}")) as api:
            settings = OperatorSettings(dns_check=False, plaintext=True)
            leader = Leader(settings, api, Keyring({"k1": bytes(32)}), lambda: True)
            async with asyncio.timeout(10):
                with pytest.raises(KeyError):
                    await leader.lead()
    finally:
        await runner.cleanup()


async def test_a_list_after_a_gap_that_fails_is_tried_again_CFG_01() -> None:
    settings = OperatorSettings(dns_check=False, plaintext=True, retry_publish_seconds=0.05)
    async with connect(ApiCredentials("http://127.0.0.1:1")) as api:
        leader = Leader(settings, api, Keyring({"k1": bytes(32)}), lambda: True)
        listed: list[tuple[str, ...]] = []

        async def listing(kinds: tuple[str, ...], cause: str) -> bool:
            listed.append(kinds)
            return len(listed) > 1

        async def published() -> None:
            return None

        leader._list, leader._publish, leader._take = listing, published, lambda _: None  # type: ignore[method-assign, assignment]
        leader._on_relist("MailRoute")
        rounds = asyncio.create_task(leader._rounds())
        try:
            await eventually(lambda: listed == [("MailRoute",)] * 2)
        finally:
            rounds.cancel()


async def test_a_leader_tells_whether_mail_probes_are_to_be_sent_also_before_it_could_list_anything() -> None:
    def expected() -> float | None:
        return REGISTRY.get_sample_value("mailrail_operator_mail_probes_expected")

    target = "127.0.0.1:1"
    settings = OperatorSettings(dns_check=False, plaintext=True, queue_target=target, mail_probe_target=target)
    async with connect(ApiCredentials(f"http://{target}")) as api:
        leader = Leader(settings, api, Keyring({"k1": bytes(32)}), lambda: True)
        term, plans = asyncio.create_task(leader.lead()), asyncio.create_task(leader._plans())
        try:
            await eventually(lambda: expected() == 1)
            leader.synced = True  # there is no gateway
            leader._replan()
            await eventually(lambda: expected() == 0)
            metadata = {"name": "main", "namespace": "mail", "uid": "u", "generation": 1, "resourceVersion": "1"}
            spec = {"listeners": [{"name": "mx", "protocol": "MX", "port": 25}]}
            leader._store.put({"kind": "MailGateway", "metadata": metadata, "spec": spec})
            leader._replan()
            await eventually(lambda: expected() == 1)
        finally:
            for task in (term, plans):
                task.cancel()
            await asyncio.gather(term, plans, return_exceptions=True)
    assert expected() == 0


def rpc_error(code: grpc.StatusCode, details: str) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (rpc_error(grpc.StatusCode.UNAVAILABLE, "no route"), "the config service is unreachable: no route"),
        (rpc_error(grpc.StatusCode.INVALID_ARGUMENT, "too large"), "the config service does not take it: too large"),
        (UnreadableState("format 2; upgrade"), "what the config service has cannot be read: format 2; upgrade"),
        (TimeoutError(), "the config service is unreachable: TimeoutError"),
    ],
)
async def test_why_nothing_is_published_is_said_as_it_is_and_it_is_tried_again(error: Exception, said: str) -> None:
    settings = OperatorSettings(dns_check=False, plaintext=True, retry_publish_seconds=0.01)
    async with connect(ApiCredentials("http://127.0.0.1:1")) as api:
        leader = Leader(settings, api, Keyring({"k1": bytes(32)}), lambda: True)
        waited: list[str] = []

        async def refused() -> None:
            waited.append(leader._waiting)
            raise error

        leader._publish = refused  # type: ignore[method-assign, assignment]
        rounds = asyncio.create_task(leader._rounds())
        try:
            await eventually(lambda: len(waited) > 1 or rounds.done())
        finally:
            rounds.cancel()
            await asyncio.gather(rounds, return_exceptions=True)
    assert waited[:2] == ["", said]


def standing(revision: int) -> ConfigStanding:
    return ConfigStanding((), revision, False, StoredRevision(revision, "c" * 64, 1))


async def test_a_leader_that_may_publish_nothing_knows_the_revision_that_the_one_before_it_published() -> None:
    """Else it would seem that the store does not have what was published last: a critical alert."""
    async with connect(ApiCredentials("http://127.0.0.1:1")) as api:
        settings = OperatorSettings(dns_check=False, plaintext=True)
        leader = Leader(settings, api, Keyring({"k1": bytes(32)}), lambda: True)
        leader._take_standing(standing(7), (), None)
        held = Compiled(Revision(), b"", "d" * 64, Diagnostics(), CompilerState(), {}, held=(REF,))
        leader._take(PublishOutcome(held, 7, activated=True, unchanged=True, held=True))
        leader._take_standing(standing(7), (), None)
        assert (leader._running.newest, leader._running.head, leader._running.difference) == (7, 7, "")
        for name in ("published", "head"):
            assert REGISTRY.get_sample_value(f"mailrail_operator_{name}_revision") == 7
        assert REGISTRY.get_sample_value("mailrail_operator_unreadable_objects") == 1
        mended = replace(held, held=())
        leader._take(PublishOutcome(mended, 8, activated=True, unchanged=False))
        assert REGISTRY.get_sample_value("mailrail_operator_unreadable_objects") == 0
        assert REGISTRY.get_sample_value("mailrail_operator_published_revision") == 8


# --- the check of DNS ---


class Zone:
    """A resolver of empty zones that notes what was asked; it leaves questions about `slow` domains unanswered."""

    def __init__(self, slow: str = "") -> None:
        self.asked: list[Question] = []
        self.slow = slow

    async def ask(self, question: Question) -> DnsAnswer:
        self.asked.append(question)
        if self.slow and self.slow in question.name:
            await asyncio.sleep(0.2)
        return DnsAnswer()


async def test_what_is_no_address_has_no_ptr_record_and_fails_no_look_at_the_others() -> None:
    assert await DnsCheckResolver("127.0.0.1:9").ask(Question("PTR", "no-address")) == DnsAnswer(failed=True)


async def test_a_name_that_the_dns_has_no_room_for_is_not_asked_for() -> None:
    """Nobody answers at that address, so a question would have failed."""
    assert await DnsCheckResolver("127.0.0.1:9").ask(Question("A", f"{'a' * 64}.example.org")) == DnsAnswer()


async def test_a_domain_is_looked_up_at_once_when_its_gateway_is_back_and_not_while_it_is_away() -> None:
    domain = ObjectRef("MailDomain", "mail", "org")
    gateway = Gateway(
        ObjectRef("MailGateway", "mail", "mx1"), "mx1.example.org", (), ObjectRef("MailAccount", "mail", "postmaster")
    )
    there = Revision(
        gateways=(gateway,), domains=(Domain(domain, "example.org", DomainDelivery.NONE, gateway=gateway.ref),)
    )

    def compiled(revision: Revision) -> Compiled:
        return cast(Compiled, SimpleNamespace(revision=revision, values={}))

    zone = Zone()
    checks = DnsChecks(cast(DnsCheckResolver, zone), (), 3600.0, lambda: None, {}, lambda: None)
    looking = asyncio.create_task(checks.run())
    checks.take(compiled(there), 1)
    await eventually(lambda: domain in checks.verdicts)
    checks.take(compiled(replace(there, gateways=())), 1)
    assert checks.verdicts[domain].reason is DnsReason.NOT_CHECKED
    zone.asked.clear()
    checks.take(compiled(there), 1)
    await eventually(lambda: checks.verdicts[domain].reason is DnsReason.RECORDS_MISSING)
    assert zone.asked
    checks.take(compiled(Revision()), 1)
    assert checks.verdicts == {}
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


async def test_the_record_of_a_policy_is_told_once_each_policy_process_serves_it_STS_23b() -> None:
    gateway = Gateway(
        ObjectRef("MailGateway", "mail", "mx1"), "mx1.example.org", (), ObjectRef("MailAccount", "mail", "postmaster")
    )
    ref = ObjectRef("MailDomain", "mail", "org")

    def with_policy(mode: Mode) -> Compiled:
        said = MtaSts(mode, 604_800)
        domain = Domain(ref, "example.org", DomainDelivery.NONE, gateway=gateway.ref, mta_sts=said)
        return cast(Compiled, SimpleNamespace(revision=Revision(gateways=(gateway,), domains=(domain,)), values={}))

    def run_by(*revisions: int) -> tuple[ConsumerState, ...]:
        gone = ConsumerState("gone", Role.POLICY, 1, live=False)
        other = ConsumerState("queue", Role.QUEUE, 99)
        return (*(ConsumerState(f"p{n}", Role.POLICY, number) for n, number in enumerate(revisions)), gone, other)

    def told() -> set[str]:
        records = checks.verdicts[ref].records if ref in checks.verdicts else ()
        return {record.value for record in records if record.name == "_mta-sts.example.org"}

    testing, enforce = (
        f'"{own_record(Policy(mode, 604_800, ("mx1.example.org",)))}"' for mode in (Mode.TESTING, Mode.ENFORCE)
    )
    checks = DnsChecks(cast(DnsCheckResolver, Zone()), (), 3600.0, lambda: None, {}, lambda: None)
    looking = asyncio.create_task(checks.run())
    checks.take(with_policy(Mode.TESTING), 7)
    await eventually(lambda: told() == {"(not yet)"})
    for running in ((), (6,), (7, 6)):  # nobody serves policies, or not everybody this one
        checks.heard(run_by(*running))
        assert not checks._needs[ref].policy_served
    checks.heard(run_by(7, 7))
    await eventually(lambda: told() == {testing})
    checks.heard(run_by(7, 0))  # a process that starts takes nothing back
    checks.take(with_policy(Mode.TESTING), 8)
    assert checks._needs[ref].policy_served
    checks.heard(run_by(8, 8))
    checks.take(with_policy(Mode.ENFORCE), 9)
    assert not checks._needs[ref].policy_served
    checks.heard(run_by(9, 10))
    await eventually(lambda: told() == {enforce})
    checks.take(with_policy(Mode.TESTING), 11)
    checks.take(with_policy(Mode.TESTING), 3)  # the database was set back, and numbers begin anew
    checks.heard(run_by(3))
    await eventually(lambda: told() == {testing})
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


async def test_a_changed_domain_is_looked_up_before_a_hundred_that_a_slow_resolver_holds_up() -> None:
    gateway = Gateway(
        ObjectRef("MailGateway", "mail", "mx1"), "mx1.example.org", (), ObjectRef("MailAccount", "mail", "postmaster")
    )

    def domain(name: str) -> Domain:
        return Domain(ObjectRef("MailDomain", "mail", name), name, DomainDelivery.NONE, gateway=gateway.ref)

    many = tuple(domain(f"d{number}.slow.example") for number in range(100))
    fresh = domain("a.fresh.example")
    checks = DnsChecks(cast(DnsCheckResolver, Zone("slow.example")), (), 3600.0, lambda: None, {}, lambda: None)
    looking = asyncio.create_task(checks.run())
    checks.take(cast(Compiled, SimpleNamespace(revision=Revision(gateways=(gateway,), domains=many), values={})), 1)
    await eventually(lambda: len(checks.verdicts) > 0)
    both = Revision(gateways=(gateway,), domains=(*many, fresh))
    checks.take(cast(Compiled, SimpleNamespace(revision=both, values={})), 1)
    await eventually(lambda: fresh.ref in checks.verdicts)
    assert len(checks.verdicts) < 50
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)


async def test_a_domain_that_nobody_looks_up_says_so_whatever_was_found_before() -> None:
    async with connect(ApiCredentials("http://127.0.0.1:9")) as api:
        leader = Leader(
            OperatorSettings(dns_check=False, plaintext=True), api, Keyring({"k1": bytes(32)}), lambda: True
        )
        metadata = {"name": "org", "namespace": "mail", "uid": "u", "generation": 1, "resourceVersion": "1"}
        leader._store.put({"kind": "MailDomain", "metadata": metadata, "spec": {}})
        (verdict,) = leader._verdicts().values()
    assert (verdict.status, verdict.reason) == ("Unknown", DnsReason.NOT_CHECKED)


async def test_words_of_another_controller_are_looked_at_and_our_own_are_no_news_CFG_11() -> None:
    async with connect(ApiCredentials("http://127.0.0.1:9")) as api:
        leader = Leader(OperatorSettings(plaintext=True), api, Keyring({"k1": bytes(32)}), lambda: True)
    said = [{}, {"controllerName": OPERATOR}, {"controllerName": OPERATOR, "observedGeneration": 1}]
    said += [{"controllerName": OTHER}, {"controllerName": OTHER, "observedGeneration": 1}, {}]
    looks = []
    for version, status in enumerate(said):
        leader._store.put(route(version=version) | {"status": status})
        looks.append(leader._look_again.is_set())
        leader._look_again.clear()
    assert looks == [False, False, False, True, True, True]


@pytest.mark.parametrize(
    ("name", "former", "words"),
    [
        ("", (), "takes 1 to 128 printable"),
        ("a" * 129, (), "takes 1 to 128 printable"),
        ("a\nb", (), "takes 1 to 128 printable"),
        ("a", ("b" * 129,), "takes 1 to 128 printable"),
        ("a", ("a",), "FORMER_CONTROLLER_NAMES: remove a, which"),
    ],
)
def test_a_controller_name_that_no_field_manager_can_have_is_refused(
    name: str, former: tuple[str, ...], words: str
) -> None:
    with pytest.raises(BadSettings, match=words):
        OperatorSettings(controller_name=name, former_controller_names=former).require_controller_names()


def test_an_egress_address_that_is_none_is_refused_by_the_name_of_the_setting() -> None:
    settings = OperatorSettings(egress_addresses=("192.0.2.1", "mx1.example.org"))
    with pytest.raises(BadSettings, match=r"MAILRAIL_OPERATOR_EGRESS_ADDRESSES: 'mx1\.example\.org'"):
        settings.checked_egress_addresses()


@pytest.mark.parametrize("pair", ["9100", "9100=", "metrics=9100", "70000=metrics", "²=metrics"])
def test_a_port_of_ingress_that_is_none_is_refused_by_the_name_of_the_setting(pair: str) -> None:
    with pytest.raises(BadSettings, match="MAILRAIL_OPERATOR_INGRESS_PORTS"):
        OperatorSettings(ingress_ports=(pair,)).checked_ingress_ports()


# --- probes ---


async def test_probes_answer_live_always_and_ready_with_the_reason_why_not() -> None:
    answer = (False, "objects are not listed yet")
    async with probes.serve("127.0.0.1:0", lambda: answer) as port, aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/livez") as response:
            assert response.status == 200
        async with session.get(f"http://127.0.0.1:{port}/readyz") as response:
            assert (response.status, await response.text()) == (503, "objects are not listed yet\n")
        answer = (True, "leading")
        async with session.get(f"http://127.0.0.1:{port}/readyz") as response:
            assert (response.status, await response.text()) == (200, "leading\n")


async def test_probes_on_every_address_are_reached_by_IPv4_and_by_IPv6() -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    async with probes.serve("[::]:0", lambda: (True, "leading")) as port, aiohttp.ClientSession() as session:
        for host in ("127.0.0.1", "[::1]"):
            async with session.get(f"http://{host}:{port}/readyz") as response:
                assert response.status == 200


async def test_a_port_for_probes_that_is_taken_stops_the_process_with_its_name() -> None:
    async with probes.serve("127.0.0.1:0", lambda: (True, "")) as port:
        with pytest.raises(BadSettings, match=f"cannot listen on 127.0.0.1:{port} for probes"):
            async with probes.serve(f"127.0.0.1:{port}", lambda: (True, "")):
                raise AssertionError("it listens twice")


# --- credentials ---


def kubeconfig(folder: Path, user: Mapping[str, Any], **cluster: Any) -> Path:
    path = folder / "config"
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "mail"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://127.0.0.1:6443/", **cluster}}],
        "users": [{"name": "u", "user": dict(user)}],
    }
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def test_a_token_in_a_file_is_read_anew_each_time(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("one\n", encoding="ascii")
    found = find_credentials(kubeconfig(tmp_path, {"tokenFile": "token"}))
    assert (found.server, found.namespace, found.current_token()) == ("https://127.0.0.1:6443", "mail", "one")
    (tmp_path / "token").write_text("two\n", encoding="ascii")
    assert found.current_token() == "two"
    assert "one" not in repr(found)


@pytest.mark.parametrize(
    ("user", "cluster", "words"),
    [
        ({"exec": {"command": "aws"}}, {}, "user with exec"),
        ({"client-key-data": "%%%"}, {}, "is not base64"),
        ({}, {"certificate-authority": "nowhere.crt"}, "nowhere.crt"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_says_why(
    tmp_path: Path, user: Mapping[str, Any], cluster: Mapping[str, Any], words: str
) -> None:
    with pytest.raises(BadSettings, match=words):
        find_credentials(kubeconfig(tmp_path, user, **cluster))


def test_no_kubeconfig_at_all_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="missing is not a usable kubeconfig"):
        find_credentials(tmp_path / "missing")
