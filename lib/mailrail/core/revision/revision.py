"""The compiled configuration: one immutable, canonical document that every service swaps in whole.

`compile()` (compiler.py) writes it, the config service stores it, services read it. It holds names and
references already resolved, and no secret: a `SecretRef` names sealed values that travel beside it and only to
the roles that use them (CFG-02). Equal input gives equal bytes: `encode` writes canonical JSON (sorted keys, no
blanks), `checksum` is its SHA-256.

Sequences are tuples in the order of evaluation. Domain names are lower-case A-labels throughout. Times are seconds.
An absent value is None, never zero.
"""

import hashlib
import json
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import Any, Final

from pydantic import TypeAdapter

from mailrail.core.dkim.rotation import KeyStage
from mailrail.core.mtasts.policy import Mode
from mailrail.core.spf.result import SpfResult

FORMAT = 2
"""Newest version of this document's shape that is read. A service that reads a newer one rejects it and keeps its last
good revision. What is written has the lowest that none of its readers may pass over (decision 23)."""
FLOORS_FORMAT: Final = 2
"""From this version on readers know floors (`security`, `require`)."""
DSN_FULL_LIMIT = 1024 * 1024
"""Octets of a message up to which a DSN returns all of it where RET=FULL asks for it, unless the gateway says otherwise
(design 9)."""
REASON_LIMIT: Final = 500
"""Characters of why stored bytes cannot be read: pydantic names each wrong value, and there may be thousands."""


class Role(StrEnum):
    """Who reads a revision. Sealed secrets are delivered per role."""

    INGRESS = "ingress"
    QUEUE = "queue"
    OUTBOUND = "outbound"
    POLICY = "policy"
    DMARC = "dmarc"


