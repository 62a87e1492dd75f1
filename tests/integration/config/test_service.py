"""Epochs, history, sealed values, watching, acknowledging: the config service on a real Postgres (CFG-02 to CFG-07)."""

import asyncio
import base64
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from integration.config.conftest import config_service, consumer, publisher, route, sources

from mailrail.core.config.compiler import compile
from mailrail.core.config.state import CompilerState, encode_state
from mailrail.core.revision.revision import Role, decode
from mailrail.core.revision.sealing import Keyring
from mailrail.core.sasl.verifiers import ScramVerifier
from mailrail.kit import config_client, migrations
from mailrail.kit.publish_refusals import REASON_KEY, SET_BACK, STALE_EPOCH
from mailrail.kit.publisher import Superseded
from mailrail.local.postgres.server import EmbeddedPostgres
from mailrail.pb.config.v1 import config_pb2 as pb
from mailrail_config.app import keep_up

from testkit.conditions import eventually

KEYS = Keyring({"0001": bytes(range(32))})


async def test_a_published_revision_reaches_every_role_with_its_own_secrets_CFG_02(
    database: str, keys_dir: Path
) -> None:
    async with config_service(database) as service:
        ingress = consumer(keys_dir, service.target, Role.INGRESS)
        outbound = consumer(keys_dir, service.target, Role.OUTBOUND)
        queue = consumer(keys_dir, service.target, Role.QUEUE)
        async with ingress.client.running(), outbound.client.running(), queue.client.running():
            outcome = await publisher(keys_dir, service.target).publish(sources())
            assert (outcome.revision, outcome.activated, outcome.unchanged) == (1, True, False)
            async with asyncio.timeout(60):
                at_ingress, at_outbound, at_queue = [await c.client.wait_first() for c in (ingress, outbound, queue)]
        account, transport = at_ingress.revision.accounts[0], at_outbound.revision.transports[0]
        verifiers = [ScramVerifier.parse(at_ingress.secret(ref).decode()) for _, ref in account.scram]
        assert [v.mechanism for v in verifiers] == ["SCRAM-SHA-256", "SCRAM-SHA-1"]
        assert all(v.admits("wonderland") and not v.admits("Wonderland") for v in verifiers)
        assert transport.password is not None
        assert at_outbound.secret(transport.password) == b"looking-glass"
        # Nobody holds what is another's business, and the password of an account reaches nobody at all (CFG-03).
        assert transport.password.path not in at_ingress.secrets
        assert set(at_outbound.secrets) == {transport.password.path}
        assert not at_queue.secrets
        assert account.password is None
        assert b"wonderland" not in b"".join(at_ingress.secrets.values())


async def test_what_is_stored_holds_no_secret_in_clear_CFG_02(database: str, keys_dir: Path) -> None:
    async with config_service(database) as service:
        await publisher(keys_dir, service.target).publish(sources())
        async with service.store._pool.connection() as connection:
            for table in ("revisions", "sealed_values", "head", "consumers"):
                rows = await (await connection.execute(f"SELECT t::text FROM {table} t")).fetchall()
                text = "".join(str(row[0]) for row in rows)
                for word in ("wonderland", "looking-glass"):
                    assert word not in text
                    assert word.encode().hex() not in text


async def test_the_same_configuration_is_not_published_twice(database: str, keys_dir: Path) -> None:
    async with config_service(database) as service:
        one = publisher(keys_dir, service.target)
        assert not (await one.publish(sources())).unchanged
        assert (await one.publish(sources())).unchanged
        # Another process with the same key makes the same bytes, and the same verifiers (CFG-03).
        again = await publisher(keys_dir, service.target).publish(sources())
        assert (again.revision, again.unchanged) == (1, True)


