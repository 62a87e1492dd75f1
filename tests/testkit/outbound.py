"""An outbound application in the test's own process: transports in, deliveries in, reports out, no queue."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from mailrail.core.outbound.envelope import Envelope, EnvelopeRecipient
from mailrail.core.revision.revision import (
    Gateway,
    Listener,
    ListenerProtocol,
    ObjectRef,
    Revision,
    SecretRef,
    TlsMode,
    Transport,
    TransportKind,
)
from mailrail.core.tlspolicy.decision import Requirement
from mailrail.kit import clock
from mailrail.kit.lookup_turns import LookupTurns
from mailrail.kit.resolver import DnsResolver
from mailrail_outbound import metrics
from mailrail_outbound.app import Outbound
from mailrail_outbound.domain_recorder import DomainRecorder
from mailrail_outbound.hops import Tables
from mailrail_outbound.pool import Pool
from mailrail_outbound.ports import Body, Delivery, DeliveryReport, Lease
from mailrail_outbound.settings import OutboundSettings
from mailrail_outbound.tls_policy.cache import PolicyCache
from mailrail_outbound.tls_policy.sts import StsLookup

MESSAGE = b"From: a@sender.example\r\nTo: b@example.org\r\nSubject: test\r\n\r\nHello.\r\n"
GATEWAY = ObjectRef("MailGateway", "default", "edge")
SETTINGS = OutboundSettings(
    node_id="outbound-1",
    plaintext=True,
    database_wait=0.0,
    tick=0.02,
    private_networks=("127.0.0.0/8", "::1/128"),
    idle_seconds=2.0,
    connect_timeout=5.0,
    greeting_timeout=10.0,
    command_timeout=10.0,
    data_timeout=10.0,
    block_timeout=10.0,
    end_timeout=10.0,
    tls_timeout=10.0,
    auth_timeout=10.0,
    dns_timeout=3.0,
    revision_wait=0.3,
)


def secret_ref(name: str) -> SecretRef:
    """A reference to the secret that `OutboundBench(secrets={name: ...})` holds."""
    return SecretRef("default", name, "value", "digest-" + name, "k1")


def transport(kind: TransportKind, name: str = "", **fields: object) -> Transport:
    """A transport of that kind."""
    return Transport(ObjectRef("MailTransport", "default", name or kind.value), kind, **fields)  # type: ignore[arg-type]


def submission(host: str, port: int) -> Transport:
    """A submission server with verified TLS (secret `ca`) and a login (`u`, secret `password`)."""
    password, ca = secret_ref("password"), secret_ref("ca")
    return transport(
        TransportKind.SUBMISSION,
        host=host,
        port=port,
        tls=TlsMode.VERIFIED,
        ca=ca,
        username="u",
        password=password,
    )


class OutboundBench:
    """The application with what it needs; use `OutboundBench.running(...)`."""

    def __init__(
        self,
        settings: OutboundSettings,
        transports: Sequence[Transport],
        secrets: dict[str, bytes],
        policies: PolicyCache | None = None,
        recorder: DomainRecorder | None = None,
    ) -> None:
        self.settings = settings
        self.reports: list[DeliveryReport] = []
        self.resolved: dict[int, tuple[str, ...]] = {}
        self._futures: dict[int, asyncio.Future[DeliveryReport]] = {}
        self._tokens = itertools.count(1)
        self._ids = itertools.count(100)
        self._loop = asyncio.get_running_loop()
        self._secrets = secrets
        self.pool = Pool(settings)
        resolver = DnsResolver(
            settings.resolver,
            timeout=settings.dns_timeout,
            count=metrics.DNS.inc,
            turns=LookupTurns(settings.lookups, settings.connection_wait),
            trust_ad=settings.resolver_trust_ad,
        )
        self.sts = StsLookup(resolver, policies) if policies is not None else None
        self.app = Outbound(
            settings,
            resolver=resolver,
            pool=self.pool,
            report=self._report,
            resolved=self.resolved.__setitem__,
            wait_for_revision=self._wait_for_revision,
            sts=self.sts,
            recorder=recorder,
        )
        self.configure(1, transports)

    @classmethod
    @contextlib.asynccontextmanager
    async def running(
        cls,
        *transports: Transport,
        secrets: dict[str, bytes] | None = None,
        policies: PolicyCache | None = None,
        recorder: DomainRecorder | None = None,
        **settings: object,
    ) -> AsyncIterator["OutboundBench"]:
        """An application with these transports and settings, closed in the end. Who has `policies` runs them."""
        made: OutboundSettings = replace(SETTINGS, **settings)  # type: ignore[arg-type]
        bench = cls(made, transports, secrets or {}, policies, recorder)
        try:
            yield bench
        finally:
            await bench.app.close()

    def configure(self, number: int, transports: Sequence[Transport], *, mx_port: int = 25) -> None:
        """Put a revision in force. `mx_port` is that of our own MX listener."""
        listener = Listener("mx", ListenerProtocol.MX, mx_port, None)
        gateway = Gateway(GATEWAY, "mail.sender.example", (listener,), ObjectRef("MailAccount", "default", "pm"))
        revision = Revision(gateways=(gateway,), transports=tuple(transports))
        self.app.tables = Tables.of(number, revision, lambda ref: self._secrets[ref.name])

    async def _wait_for_revision(self, number: int, within: float) -> bool:
        deadline = self._loop.time() + within
        while self._loop.time() < deadline:
            if self.app.tables is not None and self.app.tables.number >= number:
                return True
            await asyncio.sleep(0.01)
        return False

    def delivery(
        self,
        via: Transport | None,
        *recipients: str | EnvelopeRecipient,
        content: bytes | Body = MESSAGE,
        domain: str = "example.org",
        envelope: Envelope | None = None,
        lease: float = 120.0,
        **fields: object,
    ) -> Delivery:
        """A delivery of `content` to these recipients (default b@example.org)."""
        to = [r if isinstance(r, EnvelopeRecipient) else EnvelopeRecipient(r) for r in recipients or ("b@example.org",)]
        made = Delivery(
            lease=Lease(next(self._tokens), clock.now() + lease),
            message_id=b"\1" * 16,
            config_revision=1,
            transport=via.ref if via is not None else None,
            transport_digest=via.digest if via is not None else "",
            domain=domain,
            envelope=envelope or Envelope("a@sender.example"),
            requirement=Requirement.DEFAULT,
            recipients=tuple(to),
            recipient_ids=tuple(next(self._ids) for _ in to),
            simulate=tuple("" for _ in to),
            prefix=b"",
            body=content,
            size=len(content) if isinstance(content, bytes) else 0,
            eight_bit=isinstance(content, bytes) and not content.isascii(),
            attempt=1,
            gateway=GATEWAY,
        )
        return replace(made, **fields)  # type: ignore[arg-type]

    def begin(self, delivery: Delivery) -> "asyncio.Future[DeliveryReport]":
        """Hand it in; the future is its report."""
        future: asyncio.Future[DeliveryReport] = self._loop.create_future()
        self._futures[delivery.lease.token] = future
        self.app.take(delivery)
        return future

    async def deliver(self, delivery: Delivery, within: float = 60.0) -> DeliveryReport:
        """Hand it in and wait for its report."""
        async with asyncio.timeout(within):
            return await self.begin(delivery)

    def _report(self, report: DeliveryReport) -> None:
        self.reports.append(report)
        future = self._futures.get(report.token)
        if future is not None and not future.done():
            future.set_result(report)


class StreamedBody:
    """Content that comes in pieces, as from the queue (ports.Body)."""

    def __init__(self, *pieces: bytes, fails_after: int | None = None) -> None:
        self.pieces = pieces
        self.reads = 0
        self.within_reach = True
        self._fails_after = fails_after

    async def chunks(self) -> AsyncIterator[bytes]:
        """The pieces."""
        from mailrail_outbound.ports import ContentGone

        self.reads += 1
        for i, piece in enumerate(self.pieces):
            if self._fails_after is not None and i >= self._fails_after:
                raise ContentGone("the lease was lost")
            await asyncio.sleep(0)
            yield piece
