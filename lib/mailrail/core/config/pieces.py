"""What one object says by itself, compiled: a piece, which needs no other object and holds no secret.

    piece_of(ref, source) → piece, and the text that is stored of it
    stored_piece(ref, stored) → the piece again

All later steps of a compilation read pieces, never documents. The piece of an accepted version is stored beside its
source (CFG-01). A release of Mailrail that cannot read the source goes on with the piece, as with any version that was
accepted before. It is made of parts of a revision, which every release must be able to read, so it grows as they do
(decision 23): a field that may be passed over is added, and one that strengthens a demand raises the format of those
pieces in which it is set. A piece of a format that is not known says nothing.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

from pydantic import TypeAdapter

from mailrail.core.config.grants import Grant, grant_of
from mailrail.core.config.secret_uses import (
    AuthoritiesSource,
    CertificateSource,
    KeySource,
    LoginSource,
    PasswordSource,
)
from mailrail.core.config.state import StoredPiece
from mailrail.core.dkim.rotation import SigningUse
from mailrail.core.mtasts.policy import Mode
from mailrail.core.resources import (
    AnyResource,
    InvalidResource,
    MailAccount,
    MailDomain,
    MailGateway,
    MailRoute,
    MailTransport,
    read,
)
from mailrail.core.resources.attach import AnyAttach
from mailrail.core.resources.authentication import AuthenticationSpec
from mailrail.core.resources.base import LoginSecretRef, NamespacedRef, Retry, TransportTls
from mailrail.core.resources.domain import DkimSelectorSpec, MtaStsSpec
from mailrail.core.resources.gateway import ExtensionsSpec, ListenerSpec
from mailrail.core.resources.security import SecuritySpec
from mailrail.core.resources.transport import MEMBERS, LmtpSpec, MailTransportSpec, SmtpSpec, SubmissionSpec
from mailrail.core.revision.revision import (
    NO_FLOOR,
    AccountLimits,
    Alias,
    AuthenticationMode,
    Domain,
    DomainDelivery,
    Gateway,
    GatewayLimits,
    Listener,
    ListenerProtocol,
    Match,
    MessageRate,
    MtaSts,
    ObjectRef,
    Otherwise,
    Recipients,
    ReportAddresses,
    RetrySchedule,
    Rule,
    Security,
    SenderRules,
    SuffixMode,
    TlsMinimum,
    TlsMode,
    TlsProof,
    Transport,
    TransportKind,
    TransportLimits,
    Unanswered,
    canonical_json,
)
from mailrail.core.smtp.address import folded
from mailrail.core.spf.result import SpfResult

FORMAT: Final = 2
"""The newest format that this version reads."""
_FLOORS_FORMAT: Final = 2  # what knows of no floor must not go on without it
SIZE_LIMIT: Final = 2 * 1024 * 1024
"""Octets of one stored piece; of an object with a larger one, the source alone is stored."""
KEPT: Final = 262_144
"""Pieces that are kept from one compilation to the next. A change touches few of all objects; where fewer were kept
than there are, each compilation would find none of them, as it goes through all in the same order."""
DEFAULT_MECHANISMS: Final = (
    "SCRAM-SHA-256-PLUS",
    "SCRAM-SHA-256",
    "SCRAM-SHA-1-PLUS",
    "SCRAM-SHA-1",
    "PLAIN",
    "LOGIN",
)
"""What a submission listener offers by itself, strongest first; CRAM-MD5 only where it is written (design 5)."""
_STRONGEST_FIRST: Final = (*DEFAULT_MECHANISMS[:4], "CRAM-MD5", *DEFAULT_MECHANISMS[4:])
_NO_TLS_SETTINGS: Final = TransportTls.model_validate({})
_UID_SPACE: Final = uuid.UUID("6d61696c-7261-5c6c-8000-6163636f756e")


@dataclass(frozen=True, slots=True)
class ListenerPiece:
    """A listener of a MailGateway."""

    part: Listener
    """With the port that is written, without a certificate, and with all mechanisms that it may offer."""
    certificate: CertificateSource | None
    """None: it has no TLS."""


@dataclass(frozen=True, slots=True)
class GatewayPiece:
    """A MailGateway."""

    part: Gateway
    """Without listeners."""
    listeners: tuple[ListenerPiece, ...]
    grants: tuple[Grant, ...] | None
    created: str = ""
    """RFC 3339 in UTC, as the API server gave it; empty: not known."""


@dataclass(frozen=True, slots=True)
class PartialRetry:
    """A retry schedule where it differs from another one."""

    delays: tuple[int, ...] | None = None
    lifetime: int | None = None
    null_sender_lifetime: int | None = None
    max_attempts: int | None = None
    delayed_dsn_after: int | None = None

    def over(self, base: RetrySchedule) -> RetrySchedule:
        """The whole schedule."""
        return RetrySchedule(
            delays=self.delays or base.delays,
            lifetime=self.lifetime or base.lifetime,
            null_sender_lifetime=self.null_sender_lifetime or base.null_sender_lifetime,
            max_attempts=self.max_attempts or base.max_attempts,
            delayed_dsn_after=self.delayed_dsn_after or base.delayed_dsn_after,
        )


@dataclass(frozen=True, slots=True)
class DomainPiece:
    """A MailDomain."""

    part: Domain
    """Without aliases and retry schedule."""
    gateway: ObjectRef
    aliases: tuple[Alias, ...]
    """In the order in which they are written, and with targets as they are written: with whole addresses, the piece
    could be many times as large as its source."""
    retry: PartialRetry | None
    grants: tuple[Grant, ...] | None
    created: str = ""
    keys: tuple[KeySource, ...] = ()
    """DKIM keys, the oldest first."""
    also_sign_as: tuple[ObjectRef, ...] = ()

    def with_aliases(self) -> Domain:
        """The part with its aliases: full addresses, sorted by local part."""
        name = self.part.name
        aliases = (Alias(a.local, tuple(dict.fromkeys(full_address(t, name) for t in a.targets))) for a in self.aliases)
        return replace(self.part, aliases=tuple(sorted(aliases, key=lambda a: a.local)))


@dataclass(frozen=True, slots=True)
class AccountPiece:
    """A MailAccount."""

    uid: str
    domain: ObjectRef
    login: str | None
    """As it is written, like the addresses: the name of the domain is not known yet."""
    addresses: tuple[str, ...]
    receive: tuple[str, ...]
    send_as: tuple[str, ...]
    credentials: PasswordSource | None
    limits: AccountLimits
    created: str = ""


@dataclass(frozen=True, slots=True)
class TransportPiece:
    """A MailTransport."""

    part: Transport
    """Without password and certificates of authorities; with the user name only where it is written."""
    member: str
    """Of the union, as documents spell it."""
    grants: tuple[Grant, ...] | None
    login: LoginSource | None = None
    authorities: AuthoritiesSource | None = None
    authorities_file: str | None = None
    created: str = ""


@dataclass(frozen=True, slots=True)
class RoutePiece:
    """A MailRoute."""

    attached: tuple[ObjectRef, ...]
    """What it attaches to, as it is written: one may stand there twice."""
    priority: int
    rules: tuple[Rule, ...]
    created: str = ""


Piece = GatewayPiece | DomainPiece | AccountPiece | TransportPiece | RoutePiece


def parents_of(piece: Piece) -> tuple[ObjectRef, ...]:
    """What an object attaches to, each once."""
    match piece:
        case DomainPiece():
            return (piece.gateway,)
        case AccountPiece():
            return (piece.domain,)
        case RoutePiece():
            return tuple(dict.fromkeys(piece.attached))
        case _:
            return ()


PIECES: Final[dict[str, type[Any]]] = {
    "MailGateway": GatewayPiece,
    "MailDomain": DomainPiece,
    "MailAccount": AccountPiece,
    "MailTransport": TransportPiece,
    "MailRoute": RoutePiece,
}
"""Of each kind."""


def piece_of(ref: ObjectRef, source: str) -> tuple[Piece, StoredPiece | None]:
    """The piece of a version, and what is stored of it. Raises InvalidResource with every problem found."""
    made = _made(ref, source)
    if isinstance(made, InvalidResource):
        raise InvalidResource(made.problems)  # a new one: each raise would add to the traceback of the one that is kept
    return made


@lru_cache(maxsize=KEPT)
def _made(ref: ObjectRef, source: str) -> tuple[Piece, StoredPiece | None] | InvalidResource:
    try:
        piece = _compiled(ref, read(source, ref.kind))
    except InvalidResource as error:
        return InvalidResource(error.problems)
    octets = canonical_json(piece)
    if len(octets) > SIZE_LIMIT:
        return piece, None
    return piece, StoredPiece(_FLOORS_FORMAT if _has_floor(piece) else 1, octets.decode())


def _has_floor(piece: Piece) -> bool:
    match piece:
        case GatewayPiece() | DomainPiece() | TransportPiece():
            return piece.part.security != NO_FLOOR
        case RoutePiece():
            return any(rule.require != NO_FLOOR for rule in piece.rules)
        case AccountPiece():
            return False


def stored_piece(ref: ObjectRef, stored: StoredPiece) -> Piece | None:
    """A piece that was stored, perhaps by another version; None if this version does not know its format."""
    return _parsed(ref.kind, stored.text) if stored.format <= FORMAT else None


@lru_cache(maxsize=KEPT)
def _parsed(kind: str, text: str) -> Piece | None:
    try:
        piece: Piece = _adapter(kind).validate_json(text)
    except ValueError:  # a word that the format had no number for
        return None
    return piece


@lru_cache
def _adapter(kind: str) -> TypeAdapter[Any]:
    return TypeAdapter(PIECES[kind])


def _compiled(ref: ObjectRef, resource: AnyResource) -> Piece:
    created = resource.metadata.creation_timestamp or ""
    match resource:
        case MailGateway():
            return _gateway(ref, resource, created)
        case MailDomain():
            return _domain(ref, resource, created)
        case MailAccount():
            return _account(ref, resource, created)
        case MailTransport():
            return _transport(ref, resource, created)
        case MailRoute():
            return _route(ref, resource, created)


def reference(ref: NamespacedRef, kind: str, owner: ObjectRef) -> ObjectRef:
    """The object that a reference of `owner` names: in its own namespace, where it says no other."""
    return ObjectRef(kind, ref.namespace or owner.namespace, ref.name)


def full_address(text: str, domain: str) -> str:
    """An address with its domain, local part as it is compared; `text` may be a local part alone."""
    local, at, name = text.rpartition("@")
    return f"{folded(local)}@{name or domain}" if at else f"{folded(text)}@{domain}"


def account_uid(ref: ObjectRef, uid: str | None) -> str:
    """What SCRAM salts hang on: Kubernetes' UID, or in local mode one made of namespace and name."""
    return uid if uid is not None else str(uuid.uuid5(_UID_SPACE, f"{ref.namespace}/{ref.name}"))