async def test_a_stale_epoch_is_refused_CFG_04(database: str, keys_dir: Path) -> None:
    async with config_service(database) as service:
        old, new = publisher(keys_dir, service.target, "old"), publisher(keys_dir, service.target, "new")
        await old.publish(sources())
        await new.publish(sources(route("a", "a.example")))
        with pytest.raises(Superseded, match="new has epoch 2"):
            await old.publish(sources(route("b", "b.example")))
        async with service.stub() as stub:
            head = await stub.GetRevision(pb.GetRevisionRequest())
            assert head.info.revision == 2
            assert b"a.example" in head.body
            # The epoch must be exact, not merely great enough.
            compiled = compile(sources(), CompilerState(), KEYS)
            for epoch, reason in ((1, STALE_EPOCH), (3, SET_BACK)):  # nobody was given 3: the data went back
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stub.Publish(pb.PublishRequest(epoch=epoch, expected_head=2, body=compiled.encoded))
                assert refused.value.code() is grpc.StatusCode.ABORTED
                assert (REASON_KEY, reason) in list(refused.value.trailing_metadata())


async def test_a_publish_onto_another_head_is_refused_CFG_04(database: str, keys_dir: Path) -> None:
    async with config_service(database) as service, service.stub() as stub:
        epoch = (await stub.AcquirePublisher(pb.AcquirePublisherRequest(identity="a"))).epoch
        with pytest.raises(grpc.aio.AioRpcError, match="head is 0, not 7") as refused:
            await stub.Publish(
                pb.PublishRequest(epoch=epoch, expected_head=7, body=compile(sources(), CompilerState(), KEYS).encoded)
            )
        assert refused.value.code() is grpc.StatusCode.ABORTED


async def test_a_revision_without_its_sealed_values_is_refused_CFG_02(database: str) -> None:
    async with config_service(database) as service, service.stub() as stub:
        epoch = (await stub.AcquirePublisher(pb.AcquirePublisherRequest(identity="a"))).epoch
        with pytest.raises(grpc.aio.AioRpcError, match=r"the sealed value of default/.* is missing") as refused:
            await stub.Publish(pb.PublishRequest(epoch=epoch, body=compile(sources(), CompilerState(), KEYS).encoded))
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert (await stub.GetRevision(pb.GetRevisionRequest())).info.revision == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"format":99}', b'{"gateways":3}'])
async def test_a_body_that_no_service_could_read_is_refused(database: str, body: bytes) -> None:
    async with config_service(database) as service, service.stub() as stub:
        epoch = (await stub.AcquirePublisher(pb.AcquirePublisherRequest(identity="a"))).epoch
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Publish(pb.PublishRequest(epoch=epoch, body=body))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_values_that_the_database_lost_are_sent_again(database: str, keys_dir: Path) -> None:
    async with config_service(database) as service:
        one = publisher(keys_dir, service.target)
        await one.publish(sources())
        async with service.store._pool.connection() as connection:
            await connection.execute("DELETE FROM sealed_values")
        outcome = await one.publish(sources(route("a", "a.example")))
        assert outcome.revision == 2
        ingress = consumer(keys_dir, service.target, Role.INGRESS)
        async with ingress.client.running(), asyncio.timeout(60):
            assert await ingress.client.wait_for(2, 60)
        assert ingress.client.current is not None
        assert len(ingress.client.current.secrets) == 2