@dataclass(frozen=True, slots=True, order=True)
class ObjectRef:
    """Which resource something came from, as people name it: `kind namespace/name`."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class SecretRef:
    """Sealed values under `namespace/name/key` (CFG-02).

    The digest is a keyed HMAC of the content, so a rotation changes the bytes of the revision.
    """

    namespace: str
    name: str
    key: str
    digest: str
    key_id: str

    @property
    def path(self) -> str:
        """The reference under which sealed values are stored and delivered."""
        return f"{self.namespace}/{self.name}/{self.key}@{self.digest}"


# --- floors ----------------------------------------------------------------------------------------------------


class TlsMinimum(StrEnum):
    """The least security that mail may go out with (decision 18). The values are in order of strength."""

    OPPORTUNISTIC = "opportunistic"  # as far as the destination offers or demands it
    ENCRYPTED = "encrypted"  # TLS, with any certificate
    AUTHENTICATED = "authenticated"  # TLS with a server that one of the proofs shows to be the right one


class TlsProof(StrEnum):
    """What shows that a server is the right one. These are no ladder: none of them is stronger than the others."""

    DANE = "dane"  # TLSA records, in a chain of DNSSEC from the MX record on (RFC 7672)
    MTA_STS = "mta-sts"  # a policy with mode enforce lists the host, and its certificate is valid for it (RFC 8461)
    PKIX = "pkix"  # the certificate is valid for the host's name, wherever that name came from


class Otherwise(StrEnum):
    """What becomes of mail that no host takes with the security that is demanded."""

    DEFER = "defer"
    FAIL = "fail"


class Unanswered(StrEnum):
    """What becomes of mail while the DNS does not answer whether the destination demands TLS (STS-24c, DANE-03a)."""

    DEFER = "defer"
    PROCEED = "proceed"  # as if it demanded none


ALL_PROOFS: Final = tuple(TlsProof)


@dataclass(frozen=True, slots=True)
class Security:
    """A floor for the security of mail that leaves. Several add up (core/tlspolicy/demands.py)."""

    minimum: TlsMinimum = TlsMinimum.OPPORTUNISTIC
    proofs: tuple[TlsProof, ...] = ALL_PROOFS
    """Those of which one is enough where a server must be authenticated; in the order of `TlsProof`."""
    otherwise: Otherwise = Otherwise.DEFER
    when_unanswered: Unanswered | None = None
    """None: not said. Where nobody says it, mail waits."""


NO_FLOOR: Final = Security()


# --- who sent a message ------------------------------------------------------------------------------------------


class AuthenticationMode(StrEnum):
    """What is done about who sent a message. The values are in order of strictness."""

    DISABLED = "disabled"  # nothing is checked
    MONITOR = "monitor"  # it is checked and told, and changes nothing
    ENFORCE = "enforce"  # what domains ask for is done


class SuffixMode(StrEnum):
    """How it is found where an organization begins."""

    WALK = "treewalk"  # the tree walk of RFC 9989 4.10
    LIST = "psl"  # a list of public suffixes (RFC 7489 3.2)


@dataclass(frozen=True, slots=True)
class SenderRules:
    """What a gateway does about who sent the mail of strangers (standards 5 to 7)."""

    mode: AuthenticationMode = AuthenticationMode.ENFORCE
    trusted_forwarders: tuple[str, ...] = ()
    """Networks, and domains in lower-case A-labels."""
    trusted_sealers: tuple[str, ...] = ()
    """Domains in lower-case A-labels."""
    refused_spf: tuple[SpfResult, ...] = (SpfResult.FAIL,)
    defer_on_temperror: bool = False
    suffixes: SuffixMode = SuffixMode.WALK


# --- gateway ---------------------------------------------------------------------------------------------------


class ListenerProtocol(StrEnum):
    """What a listener speaks."""

    MX = "mx"  # port 25: mail from strangers, for our domains
    SUBMISSION = "submission"  # 587: STARTTLS, AUTH required
    SUBMISSIONS = "submissions"  # 465: TLS from the first byte (RFC 8314 3.3)


@dataclass(frozen=True, slots=True)
class Listener:
    """One listening port of a gateway."""

    name: str
    protocol: ListenerProtocol
    port: int
    certificate: SecretRef | None
    """tls.crt and tls.key in one PEM; None: STARTTLS is not offered."""
    require_tls: bool = False
    """Private MX listeners may demand it (TLS-03); submission does for AUTH always."""
    proxy_protocol: bool = False
    """PRX-01."""
    proxy_trusted_cidrs: tuple[str, ...] = ()
    mechanisms: tuple[str, ...] = ()
    """SASL names offered, strongest first; empty on MX."""
    accept_any_recipient: bool = False
    """Captive local mode only (design 10)."""


@dataclass(frozen=True, slots=True)
class RetrySchedule:
    """Delays before attempts 2, 3, ...; the last one repeats until `lifetime` is over (design 4, Retry)."""

    delays: tuple[int, ...] = (450, 900, 1800, 3600, 7200, 14400, 28800, 43200)
    """Seconds."""
    lifetime: int = 5 * 86400
    """Seconds after accept; the first failure after it is final, 4.4.7."""
    null_sender_lifetime: int = 86400
    max_attempts: int | None = None
    delayed_dsn_after: int = 5
    """Failed attempts until the one delayed DSN of a recipient."""


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """Bounds on what strangers may ask for."""

    message_size: int = 100 * 1024 * 1024
    """Octets."""
    recipients: int = 1000
    """Of a transaction (RFC 5321 4.5.3.1.8 asks for at least 100)."""
    connections: int = 10_000
    """Of a process."""
    connections_per_ip: int = 100
    errors: int = 20
    """Bad commands of one session before 421 4.7.0."""
    idle_timeout: int = 300
    """Seconds; RFC 5321 4.5.3.2.7 asks for at least 5 minutes."""
    transaction_timeout: int = 1800
    """Seconds for DATA or BDAT as a whole."""
    future_release: int = 5_184_000
    """Seconds; 60 days."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """One installation or edge, and the global level of routing."""

    ref: ObjectRef
    hostname: str
    listeners: tuple[Listener, ...]
    postmaster: ObjectRef
    """The MailAccount that gets mail to postmaster and owns our DSNs."""
    postmaster_mailbox: str = "Postmaster"
    retry: RetrySchedule = field(default_factory=RetrySchedule)
    limits: GatewayLimits = field(default_factory=GatewayLimits)
    dsn_full_limit: int = DSN_FULL_LIMIT
    """Octets; RET=FULL above it gives headers (design 9)."""
    security: Security = NO_FLOOR
    """Of all mail that leaves."""
    offer_requiretls: bool = True
    """REQUIRETLS (RFC 8689) is announced inside TLS."""
    authentication: SenderRules = field(default_factory=SenderRules)

    @property
    def reports_mailbox(self) -> str:
        """Of the postmaster: takes mail to report addresses."""
        return f"{self.postmaster_mailbox}/reports"


# --- domains and accounts -----------------------------------------------------------------------------------------


class DomainDelivery(StrEnum):
    """Where a domain's own recipients go (design 4, Where to)."""

    MAILBOX = "mailbox"
    TRANSPORT = "transport"
    NONE = "none"  # a domain that we only send for


