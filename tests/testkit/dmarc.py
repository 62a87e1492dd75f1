"""A dmarc service in this process, and what ingress tells it."""

import contextlib
import itertools
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import grpc
import psycopg

from mailrail.core.dkim.verify import DkimOutcome
from mailrail.core.dmarc.report.facts import (
    ReportedDisposition,
    ReportedPolicy,
    ReportedSignature,
    ReportedSpf,
    encode,
    encode_policy,
    reported_message,
)
from mailrail.core.revision import revision as rev
from mailrail.core.spf.result import SpfResult
from mailrail.kit import rpc
from mailrail.kit.config_client import Configuration
from mailrail.pb.dmarc.v1 import record_pb2, record_pb2_grpc
from mailrail_dmarc.app import DmarcProcess
from mailrail_dmarc.rpc import services
from mailrail_dmarc.send import Step, no_step
from mailrail_dmarc.settings import DmarcSettings
from mailrail_dmarc.store.connection import database

from testkit.conditions import eventually
from testkit.queue import a_revision

NOON = (datetime.now(UTC) - timedelta(days=3)).replace(hour=12, minute=30, second=0, microsecond=0)
"""In the middle of a day that is over, and not long ago."""
QUICK = DmarcSettings(plaintext=True, resolver="", schedule=False)
_numbers = itertools.count(1)


@dataclass
class RunningDmarc:
    """A dmarc process of this one, and a way to its database."""

    process: DmarcProcess
    port: int
    url: str

    async def sql(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Look into the database."""
        return await sql(self.url, query, *parameters)


async def sql(url: str, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Run a query on a connection of its own."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("SET search_path = dmarc")
        cursor = await connection.execute(query.encode(), parameters or None)
        return list(await cursor.fetchall()) if cursor.description else []


@contextlib.asynccontextmanager
async def running_dmarc(
    url: str, *, revision: rev.Revision | None = None, step: Step = no_step, **changes: Any
) -> AsyncIterator[RunningDmarc]:
    """A process that serves while the context lasts. `changes`: fields of its settings."""
    own = {"node_id": f"dmarc-{next(_numbers)}", "grpc_listen": "127.0.0.1:0", **changes}
    settings = replace(QUICK, database_url=url, **own)
    async with database(settings) as found:
        process = DmarcProcess(settings, found, step=step)
        if revision is not None:
            configure(process, revision)
        async with process.running(), rpc.serve(settings, services(process)) as server:
            await eventually(lambda: process.ready)
            yield RunningDmarc(process, server.port, url)


def evaluation(
    domain: str = "sender.example",
    *,
    source: str = "192.0.2.1",
    passed: bool = True,
    seen: datetime = NOON,
    to: str = "ours.example",
    messages: int = 1,
    cause: "record_pb2.Cause.ValueType" = record_pb2.CAUSE_UNSPECIFIED,
    organization: str = "",
    interval: int = 24,
    policy: ReportedPolicy | None = None,
) -> record_pb2.Evaluation:
    """What ingress tells of messages."""
    published = policy or ReportedPolicy(domain, ReportedDisposition.REJECT)
    result = DkimOutcome.PASS if passed else DkimOutcome.FAIL
    message = reported_message(
        ip_address(source),
        disposition=ReportedDisposition.PASS if passed else ReportedDisposition.REJECT,
        asked=ReportedDisposition.REJECT,
        dkim_aligned=passed,
        spf_aligned=False,
        header_from=domain,
        envelope_from=domain,
        envelope_to=to,
        signatures=[ReportedSignature(domain, "s1", result)],
        spf=ReportedSpf(domain, SpfResult.NONE),
    )
    told = record_pb2.Evaluation(
        policy_domain=domain,
        policy=encode_policy(published),
        source_ip=message.source_ip,
        facts=encode(message),
        messages=messages,
        cause=cause,
        our_domain=to,
        organization=organization or domain,
        interval_hours=interval,
    )
    told.seen.FromDatetime(seen)
    return told


def contact(ours: str, other: str, seen: datetime) -> record_pb2.Contact:
    """A domain of ours and another had mail with each other."""
    told = record_pb2.Contact(our_domain=ours, domain=other)
    told.seen.FromDatetime(seen)
    return told


def batch(
    *evaluations: record_pb2.Evaluation, contacts: Sequence[record_pb2.Contact] = (), batch_id: bytes = b""
) -> record_pb2.RecordRequest:
    """A batch under an id of its own."""
    return record_pb2.RecordRequest(
        batch_id=batch_id or secrets.token_bytes(16), evaluations=evaluations, contacts=contacts
    )


async def record(port: int, *batches: record_pb2.RecordRequest) -> list[bytes]:
    """Send batches over one stream; the ids that are acknowledged. Raises grpc.aio.AioRpcError."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: record_pb2_grpc.RecordServiceAsyncStub = record_pb2_grpc.RecordServiceStub(channel)
        call = stub.Record()
        found: list[bytes] = []
        for each in batches:
            await call.write(each)
            answer = await call.read()
            if not isinstance(answer, record_pb2.RecordResponse):
                break
            found.extend(answer.batch_ids)
        await call.done_writing()
        while isinstance(await call.read(), record_pb2.RecordResponse):
            pass
        return found


def reporting_revision(*, signed: bool = True) -> rev.Revision:
    """What `testkit.queue.a_revision` has; its gateway is at mx.home.example, and home.example has a DKIM key."""
    made = a_revision()
    key = rev.DkimKey("s1", "rsa-sha256", rev.SecretRef("default", "dkim", "s1", "0" * 16, "k1"))
    domains = tuple(replace(domain, dkim=(key,) if signed else ()) for domain in made.domains)
    return replace(made, domains=domains)


def configure(process: DmarcProcess, revision: rev.Revision) -> None:
    """Swap a revision in."""
    process.configure(Configuration(1, rev.checksum(rev.encode(revision)), revision, {}))