async def test_a_rollback_pins_head_until_it_is_unpinned_CFG_04(database: str, keys_dir: Path) -> None:
    async with config_service(database) as service, service.stub() as stub:
        one = publisher(keys_dir, service.target)
        for domain in ("a.example", "b.example"):
            await one.publish(sources(route("r", domain)))
        queue = consumer(keys_dir, service.target, Role.QUEUE)
        async with queue.client.running():
            await eventually(lambda: queue.client.current and queue.client.current.number == 2)
            head = (await stub.Rollback(pb.RollbackRequest(revision=1, reason="b is wrong"))).head
            assert (head.revision, head.pinned) == (1, True)
            await eventually(lambda: queue.client.current and queue.client.current.number == 1)
            stored = await one.publish(sources(route("r", "c.example")))
            assert (stored.revision, stored.activated) == (3, False)
            listed = (await stub.ListRevisions(pb.ListRevisionsRequest())).revisions
            assert [(r.revision, r.head, r.pinned) for r in listed] == [
                (3, False, False),
                (2, False, False),
                (1, True, True),
            ]
            assert (await stub.ListConsumers(pb.ListConsumersRequest())).pinned
            again = await one.publish(sources(route("r", "d.example")))
            assert (again.revision, again.activated) == (4, False)
            assert queue.client.current is not None
            assert queue.client.current.number == 1
            await stub.Unpin(pb.UnpinRequest())
            await eventually(lambda: queue.client.current and queue.client.current.number == 4)
            after = await one.publish(sources(route("r", "e.example")))
            assert (after.revision, after.activated) == (5, True)
        with pytest.raises(grpc.aio.AioRpcError, match="there is no revision 99") as refused:
            await stub.Rollback(pb.RollbackRequest(revision=99))
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_consumers_are_seen_rejecting_and_leaving_CFG_05(database: str, keys_dir: Path) -> None:
    async with config_service(database) as service, service.stub() as stub:
        one = publisher(keys_dir, service.target)
        await one.publish(sources())
        queue, outbound = (consumer(keys_dir, service.target, role) for role in (Role.QUEUE, Role.OUTBOUND))
        queue.refuse = {2}

        async def states() -> dict[str, tuple[int, int, bool, str]]:
            found = (await stub.ListConsumers(pb.ListConsumersRequest())).consumers
            return {c.role: (c.revision, c.rejected, c.live, c.error) for c in found}

        async with queue.client.running():
            async with outbound.client.running():
                await eventually(lambda: queue.client.current and outbound.client.current)
                await one.publish(sources(route("a", "a.example")))
                await eventually(lambda: outbound.client.current and outbound.client.current.number == 2)

                async def told() -> Any:
                    now = await states()
                    return now.get("outbound", (0,))[0] == 2 and now.get("queue", (0, 0))[1] == 2

                await eventually(told)
                assert await states() == {
                    "outbound": (2, 0, True, ""),
                    "queue": (1, 2, True, "ValueError: the test refuses it"),
                }
            assert set(await states()) == {"queue"}  # a clean stop removes the row
        assert await states() == {}


async def test_a_swap_during_a_report_is_reported_right_after_it_CFG_05(
    database: str, keys_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_client, "_REPORT_EVERY", 60.0)
    async with config_service(database) as service:
        queue = consumer(keys_dir, service.target, Role.QUEUE)
        report, reporting, go_on = service.store.report, asyncio.Event(), asyncio.Event()

        async def slow(*said: Any) -> None:
            reporting.set()
            await go_on.wait()
            await report(*said)

        monkeypatch.setattr(service.store, "report", slow)
        async with queue.client.running():
            await reporting.wait()
            await publisher(keys_dir, service.target).publish(sources())
            await eventually(lambda: queue.seen)
            go_on.set()

            async def told() -> Any:
                return [row.revision for row in await service.store.consumers()] == [1]

            await eventually(told, within=4)


async def test_a_reason_that_no_text_of_postgres_holds_is_shown_by_its_escape_CFG_05(database: str) -> None:
    async with config_service(database) as service, service.stub() as stub:
        await stub.Report(pb.ReportRequest(process="one", role="queue", rejected=2, error="not a\0name"))
        assert [c.error for c in (await stub.ListConsumers(pb.ListConsumersRequest())).consumers] == [r"not a\x00name"]


