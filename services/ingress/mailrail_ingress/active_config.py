"""What a configuration revision means for each listener.

`ActiveConfig` holds a `ListenerConfig` for each listener of the revision in force, and swaps them all at once. Sessions
(session.py) answer from that of their listener.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from mailrail.core.authres.foreign import authserv_ids
from mailrail.core.dkim.signers import Signers
from mailrail.core.dmarc.disposition import EnforcementRules
from mailrail.core.ids import message_id
from mailrail.core.message.header import (
    Received,
)
from mailrail.core.message_authentication.verdict import AuthenticationRules
from mailrail.core.revision.revision import (
    Account,
    AuthenticationMode,
    Gateway,
    Listener,
    ListenerProtocol,
    ObjectRef,
    Revision,
    SuffixMode,
)
from mailrail.core.route.recipients import (
    Directory,
    Resolution,
)
from mailrail.core.route.table import RouteTable
from mailrail.core.smtp.address import Address
from mailrail.core.smtp.events import ListenerOptions
from mailrail.core.smtp.reply import Reply
from mailrail.core.uncommitted import Uncommitted
from mailrail.kit import log
from mailrail.kit import metrics as kit_metrics
from mailrail_ingress import metrics
from mailrail_ingress.accounts import Accounts
from mailrail_ingress.held_octets import HeldOctets
from mailrail_ingress.ports import (
    Authenticator,
    EvaluationRecorder,
    MailDomains,
    OpenTransactions,
    Origin,
    Provenance,
    Queue,
    Verification,
)
from mailrail_ingress.recipients import AcceptedRecipient
from mailrail_ingress.settings import IngressSettings
from mailrail_ingress.throttle import Throttle
from mailrail_ingress.tls import BadCertificate, ServerCertificate, load

QUEUE_AWAY: Final = Reply.of(451, "4.3.0", "mail cannot be stored for now; try again later")
_PROTOCOLS: Final = {
    ListenerProtocol.MX: Origin.MX,
    ListenerProtocol.SUBMISSION: Origin.SUBMISSION,
    ListenerProtocol.SUBMISSIONS: Origin.SUBMISSION,
}


class MessageOrigin(NamedTuple):
    """What all messages of a client share."""

    provenance: Provenance
    received: Received


class MessageIds:
    """16 octets each, unique, sorted by time (UUID version 7), so that rows made together lie together (ACC-04)."""

    __slots__ = ("_at", "_random")

    def __init__(self) -> None:
        self._random = b""  # fetched for many at a time: asking the kernel takes longer than all else
        self._at = 0

    def new(self, now: float) -> bytes:
        """One for a message that begins now (Unix time)."""
        at = self._at
        if at == len(self._random):
            self._random = os.urandom(10 * 256)
            at = 0
        self._at = at + 10
        return message_id(now, self._random[at : at + 10])


@dataclass(frozen=True, slots=True, order=True)
class ListenerKey:
    """Which listener of which gateway; stays the same over revisions."""

    gateway: ObjectRef
    listener: str

    def __hash__(self) -> int:
        return hash((self.gateway.name, self.listener))  # each connection asks for it


_STRICTEST: Final = tuple(AuthenticationMode)


@dataclass(frozen=True, slots=True, eq=False)
class SenderChecks:
    """What a gateway does about who sent the mail of strangers."""

    mode: AuthenticationMode
    modes: Mapping[ObjectRef, AuthenticationMode]
    """Of the domains that have their own."""
    rules: Mapping[AuthenticationMode, AuthenticationRules]
    by_list: bool
    """A list of public suffixes takes the place of the tree walk (DMRC-20b)."""

    def rules_for(self, recipients: Iterable[AcceptedRecipient]) -> AuthenticationRules | None:
        """What holds for a message to these, the strictest of their modes: else a stranger could choose one by a
        recipient. None: nothing is checked."""
        mode = self.mode
        if self.modes:
            found = {
                self.modes.get(destination.domain, self.mode) if destination.domain is not None else self.mode
                for one in recipients
                for destination in one.resolution.destinations
            }
            mode = max(found, key=_STRICTEST.index, default=self.mode)
        return self.rules.get(mode)


def sender_checks(revision: Revision, gateway: Gateway) -> SenderChecks:
    """Those of a gateway."""
    said = gateway.authentication
    rules = AuthenticationRules(
        gateway.hostname,
        EnforcementRules(
            defer_on_temperror=said.defer_on_temperror,
            trusted_sealers=frozenset(said.trusted_sealers),
        ),
        trusted_forwarders=said.trusted_forwarders,
        refused_spf=frozenset(said.refused_spf),
    )
    watching = replace(rules, enforcement=replace(rules.enforcement, enforce=False))
    modes = {domain.ref: domain.authentication for domain in revision.domains if domain.authentication is not None}
    return SenderChecks(
        said.mode,
        modes,
        {AuthenticationMode.ENFORCE: rules, AuthenticationMode.MONITOR: watching},
        said.suffixes is SuffixMode.LIST,
    )


@dataclass(frozen=True, slots=True, eq=False)
class ListenerConfig:
    """What one listener offers under one revision, indexed and ready."""

    listener_key: ListenerKey
    gateway: Gateway
    listener: Listener
    options: ListenerOptions
    directory: Directory
    routes: RouteTable
    accounts: Accounts
    identity: ServerCertificate | None
    bindings: Mapping[str, bytes]
    revision: int
    origin: Origin
    label: str
    """The `origin` label of metrics."""
    accepted: metrics.Mail
    """What is counted of accepted mail."""
    connections: metrics.Connections
    """What is counted of accepted connections."""
    authserv_ids: frozenset[str]
    """Under which the installation writes Authentication-Results; see `core.authres.foreign`."""
    sender_checks: SenderChecks
    origins: dict[tuple[object, ...], MessageOrigin]
    """Where mail came from before; see SmtpSession."""
    signers: Signers
    """Who signs what accounts submit."""
    missing: set[str]
    """Addresses that aliases name and that do not exist, once the log has told of them. The configuration bounds it."""


class ActiveConfig:
    """The revision in force, and what all sessions share."""

    def __init__(
        self,
        settings: IngressSettings,
        queue: Queue,
        *,
        fake_key: bytes,
        probes: Callable[[Address], bool],
        domains: MailDomains | None = None,
        verification: Verification | None = None,
        authenticator: Authenticator | None = None,
        budget: HeldOctets | None = None,
        transactions: OpenTransactions | None = None,
        evaluations: EvaluationRecorder | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.queue = queue
        self.domains = domains
        self.verification = verification
        self.evaluations = evaluations
        """Told of each message that was checked; None: nobody is."""
        self.authenticator = authenticator
        self.probes = probes
        """Whether an address of the domain of probes is that of one."""
        self.clock = clock
        self.monotonic = monotonic
        self.budget = budget or HeldOctets(settings.held_octets)
        self.uncommitted = Uncommitted(settings.upload_octets, settings.client_upload_octets)
        self.throttle = Throttle()
        self.ids = MessageIds()
        self.listeners: dict[ListenerKey, ListenerConfig] = {}
        self.gateways: list[Gateway] = []
        """Those that this process serves."""
        self.configured = False
        """Whether there ever was a revision; one without a gateway counts."""
        self.log = log.get_logger()
        self.log_messages = settings.log_messages and self.log.is_enabled_for(logging.INFO)
        self.transactions = transactions or OpenTransactions()
        self._fake_key = fake_key
        self._identities: dict[str, ServerCertificate | None] = {}
        self._signers: Signers | None = None

    def configure(self, revision: Revision, number: int, secrets: Mapping[str, bytes]) -> None:
        """Swap to a revision. Raises ValueError when there is no gateway of the configured name in it."""
        gateways = [g for g in revision.gateways if self.settings.gateway in ("", f"{g.ref.namespace}/{g.ref.name}")]
        if self.settings.gateway and not gateways:
            raise ValueError(f"the configuration has no gateway {self.settings.gateway}")
        accounts = Accounts(revision, secrets, self._fake_key)
        routes = RouteTable(revision)
        signers = Signers(revision, secrets, self._report_key, self._signers)
        identities: dict[str, ServerCertificate | None] = {}
        listeners: dict[ListenerKey, ListenerConfig] = {}
        # Of those that other processes serve, too: what one gateway let pass, the next would take for its own.
        names = authserv_ids(gateway.hostname for gateway in revision.gateways)
        for gateway in gateways:
            directory = Directory(revision, gateway)
            checks = sender_checks(revision, gateway)
            if checks.by_list and self.authenticator is not None:
                self.authenticator.prepare_list()
            for listener in gateway.listeners:
                identity = self._identity(listener, secrets, identities)
                config = self._listener_config(
                    gateway, listener, directory, routes, accounts, identity, number, names, signers, checks
                )
                listeners[config.listener_key] = config
        self._identities = identities
        self._signers = signers
        self.listeners = listeners
        self.gateways = gateways
        self.configured = True
        kit_metrics.certificates("smtp", (secrets.get(path) if found else None for path, found in identities.items()))

    def _report_key(self, domain: str, selector: str, why: str) -> None:
        self.log.error("a DKIM key cannot sign; mail goes without it", domain=domain, selector=selector, error=why)

    def _identity(
        self, listener: Listener, secrets: Mapping[str, bytes], identities: dict[str, ServerCertificate | None]
    ) -> ServerCertificate | None:
        if listener.certificate is None:
            return None
        path = listener.certificate.path
        if path not in identities:
            identities[path] = self._identities.get(path)
            if identities[path] is None:
                try:
                    identities[path] = load(secrets[path])
                except (KeyError, BadCertificate) as error:
                    # The listener serves without it: STARTTLS is answered 454, and the log says why (TLS-01).
                    reason = "it was not delivered" if isinstance(error, KeyError) else str(error)
                    self.log.error("certificate unusable", listener=listener.name, error=reason)
        return identities[path]

    def _listener_config(
        self,
        gateway: Gateway,
        listener: Listener,
        directory: Directory,
        routes: RouteTable,
        accounts: Accounts,
        identity: ServerCertificate | None,
        number: int,
        names: frozenset[str],
        signers: Signers,
        checks: SenderChecks,
    ) -> ListenerConfig:
        bindings: dict[str, bytes] = {}
        if self.settings.bind_server_end_point and identity is not None and identity.end_point is not None:
            bindings["tls-server-end-point"] = identity.end_point
        mechanisms = tuple(
            name for name in listener.mechanisms if name in accounts.usable and (bindings or not name.endswith("-PLUS"))
        )
        origin = _PROTOCOLS[listener.protocol]
        submission = origin is Origin.SUBMISSION
        limits = gateway.limits
        options = ListenerOptions(
            hostname=gateway.hostname,
            submission=submission,
            size_limit=limits.message_size,
            recipient_limit=limits.recipients,
            starttls=listener.certificate is not None,
            starttls_ready=identity is not None,
            require_tls=listener.require_tls,
            mechanisms=mechanisms if submission else (),  # AUTH is never offered to strangers (design 5)
            longest_hold=limits.future_release,
            error_limit=limits.errors,
            repair_chunks=self.settings.repair_chunks,
            offer_requiretls=gateway.offer_requiretls,
        )
        listener_key = ListenerKey(gateway.ref, listener.name)
        label = origin.name.lower()
        return ListenerConfig(
            listener_key=listener_key,
            gateway=gateway,
            listener=listener,
            options=options,
            directory=directory,
            routes=routes,
            accounts=accounts,
            identity=identity,
            bindings=bindings,
            revision=number,
            origin=origin,
            label=label,
            accepted=metrics.Mail(label),
            connections=metrics.Connections(listener.protocol.value),
            authserv_ids=names,
            sender_checks=checks,
            origins={},
            signers=signers,
            missing=set(),
        )

    def resolve(self, address: Address, account: Account | None) -> Resolution | Reply:
        """How RCPT would be answered, for administrators (IngressService.ResolveRecipient)."""
        if not self.listeners:
            return QUEUE_AWAY
        config = next(iter(sorted(self.listeners.values(), key=lambda d: d.listener_key)))
        captive = account is None and any(d.listener.accept_any_recipient for d in self.listeners.values())
        return config.directory.resolve(address, authenticated=account is not None, captive=captive)