def _grants(attach: Sequence[AnyAttach] | None) -> tuple[Grant, ...] | None:
    return tuple(map(grant_of, attach)) if attach is not None else None


def _retry(spec: Retry) -> PartialRetry:
    return PartialRetry(
        spec.delays_seconds,
        spec.lifetime_seconds,
        spec.null_sender_lifetime_seconds,
        spec.max_attempts,
        spec.delayed_dsn_after,
    )


def _floor(spec: SecuritySpec | None) -> Security:
    if spec is None:
        return NO_FLOOR
    return Security(
        TlsMinimum(spec.minimum.lower()) if spec.minimum is not None else NO_FLOOR.minimum,
        tuple(proof for proof in TlsProof if spec.proofs is None or _PROOFS[proof] in spec.proofs),
        Otherwise(spec.otherwise.lower()) if spec.otherwise is not None else NO_FLOOR.otherwise,
        Unanswered(spec.when_unanswered.lower()) if spec.when_unanswered is not None else None,
    )


_PROOFS: Final = {TlsProof.DANE: "DANE", TlsProof.MTA_STS: "MTASTS", TlsProof.PKIX: "PKIX"}


# --- gateways -----------------------------------------------------------------------------------------------------


def _gateway(ref: ObjectRef, resource: MailGateway, created: str) -> GatewayPiece:
    spec = resource.spec
    limits = GatewayLimits()
    if spec.limits is not None:
        li = spec.limits
        limits = GatewayLimits(
            message_size=li.message_bytes or limits.message_size,
            recipients=li.recipients or limits.recipients,
            connections=li.connections or limits.connections,
            connections_per_ip=li.connections_per_ip or limits.connections_per_ip,
            errors=li.errors or limits.errors,
            idle_timeout=li.idle_seconds or limits.idle_timeout,
            transaction_timeout=li.transaction_seconds or limits.transaction_timeout,
            future_release=li.future_release_seconds or limits.future_release,
        )
    base = Gateway(
        ref,
        spec.hostname,
        (),
        reference(spec.postmaster.account_ref, "MailAccount", ref),
    )
    part = replace(
        base,
        postmaster_mailbox=spec.postmaster.mailbox,
        retry=_retry(spec.retry).over(base.retry) if spec.retry is not None else base.retry,
        limits=limits,
        dsn_full_limit=(spec.notifications and spec.notifications.full_content_bytes) or base.dsn_full_limit,
        security=_floor(spec.security),
        offer_requiretls=_offers_requiretls(spec.extensions),
        authentication=_sender_rules(spec.authentication) if spec.authentication is not None else base.authentication,
    )
    return GatewayPiece(part, tuple(map(_listener, spec.listeners)), _grants(spec.attach), created)