class Recipients(StrEnum):
    """Which recipients of a domain delivered by a transport exist."""

    LISTED = "listed"
    ANY = "any"
    VERIFY = "verify"


@dataclass(frozen=True, slots=True)
class DkimKey:
    """A DKIM key of a domain."""

    selector: str
    algorithm: str
    """rsa-sha256 or ed25519-sha256."""
    private_key: SecretRef
    """PEM."""
    stage: KeyStage = KeyStage.SIGNING
    record: str = ""
    """The text of the record that publishes it."""

    @property
    def signs(self) -> bool:
        """Whether mail is signed with it now."""
        return self.stage is KeyStage.SIGNING


@dataclass(frozen=True, slots=True)
class Alias:
    """A local part that stands for 1..n addresses. Cycles were refused by the compiler."""

    local: str
    """Lower case."""
    targets: tuple[str, ...]
    """Addresses, local or foreign."""


@dataclass(frozen=True, slots=True)
class MtaSts:
    """What the MTA-STS policy of a domain says (RFC 8461)."""

    mode: Mode
    max_age: int
    """Seconds."""
    mx: tuple[str, ...] = ()
    """Host names and `*.` patterns; empty: the host name of the gateway."""


@dataclass(frozen=True, slots=True)
class ReportAddresses:
    """Local parts, folded, of the addresses of a domain that take reports of others."""

    dmarc: str
    tls: str

    @property
    def locals(self) -> frozenset[str]:
        """Both, which may be one."""
        return frozenset((self.dmarc, self.tls))


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain that is ours."""

    ref: ObjectRef
    name: str
    delivery: DomainDelivery
    transport: ObjectRef | None = None
    """With Delivery.TRANSPORT; may name one that does not exist: mail is deferred."""
    recipients: Recipients = Recipients.LISTED
    listed: tuple[str, ...] = ()
    """Extra local parts that exist, lower case (delivery by transport)."""
    aliases: tuple[Alias, ...] = ()
    separators: str = "+"
    catch_all: str | None = None
    """A full address."""
    retry: RetrySchedule | None = None
    dkim: tuple[DkimKey, ...] = ()
    """All that are published; some of them sign. The oldest first."""
    also_sign_as: tuple[str, ...] = ()
    """Names of domains whose keys sign its mail, too."""
    gateway: ObjectRef | None = None
    """That it attaches to; its limits, retry schedule and postmaster apply."""
    mta_sts: MtaSts | None = None
    """None: no policy is served."""
    security: Security = NO_FLOOR
    """Of mail that is submitted with a sender of the domain."""
    authentication: AuthenticationMode | None = None
    """Of mail to the domain; None: the gateway's."""
    reports: ReportAddresses | None = None
    """None: the domain has no report addresses."""


@dataclass(frozen=True, slots=True)
class AccountLimits:
    """Counted by the queue in the Enqueue transaction (ACC-08); None = no limit."""

    messages_per_day: int | None = None
    recipients_per_day: int | None = None
    message_size: int | None = None