async def test_what_a_consumer_cannot_carry_out_is_told_within_bounds_until_it_is_mended_CFG_05(database: str) -> None:
    async with config_service(database) as service, service.stub() as stub:

        async def told() -> list[pb.Problem]:
            (one,) = (await stub.ListConsumers(pb.ListConsumersRequest())).consumers
            return list(one.problems)

        taken = pb.Problem(
            kind="MailGateway", namespace="mail", name="main", part="listeners/mx", reason="PortConflict", message="why"
        )
        await stub.Report(pb.ReportRequest(process="one", role="ingress", revision=1, problems=[taken]))
        assert await told() == [taken]
        many = [pb.Problem(name="n" * 300, message="m" * 600)] * 100
        await stub.Report(pb.ReportRequest(process="one", role="ingress", revision=1, problems=many))
        assert [(len(p.name), len(p.message)) for p in await told()] == [(255, 500)] * 64
        await stub.Report(pb.ReportRequest(process="one", role="ingress", revision=1))
        assert await told() == []


async def test_config_tells_which_gateway_alone_a_consumer_serves(database: str) -> None:
    longest = f"{'n' * 63}/{'m' * 253}"
    async with config_service(database) as service, service.stub() as stub:
        for said in (longest, ""):
            await stub.Report(pb.ReportRequest(process="one", role="ingress", revision=1, gateway=said))
            assert [c.gateway for c in (await stub.ListConsumers(pb.ListConsumersRequest())).consumers] == [said]


async def test_a_consumer_that_fell_silent_is_not_live_CFG_05(database: str) -> None:
    async with config_service(database) as service, service.stub() as stub:
        await stub.Report(pb.ReportRequest(process="gone", role="queue", revision=1))
        assert [c.live for c in (await stub.ListConsumers(pb.ListConsumersRequest())).consumers] == [True]
        async with service.store._pool.connection() as connection:
            await connection.execute("UPDATE consumers SET seen = seen - interval '11 s'")
        assert [c.live for c in (await stub.ListConsumers(pb.ListConsumersRequest())).consumers] == [False]


@pytest.mark.parametrize(("process", "role"), [("", "queue"), ("a", "nobody"), ("a" * 256, "queue")])
async def test_a_watcher_without_name_or_role_is_refused(database: str, process: str, role: str) -> None:
    async with config_service(database) as service, service.stub() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in stub.Watch(pb.WatchRequest(process=process, role=role)):
                pass
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_watch_survives_restarts_of_the_service_CFG_07(database: str, keys_dir: Path, port: int) -> None:
    queue = consumer(keys_dir, f"127.0.0.1:{port}", Role.QUEUE)
    async with queue.client.running():
        async with config_service(database, port) as service:
            await publisher(keys_dir, service.target).publish(sources())
            await eventually(lambda: queue.client.current is not None)
        async with config_service(database, port) as service:
            one = publisher(keys_dir, service.target)

            async def published() -> Any:
                try:
                    return (await one.publish(sources(route("a", "a.example")))).revision == 2
                except grpc.aio.AioRpcError:  # gRPC waits a little before it dials an address again that refused
                    return False

            await eventually(published, 60)
            await eventually(lambda: queue.client.current and queue.client.current.number == 2, 60)
    assert [c.number for c in queue.seen] == [1, 2]


async def test_a_restarted_service_runs_its_kept_revision_while_config_is_down_CFG_07(
    database: str, keys_dir: Path, tmp_path: Path, port: int
) -> None:
    target, cache = f"127.0.0.1:{port}", tmp_path / "cache"
    async with config_service(database, port) as service:
        await publisher(keys_dir, service.target).publish(sources())
        first = consumer(keys_dir, target, Role.OUTBOUND, cache_dir=cache)
        async with first.client.running(), asyncio.timeout(60):
            await first.client.wait_first()
    restarted = consumer(keys_dir, target, Role.OUTBOUND, cache_dir=cache)
    async with restarted.client.running(), asyncio.timeout(60):
        configuration = await restarted.client.wait_first()
    assert configuration.number == 1
    assert list(configuration.secrets.values()) == [b"looking-glass"]
    assert all(b"looking-glass" not in file.read_bytes() for file in cache.iterdir())