def _offers_requiretls(spec: ExtensionsSpec | None) -> bool:
    return spec is None or spec.require_tls is None or spec.require_tls.mode == "WhenSecure"


def _sender_rules(spec: AuthenticationSpec) -> SenderRules:
    default = SenderRules()
    return SenderRules(
        mode=AuthenticationMode(spec.mode.lower()) if spec.mode is not None else default.mode,
        trusted_forwarders=spec.trusted_forwarders,
        trusted_sealers=spec.trusted_sealers,
        refused_spf=default.refused_spf
        if spec.refused_spf is None
        else tuple(SpfResult(each.lower()) for each in spec.refused_spf),
        defer_on_temperror=spec.when_unanswered == "Defer",
        suffixes=SuffixMode.LIST if spec.discovery_method == "PublicSuffixList" else default.suffixes,
    )


def _listener(spec: ListenerSpec) -> ListenerPiece:
    protocol = ListenerProtocol(spec.protocol.lower())
    wanted: Sequence[str] = () if protocol is ListenerProtocol.MX else spec.mechanisms or DEFAULT_MECHANISMS
    part = Listener(
        spec.name,
        protocol,
        spec.port,
        None,
        require_tls=spec.tls is not None and spec.tls.mode == "Required",
        proxy_protocol=spec.proxy_protocol is not None,
        proxy_trusted_cidrs=spec.proxy_protocol.trusted_cidrs if spec.proxy_protocol is not None else (),
        mechanisms=tuple(m for m in _STRONGEST_FIRST if m in wanted),
    )
    certificate = None
    if spec.tls is not None:
        where = spec.tls.certificate_secret_ref
        certificate = CertificateSource(where.name, where.certificate_key, where.private_key_key)
    return ListenerPiece(part, certificate)