@dataclass(frozen=True, slots=True)
class Account:
    """A login and a mailbox."""

    ref: ObjectRef
    uid: str
    domain: ObjectRef
    login: str
    addresses: tuple[str, ...]
    """Full addresses, received and sendable."""
    scram: tuple[tuple[str, SecretRef], ...] = ()
    """(SCRAM-SHA-256 | SCRAM-SHA-1, sealed verifier): for ingress only."""
    password: SecretRef | None = None
    """Sealed, for ingress only, and only where CRAM-MD5 is on (CFG-03)."""
    limits: AccountLimits = field(default_factory=AccountLimits)
    receive: tuple[str, ...] = ()
    """Full addresses that are only received; `@domain` = every address of the domain that does not exist otherwise."""
    send_as: tuple[str, ...] = ()
    """Full addresses that are only sendable; `@domain` = every address of the domain."""

    @property
    def received(self) -> tuple[str, ...]:
        """All that it receives mail for."""
        return self.addresses + self.receive

    @property
    def sendable(self) -> tuple[str, ...]:
        """All that it may send as."""
        return self.addresses + self.send_as


# --- transports ---------------------------------------------------------------------------------------------------


class TransportKind(StrEnum):
    """The union member that a MailTransport sets."""

    DIRECT = "direct"
    SMTP = "smtp"
    SUBMISSION = "submission"
    SUBMISSIONS = "submissions"
    SOCKS = "socks"
    LMTP = "lmtp"
    FAIL = "fail"


class TlsMode(StrEnum):
    """What a hop demands of TLS (design 5). There is no skip-verify."""

    NONE = "disabled"
    OPPORTUNISTIC = "opportunistic"
    REQUIRED = "required"  # encrypted, not authenticated
    VERIFIED = "verified"  # PKIX against the configured host name


@dataclass(frozen=True, slots=True)
class MessageRate:
    """So many messages in so many seconds, on average."""

    messages: int
    seconds: int

    @property
    def per_second(self) -> float:
        """Messages in one second."""
        return self.messages / self.seconds


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """Held cluster-wide by the queue. None = the default of the site."""

    connections: int | None = None
    connections_per_destination: int | None = None
    rate: MessageRate | None = None
    recipients_per_message: int = 100


@dataclass(frozen=True, slots=True)
class Transport:
    """How to deliver. Only the fields of its kind are set."""

    ref: ObjectRef
    kind: TransportKind
    host: str | None = None
    """Of smtp, submission, submissions and lmtp: name or address literal."""
    port: int | None = None
    tls: TlsMode = TlsMode.OPPORTUNISTIC
    ca: SecretRef | None = None
    """PEM certificates to trust besides the system's."""
    username: str | None = None
    password: SecretRef | None = None
    mechanisms: tuple[str, ...] = ()
    """SASL, in order of preference; empty = strongest offered first."""
    families: tuple[str, ...] = ("ipv4", "ipv6")
    """Of direct and socks."""
    source_addresses: tuple[str, ...] = ()
    """Of direct: at most one a family."""
    proxy_host: str | None = None
    """Of socks."""
    proxy_port: int | None = None
    remote_ips: tuple[str, ...] = ()
    """Of socks: addresses that the world sees."""
    remote_hostname: str | None = None
    """Of socks: EHLO name."""
    code: int | None = None
    """Of fail."""
    text: str | None = None
    """Of fail."""
    reencode_signed: bool = False
    """Content that a hop cannot take is re-encoded although others signed it (SOUT-18b)."""
    limits: TransportLimits = field(default_factory=TransportLimits)
    security: Security = NO_FLOOR
    """Of all mail that goes this way."""

    @property
    def digest(self) -> str:
        """Changes whenever anything that outbound would do differently changes (LSE-07).

        Of what is set alone: queue and outbound each work it out, and need not be of one release. A field that only the
        newer one knows makes no difference while it has its default. Once it is set, the older outbound gives the
        delivery back, and never sends it without what the field demands.
        """
        return hashlib.sha256(json.dumps(_set_fields(self), sort_keys=True).encode()).hexdigest()[:16]