async def test_a_service_that_ends_at_once_has_kept_the_revision_that_was_in_force_CFG_07(
    database: str, keys_dir: Path, tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, leaving = tmp_path / "cache", threading.Event()

    def replace_late(unfinished: Path, path: Path) -> None:
        assert leaving.wait(30)
        unfinished.replace(path)

    monkeypatch.setattr(config_client, "replace", replace_late)
    async with config_service(database, port) as service:
        await publisher(keys_dir, service.target).publish(sources())
        client = consumer(keys_dir, f"127.0.0.1:{port}", Role.OUTBOUND, cache_dir=cache).client
        async with client.running(), asyncio.timeout(60):
            await client.wait_first()
            asyncio.get_running_loop().call_later(0.5, leaving.set)  # after whoever waits for nothing is gone
        assert (cache / "revision-outbound.pb").exists()


async def test_a_look_at_head_that_fails_ends_no_process_and_the_next_one_is_served_CFG_07(
    database: str, keys_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with config_service(database) as service:
        failed = asyncio.Event()

        async def fails() -> None:
            failed.set()
            raise KeyError("nobody foresaw this")

        with monkeypatch.context() as patched:
            patched.setattr(service.follower, "look", fails)
            await asyncio.wait_for(failed.wait(), 30)
        await publisher(keys_dir, service.target).publish(sources())
        await eventually(lambda: service.follower.head.revision == 1)


async def test_upkeep_that_fails_is_tried_again(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with config_service(database, upkeep_seconds=0.05) as service:
        tries: list[int] = []

        async def fails(keep: int) -> tuple[int, int]:
            tries.append(keep)
            raise KeyError("nobody foresaw this")

        monkeypatch.setattr(service.store, "prune", fails)
        upkeep = asyncio.create_task(keep_up(service.settings, service.store, service.follower))
        try:
            await eventually(lambda: len(tries) > 2 or upkeep.done())
            assert not upkeep.done()
        finally:
            upkeep.cancel()
            await asyncio.gather(upkeep, return_exceptions=True)


async def test_head_is_found_without_a_notification_CFG_06(database: str, keys_dir: Path) -> None:
    async with config_service(database, poll_seconds=0.1) as service:
        queue = consumer(keys_dir, service.target, Role.QUEUE)
        async with queue.client.running():
            await publisher(keys_dir, service.target).publish(sources())
            await eventually(lambda: queue.client.current is not None)
            async with service.store._pool.connection() as connection:  # as a notification lost on the way looks
                await connection.execute(
                    "INSERT INTO revisions SELECT 2, checksum, body, previous, diagnostics, summary, secrets,"
                    " publisher, epoch FROM revisions"
                )
                await connection.execute("UPDATE head SET revision = 2, last_revision = 2")
            await eventually(lambda: queue.client.current and queue.client.current.number == 2)


async def test_two_replicas_serve_the_same_head_and_either_takes_a_publish_CFG_07(
    database: str, keys_dir: Path
) -> None:
    async with config_service(database) as one, config_service(database) as two:
        at_one, at_two = consumer(keys_dir, one.target, Role.QUEUE), consumer(keys_dir, two.target, Role.OUTBOUND)
        async with at_one.client.running(), at_two.client.running():
            await publisher(keys_dir, one.target).publish(sources())
            await eventually(lambda: at_one.client.current and at_two.client.current)
            await publisher(keys_dir, two.target).publish(sources(route("a", "a.example")))
            assert await at_one.client.wait_for(2, 60)
            assert await at_two.client.wait_for(2, 60)


async def test_a_head_of_a_newer_version_is_not_served_and_can_be_rolled_back_CFG_07(
    database: str, keys_dir: Path
) -> None:
    async with config_service(database) as service:
        await publisher(keys_dir, service.target).publish(sources())
        watching = consumer(keys_dir, service.target, Role.QUEUE)
        async with watching.client.running():
            await asyncio.wait_for(watching.client.wait_first(), 10)
            async with service.store._pool.connection() as connection:
                newer = "(jsonb_populate_record(r, jsonb_build_object('revision', 2, 'body', %s::bytea))).*"
                await connection.execute(f"INSERT INTO revisions SELECT {newer} FROM revisions r", (b'{"format": 99}',))
                await connection.execute("UPDATE head SET revision = 2, last_revision = 2")
            await eventually(lambda: service.follower.head.revision == 2)
            assert service.follower.head.deliveries == {}
            async with service.stub() as stub:
                answer = await stub.Rollback(pb.RollbackRequest(revision=1))
            assert answer.head.revision == 1
            await eventually(lambda: bool(service.follower.head.deliveries))
        current = watching.client.current
        assert current is not None
        assert (current.number, watching.client._rejected) == (1, 0)


async def test_watchers_are_served_while_postgres_is_away_and_readiness_says_so_CFG_07(
    disposable_postgres: EmbeddedPostgres, keys_dir: Path
) -> None:
    url = disposable_postgres.url()
    await asyncio.to_thread(migrations.migrate, url, migrations.load_all(("config",)))
    async with config_service(url) as service, service.stub() as stub:
        one = publisher(keys_dir, service.target)
        await one.publish(sources())
        await eventually(lambda: service.follower.head.revision == 1)
        assert disposable_postgres.pid is not None
        os.kill(disposable_postgres.pid, signal.SIGKILL)
        await asyncio.to_thread(disposable_postgres.wait, 30)
        queue = consumer(keys_dir, service.target, Role.QUEUE)
        async with queue.client.running(), asyncio.timeout(60):
            assert (await queue.client.wait_first()).number == 1
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ListRevisions(pb.ListRevisionsRequest(), timeout=60)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        await asyncio.to_thread(disposable_postgres.restart)

        async def published() -> Any:
            try:
                return (await one.publish(sources(route("a", "a.example")))).revision == 2
            except grpc.aio.AioRpcError:
                return False

        await eventually(published, 60)


async def test_a_new_sealing_key_seals_everything_anew_and_says_when_the_old_may_go_CFG_02(
    database: str, keys_dir: Path
) -> None:
    async with config_service(database, history=1) as service, service.stub() as stub:
        await publisher(keys_dir, service.target).publish(sources())
        (keys_dir / "0002").write_bytes(base64.b64encode(bytes(range(1, 33))))
        outcome = await publisher(keys_dir, service.target).publish(sources())
        assert outcome.revision == 2
        assert not outcome.unchanged

        async def keys() -> dict[str, tuple[int, int]]:
            found = (await stub.ListSealingKeys(pb.ListSealingKeysRequest())).keys
            return {k.key_id: (k.values, k.head_values) for k in found}

        assert await keys() == {"0001": (3, 0), "0002": (3, 3)}
        async with service.store._pool.connection() as connection:
            await connection.execute("UPDATE sealed_values SET created = created - interval '2 hours'")
        assert await service.store.prune(keep=1) == (1, 3)
        assert await keys() == {"0002": (3, 3)}
        (keys_dir / "0001").unlink()
        outbound = consumer(keys_dir, service.target, Role.OUTBOUND)
        async with outbound.client.running(), asyncio.timeout(60):
            assert list((await outbound.client.wait_first()).secrets.values()) == [b"looking-glass"]


async def test_history_is_pruned_but_never_head_CFG_04(database: str, keys_dir: Path) -> None:
    async with config_service(database) as service, service.stub() as stub:
        one = publisher(keys_dir, service.target)
        for n in range(5):
            await one.publish(sources(route("r", f"d{n}.example")))
        await stub.Rollback(pb.RollbackRequest(revision=1))
        await service.store.prune(keep=2)
        listed = (await stub.ListRevisions(pb.ListRevisionsRequest())).revisions
        assert [r.revision for r in listed] == [5, 4, 1]
        await stub.Unpin(pb.UnpinRequest())
        assert (await one.publish(sources(route("r", "x.example")))).revision == 6


async def test_a_broken_edit_after_a_restart_of_the_publisher_keeps_the_accepted_version_CFG_01(
    database: str, keys_dir: Path
) -> None:
    async with config_service(database) as service, service.stub() as stub:
        await publisher(keys_dir, service.target).publish(sources(route("a", "a.example")))
        broken = sources(route("a", "NOT A DOMAIN"), route("b", "b.example"))
        outcome = await publisher(keys_dir, service.target, "another process").publish(broken)
        body = (await stub.GetRevision(pb.GetRevisionRequest())).body
        assert b"a.example" in body
        assert b"b.example" in body
        assert [str(f.ref) for f in outcome.compiled.diagnostics.errors] == ["MailRoute default/a"]
        listed = (await stub.ListRevisions(pb.ListRevisionsRequest(limit=1))).revisions
        assert "its last accepted version stays in use" in listed[0].diagnostics


async def test_what_another_version_accepted_goes_on_as_its_piece_and_holds_up_no_change_of_others_CFG_01(
    database: str, keys_dir: Path, cannot_read_a: Callable[[], None]
) -> None:
    async with config_service(database) as service, service.stub() as stub:
        await publisher(keys_dir, service.target).publish(sources(route("a", "a.example")))
        before = decode((await stub.GetRevision(pb.GetRevisionRequest())).body)
        cannot_read_a()
        one = publisher(keys_dir, service.target, "another version")
        unchanged = await one.publish(sources(route("a", "a.example")))
        assert (unchanged.held, unchanged.unchanged, unchanged.revision) == (False, True, 1)
        outcome = await one.publish(sources(route("a", "a.example"), route("b", "b.example")))
        assert (outcome.held, outcome.activated, outcome.revision) == (False, True, 2)
        after = decode((await stub.GetRevision(pb.GetRevisionRequest())).body)
        assert after.global_routes[0].rules[: len(before.global_routes[0].rules)] == before.global_routes[0].rules
        assert [rule.route.name for rule in after.global_routes[0].rules] == ["a", "b"]
        third = publisher(keys_dir, service.target, "after a restart")
        again = await third.publish(sources(route("a", "a.example"), route("b", "b.example")))
        assert (again.held, again.unchanged) == (False, True)
        listed = (await stub.ListRevisions(pb.ListRevisionsRequest(limit=1))).revisions
        assert "NotSupported" in listed[0].diagnostics


async def test_nothing_is_published_while_neither_an_object_that_runs_nor_its_piece_can_be_read_CFG_01(
    database: str, keys_dir: Path, cannot_read_a: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with config_service(database) as service, service.stub() as stub:
        await publisher(keys_dir, service.target).publish(sources(route("a", "a.example")))
        cannot_read_a()
        monkeypatch.setattr("mailrail.core.config.pieces.FORMAT", 0)
        one = publisher(keys_dir, service.target, "another version")
        outcome = await one.publish(sources(route("a", "a.example"), route("b", "b.example")))
        assert (outcome.held, outcome.revision) == (True, 1)
        assert [str(ref) for ref in outcome.compiled.held] == ["MailRoute default/a"]
        newest = await stub.GetRevision(pb.GetRevisionRequest())
        assert (newest.info.revision, b"a.example" in newest.body, b"b.example" in newest.body) == (1, True, False)
        mended = await one.publish(sources(route("a", "c.example"), route("b", "b.example")))
        assert (mended.held, mended.revision) == (False, 2)


async def test_diagnostics_are_kept_up_to_date_when_the_revision_stays_the_same(database: str, keys_dir: Path) -> None:
    async with config_service(database) as service, service.stub() as stub:
        one = publisher(keys_dir, service.target)
        await one.publish(sources(route("a", "a.example")))
        outcome = await one.publish(sources(route("a", "NOT A DOMAIN")))
        assert outcome.unchanged
        listed = (await stub.ListRevisions(pb.ListRevisionsRequest(limit=1))).revisions
        assert (listed[0].revision, "NOT A DOMAIN" in listed[0].diagnostics) == (1, True)
        assert encode_state(outcome.compiled.state)