# --- domains and accounts -----------------------------------------------------------------------------------------


def _domain(ref: ObjectRef, resource: MailDomain, created: str) -> DomainPiece:
    spec, name = resource.spec, resource.spec.domain_name
    gateway, transport = reference(spec.gateway_ref, "MailGateway", ref), spec.delivery.transport
    part = Domain(
        ref,
        name,
        DomainDelivery.MAILBOX if spec.delivery.mailbox is not None else DomainDelivery.NONE,
        separators=spec.separators,
        catch_all=full_address(spec.catch_all, name) if spec.catch_all is not None else None,
        gateway=gateway,
        mta_sts=_mta_sts(spec.mta_sts) if spec.mta_sts is not None else None,
        security=_floor(spec.security),
        authentication=AuthenticationMode(spec.authentication.mode.lower()) if spec.authentication else None,
        reports=ReportAddresses(folded(spec.reports.dmarc), folded(spec.reports.tls)) if spec.reports else None,
    )
    if transport is not None:
        part = replace(
            part,
            delivery=DomainDelivery.TRANSPORT,
            transport=reference(transport.ref, "MailTransport", ref),
            recipients=Recipients(transport.recipients.lower()),
            listed=tuple(sorted({folded(local) for local in transport.listed})),
        )
    retry = _retry(spec.retry) if spec.retry is not None else None
    aliases = tuple(Alias(folded(a.local_part), a.to) for a in spec.aliases)
    keys: tuple[KeySource, ...] = ()
    also: tuple[ObjectRef, ...] = ()
    if spec.dkim is not None:
        keys = tuple(map(_key, spec.dkim.selectors))
        also = tuple(reference(each, "MailDomain", ref) for each in spec.dkim.also_sign_as)
    return DomainPiece(part, gateway, aliases, retry, _grants(spec.attach), created, keys, also)


def _key(spec: DkimSelectorSpec) -> KeySource:
    where = spec.private_key_secret_ref
    return KeySource(spec.name, where.name, where.key or f"{spec.name}.pem", SigningUse(spec.sign.lower()))


def _mta_sts(spec: MtaStsSpec) -> MtaSts:
    mode = Mode.NONE if spec.mode == "Disabled" else Mode(spec.mode.lower())
    default = 86_400 if mode is Mode.NONE else 604_800
    return MtaSts(mode, spec.max_age_seconds or default, spec.mx)


def _account(ref: ObjectRef, resource: MailAccount, created: str) -> AccountPiece:
    spec, where = resource.spec, resource.spec.credentials_secret_ref
    limits = AccountLimits()
    if spec.limits is not None:
        limits = AccountLimits(spec.limits.messages_per_day, spec.limits.recipients_per_day, spec.limits.message_bytes)
    return AccountPiece(
        account_uid(ref, resource.metadata.uid),
        reference(spec.domain_ref, "MailDomain", ref),
        spec.login,
        spec.addresses,
        spec.receive,
        spec.send_as,
        PasswordSource(where.name, where.password_key) if where is not None else None,
        limits,
        created,
    )