def _set_fields(part: Any) -> dict[str, Any]:
    """The fields of a dataclass, and of those in it, that do not have their default."""
    found = {}
    for each in fields(part):
        value = getattr(part, each.name)
        default: Any = each.default_factory() if each.default_factory is not MISSING else each.default
        if value != default:
            found[each.name] = _set_fields(value) if is_dataclass(value) else value
    return found


# --- routes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Match:
    """AND of the set fields; an empty one matches anything.

    `x.org` matches exactly, `.x.org` it and every subdomain, `.` the empty domain.
    """

    to_domains: tuple[str, ...] = ()
    from_domains: tuple[str, ...] = ()
    minimum_attempts: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a route: where matching mail goes. `transport` None = direct delivery to the MX."""

    route: ObjectRef
    index: int
    """Within the route, from 0."""
    name: str
    """As written, or the index."""
    matches: tuple[Match, ...]
    """OR; empty = any."""
    transport: ObjectRef | None
    missing: bool = False
    """The transport is not there: matching mail is deferred (design 5)."""
    require: Security = NO_FLOOR
    """Of matching mail."""


@dataclass(frozen=True, slots=True)
class RouteLevel:
    """The rules attached to one account, domain or gateway, in order of evaluation."""

    parent: ObjectRef
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Revision:
    """Everything the services need to know. Sorted by name where order has no meaning."""

    format: int = 1
    gateways: tuple[Gateway, ...] = ()
    domains: tuple[Domain, ...] = ()
    accounts: tuple[Account, ...] = ()
    transports: tuple[Transport, ...] = ()
    account_routes: tuple[RouteLevel, ...] = ()
    domain_routes: tuple[RouteLevel, ...] = ()
    global_routes: tuple[RouteLevel, ...] = ()
    """One per gateway."""


ROLES_WITHOUT_SECRETS: Final = frozenset({Role.POLICY, Role.DMARC})
"""Roles for which nothing is sealed; their processes hold no sealing key."""


def secrets_for(revision: Revision, role: Role) -> frozenset[str]:
    """The paths of the sealed values that `role` may hold (CFG-02, design 5)."""
    refs: list[SecretRef | None] = []
    if role is Role.INGRESS:
        refs += [listener.certificate for g in revision.gateways for listener in g.listeners]
        refs += [ref for a in revision.accounts for _, ref in a.scram]
        refs += [a.password for a in revision.accounts]
        refs += [k.private_key for d in revision.domains for k in d.dkim]
    elif role is Role.OUTBOUND:
        refs += [ref for t in revision.transports for ref in (t.password, t.ca)]
    elif role is Role.QUEUE:
        refs += [k.private_key for d in revision.domains for k in d.dkim]
    return frozenset(ref.path for ref in refs if ref is not None)


_serializers: dict[type, TypeAdapter[Any]] = {}


def canonical_json(value: Any) -> bytes:
    """Canonical JSON of a dataclass: sorted keys, no blanks, UTF-8."""
    kind = type(value)
    serializer = _serializers.get(kind)
    if serializer is None:  # making one costs milliseconds
        serializer = _serializers.setdefault(kind, TypeAdapter(kind))
    plain = serializer.dump_python(value, mode="json")
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def encode(revision: Revision) -> bytes:
    """The canonical bytes of a revision."""
    return canonical_json(revision)


def checksum(encoded: bytes) -> str:
    """SHA-256 of canonical bytes, lower-case hex: equal configuration, equal checksum."""
    return hashlib.sha256(encoded).hexdigest()


_adapter: TypeAdapter[Revision] = TypeAdapter(Revision)


class UnreadableRevision(ValueError):
    """The bytes are not a revision that this version understands."""


def decode(encoded: bytes) -> Revision:
    """Read canonical bytes back. Raises UnreadableRevision when they are broken or of a newer format."""
    try:
        revision = _adapter.validate_json(encoded)
    except ValueError as error:
        raise UnreadableRevision(str(error)[:REASON_LIMIT]) from error
    if revision.format > FORMAT:
        raise UnreadableRevision(f"configuration format {revision.format} is newer than {FORMAT}; upgrade this service")
    return revision