# --- transports ---------------------------------------------------------------------------------------------------


def _families(written: Sequence[str]) -> tuple[str, ...]:
    return tuple(family.lower() for family in written)


def _login(where: LoginSecretRef) -> LoginSource:
    return LoginSource(where.name, where.password_key, where.username_key)


def _transport(ref: ObjectRef, resource: MailTransport, created: str) -> TransportPiece:
    spec = resource.spec
    limits = TransportLimits()
    if spec.limits is not None:
        limits = TransportLimits(
            spec.limits.max_connections,
            spec.limits.max_connections_per_destination,
            MessageRate(rate.messages, rate.per_seconds) if (rate := spec.limits.rate) is not None else None,
            spec.limits.recipients_per_message or limits.recipients_per_message,
        )
    reencode = spec.signed_mail is not None and spec.signed_mail.mode == "Reencode"
    made = _by_member(ref, spec)
    part = replace(made.part, limits=limits, reencode_signed=reencode, security=_floor(spec.security))
    return replace(made, part=part, grants=_grants(spec.attach), created=created)


def _by_member(ref: ObjectRef, spec: MailTransportSpec) -> TransportPiece:
    """What the member that is set says."""
    member = next(m for m in MEMBERS if getattr(spec, m) is not None)
    kind = TransportKind(member)
    if spec.smtp is not None:
        return _hop(ref, kind, spec.smtp, TlsMode.OPPORTUNISTIC)
    if spec.submission is not None:
        return _hop(ref, kind, spec.submission, TlsMode.VERIFIED)
    if spec.submissions is not None:
        return _hop(ref, kind, spec.submissions, TlsMode.VERIFIED)
    if spec.lmtp is not None:
        return _hop(ref, kind, spec.lmtp, TlsMode.NONE)
    if spec.direct is not None:
        families = _families(spec.direct.ip_families)
        part = Transport(ref, kind, families=families, source_addresses=spec.direct.source_addresses)
        return TransportPiece(part, member, None)
    if spec.socks is not None:
        host, _, port = spec.socks.address.rpartition(":")
        part = Transport(
            ref,
            kind,
            families=_families(spec.socks.ip_families),
            proxy_host=host.strip("[]"),
            proxy_port=int(port),
            remote_ips=spec.socks.remote_ips,
            remote_hostname=spec.socks.remote_hostname,
        )
        auth = spec.socks.auth
        return TransportPiece(part, member, None, _login(auth.secret_ref) if auth is not None else None)
    assert spec.fail is not None, "the union rule saw to one member"
    return TransportPiece(Transport(ref, kind, code=spec.fail.code, text=spec.fail.text), member, None)


def _hop(
    ref: ObjectRef, kind: TransportKind, spec: SmtpSpec | SubmissionSpec | LmtpSpec, default: TlsMode
) -> TransportPiece:
    tls = spec.tls or _NO_TLS_SETTINGS
    auth = spec.auth if isinstance(spec, SubmissionSpec) else None
    authorities = tls.ca_secret_ref
    part = Transport(
        ref,
        kind,
        host=spec.host.strip("[]"),
        port=spec.port,
        tls=TlsMode(tls.mode.lower()) if tls.mode is not None else default,
        username=auth.username if auth is not None else None,
        mechanisms=(auth.mechanisms or ()) if auth is not None else (),
    )
    return TransportPiece(
        part,
        kind.value,
        None,
        _login(auth.secret_ref) if auth is not None else None,
        AuthoritiesSource(authorities.name, authorities.key) if authorities is not None else None,
        tls.ca_file,
    )


# --- routes -------------------------------------------------------------------------------------------------------


def _route(ref: ObjectRef, resource: MailRoute, created: str) -> RoutePiece:
    spec = resource.spec
    rules = tuple(
        Rule(
            ref,
            index,
            rule.name if rule.name is not None else str(index),
            tuple(Match(m.to_domains, m.from_domains, m.minimum_attempts or 0) for m in rule.matches),
            reference(rule.transport_ref, "MailTransport", ref) if rule.transport_ref is not None else None,
            require=_floor(rule.require.tls) if rule.require is not None else NO_FLOOR,
        )
        for index, rule in enumerate(spec.rules)
    )
    return RoutePiece(tuple(reference(p, p.kind, ref) for p in spec.parent_refs), spec.priority, rules, created)
