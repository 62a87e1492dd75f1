"""What every resource type is made of: field types with bounds, references, and the base model.

Each field type says its length, range and pattern, because the API server estimates the cost of CEL rules from them
and because local mode reads files that anybody may have written. Patterns are RE2 (no look-around), so that the same
text works in a CRD. Each pattern has a sentence that people read in its place.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from mailrail.core.resources.rules import AtMostOneOf, FieldRule
from mailrail.core.revision.revision import RetrySchedule

API_VERSION: Final = "mailrail.dev/v1alpha1"
"""The only version there is; changes are additive until there is a second."""

PATTERN_MEANINGS: dict[str, str] = {}
"""Pattern → how people should write the value."""


def text_field(pattern: str, meaning: str, limit: int, *, least: int = 1) -> StringConstraints:
    """Constraints of a text, with the sentence that people read when it does not match."""
    PATTERN_MEANINGS[pattern] = meaning
    return StringConstraints(pattern=pattern, min_length=least, max_length=limit)


_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAME = rf"{_LABEL}(\.{_LABEL})*"
_SELECTOR_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_OBJECT_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
_ATOM = r"[^\x00-\x20\x7f-\x9f\".(),:;<>@\[\\\]]{1,64}"
_LOCAL = rf"{_ATOM}(\.{_ATOM})*"  # what address.py parses; where they differ, mail would have no way to such an address

ObjectName = Annotated[
    str,
    text_field(rf"^{_OBJECT_NAME}$", "lower-case letters, digits, - and ., with a letter or digit at both ends", 253),
]
"""The name of an object or a Secret: an RFC 1123 subdomain as Kubernetes has it, which does not limit its labels."""
LabelName = Annotated[
    str, text_field(rf"^{_LABEL}$", "lower-case letters, digits and -, with a letter or digit at both ends", 63)
]
"""Names of list entries and namespaces: RFC 1123 label."""
Selector = Annotated[
    str,
    text_field(
        rf"^{_SELECTOR_LABEL}(\.{_SELECTOR_LABEL})*$",
        "lower-case letters, digits, - and _, like s2026a or 20261201-rsa",
        63,
    ),
]
"""The name of a DKIM key (RFC 6376 3.1)."""
SecretKey = Annotated[str, text_field(r"^[-._a-zA-Z0-9]+$", "letters, digits, -, _ and .", 253)]
"""A key in a Secret."""
DomainName = Annotated[str, text_field(rf"^{_NAME}$", "a domain name in lower-case A-labels, like example.org", 253)]
"""A domain name as DNS has it; no trailing dot."""
DomainPattern = Annotated[
    str,
    text_field(
        rf"^(\.|\.?{_NAME})$",
        "example.org for that domain, .example.org for it and every subdomain, or . for the empty domain",
        254,
    ),
]
"""What a route compares: exact, with subdomains, or the empty domain (null sender, address literal)."""
MxPattern = Annotated[
    str,
    text_field(
        rf"^([*][.])?({_LABEL}\.)*[a-z]([a-z0-9-]{{0,61}}[a-z0-9])?$",
        "a host name in lower-case A-labels, or *. and a name for each host with one label more",
        255,
    ),
]
"""MX hosts in an MTA-STS policy (RFC 8461 3.2)."""
HostName = Annotated[
    str,
    text_field(
        rf"^({_NAME}|\[?[0-9a-fA-F:]*:[0-9a-fA-F:.]+\]?)$", "a host name in lower-case A-labels or an IP address", 253
    ),
]
"""A host to dial: a name or an address (IPv6 with or without brackets)."""
HostPort = Annotated[
    str,
    text_field(
        rf"^({_NAME}|\[[0-9a-fA-F:.]+\]):[0-9]{{1,5}}$",
        "host:port, like proxy.example.org:1080 or [2001:db8::1]:1080",
        260,
    ),
]
"""Where a proxy listens."""
IpAddress = Annotated[str, text_field(r"^[0-9a-fA-F:.]{2,45}$", "an IPv4 or IPv6 address, without brackets", 45)]
"""An address of ours."""
Cidr = Annotated[
    str, text_field(r"^[0-9a-fA-F:.]{2,45}/[0-9]{1,3}$", "a network, like 10.0.0.0/8 or 2001:db8::/32", 49)
]
"""A network."""
LocalPart = Annotated[
    str,
    text_field(
        rf"^{_LOCAL}$",
        "the part of an address before the @, without spaces, quotes or any of (),:;<>@[\\], dots only in between",
        64,
    ),
]
"""A local part as people write it; compared case-insensitively."""
AddressOrLocalPart = Annotated[
    str, text_field(rf"^{_LOCAL}(@{_NAME})?$", "an address like alice@example.org, or only the part before the @", 318)
]
"""An address; without `@` it is one of the domain that the field belongs to."""
AddressOrAll = Annotated[
    str,
    text_field(
        rf"^({_LOCAL}(@{_NAME})?|@)$",
        "an address like alice@example.org, only the part before the @, or @ for every address of the domain",
        318,
    ),
]
"""An address of an account; `@` stands for every address of its domain."""
Login = Annotated[str, text_field(r"^[^\x00-\x20\x7f]{1,255}$", "a name without spaces", 255)]
"""What a user types; compared case-insensitively."""
Separators = Annotated[
    str, text_field(r"^[!#$%&'*+/=?^_`{|}~-]*$", "characters such as + or -, but not the dot", 4, least=0)
]
"""Characters that end the part of a local part that counts."""
MailboxPath = Annotated[str, text_field(r"^[^\x00-\x1f\x7f]+$", "a mailbox name, with / between its levels", 255)]
"""A mailbox of an account."""
PrintableAscii = Annotated[str, text_field(r"^[ -~]+$", "printable ASCII on one line", 256)]
"""Text that goes into an SMTP reply."""
SaslMechanism = Literal[
    "SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-1", "CRAM-MD5", "PLAIN", "LOGIN"
]
"""SASL mechanisms, strongest first: what a listener may offer, and what we can log in with."""
Port = Annotated[int, Field(ge=1, le=65535)]
Priority = Annotated[int, Field(ge=0, le=1_000_000)]
Seconds = Annotated[int, Field(ge=1, le=60 * 86400)]


def compiled_default(value: Any) -> dict[str, Any]:
    """For `json_schema_extra`: the value that the compiler takes where none is written. It is told, and not stored."""
    return {"x-mailrail-default": value}


class Part(BaseModel):
    """Base of every resource and every part of one: camelCase outside, strict, frozen, unknown fields refused."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=False,
        validate_by_alias=True,
        extra="forbid",
        frozen=True,
        strict=True,
    )
    RULES: ClassVar[tuple[FieldRule, ...]] = ()

    @model_validator(mode="after")
    def _keeps_its_rules(self) -> Self:
        for rule in self.RULES:
            if not rule.holds(self):
                raise PydanticCustomError("rule", "{message}", {"message": rule.message})
        return self


class NamespacedRef(Part):
    """A reference that may cross namespaces, if the target's `attach` lets it."""

    name: ObjectName = Field(description="Name of the object.")
    namespace: LabelName | None = Field(
        default=None, description="Namespace of the object. Default: the namespace of the object that refers to it."
    )


class AuthoritiesSecretRef(Part):
    """Certificates of authorities in a Secret of the same namespace."""

    name: ObjectName = Field(description="Name of the Secret.")
    key: SecretKey = Field(default="ca.crt", description="Key of the PEM certificates.")


class PasswordSecretRef(Part):
    """A password in a Secret of the same namespace."""

    name: ObjectName = Field(description="Name of the Secret.")
    password_key: SecretKey = Field(default="password", description="Key of the password.")


class PrivateKeySecretRef(Part):
    """A DKIM key in a Secret of the same namespace, as `mailrail dkim generate --secret` writes it."""

    name: ObjectName = Field(description="Name of the Secret.")
    key: SecretKey | None = Field(
        default=None, description="Key of the private key in PEM. Default: the selector with .pem behind it."
    )


class LoginSecretRef(PasswordSecretRef):
    """A user name and a password in a Secret of the same namespace."""

    username_key: SecretKey = Field(default="username", description="Key of the user name.")


class CertificateSecretRef(Part):
    """A certificate with its private key in a Secret of the same namespace."""

    name: ObjectName = Field(description="Name of the Secret, of type kubernetes.io/tls for instance.")
    certificate_key: SecretKey = Field(default="tls.crt", description="Key of the certificate chain in PEM.")
    private_key_key: SecretKey = Field(default="tls.key", description="Key of the private key in PEM.")


class Metadata(BaseModel):
    """The part of Kubernetes' ObjectMeta that we read; whatever else is there is Kubernetes' business."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)
    name: ObjectName
    namespace: LabelName = "default"
    uid: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = None
    generation: int | None = None
    creation_timestamp: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        default=None, alias="creationTimestamp"
    )


class Resource(BaseModel):
    """A whole document. `status` belongs to the operator and is not read."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True, strict=True)
    # What a CRD needs besides the schema: plural, short name, and the columns of `kubectl get`.
    PLURAL: ClassVar[str]
    SHORT: ClassVar[str]
    api_version: Literal["mailrail.dev/v1alpha1"]
    metadata: Metadata
    status: Any = Field(default=None, exclude=True)


def parts_of(model: type[Part]) -> Iterator[type[Part]]:
    """The model and every model below it, each once, in order of first mention."""
    seen: dict[type[Part], None] = {}

    def visit(kind: Any) -> None:
        if isinstance(kind, type) and issubclass(kind, Part):
            if kind in seen:
                return
            seen[kind] = None
            for info in kind.model_fields.values():
                visit(info.annotation)
            return
        for inner in getattr(kind, "__args__", ()):
            visit(inner)

    visit(model)
    return iter(seen)


def matches(pattern: str, text: str) -> bool:
    """Whether a field type's pattern accepts the text; for hints in messages."""
    return re.fullmatch(pattern, text) is not None


class TransportTls(Part):
    """How TLS is used with the next hop. Verification cannot be skipped where the mode asks for it."""

    RULES = (AtMostOneOf(("ca_secret_ref", "ca_file")),)
    mode: Literal["Disabled", "Opportunistic", "Required", "Verified"] | None = Field(
        default=None,
        description="Disabled: no TLS. Opportunistic: STARTTLS if the server offers it. "
        "Required: TLS with any certificate. Verified: TLS with a certificate that is valid for the host. "
        "Default: Opportunistic for smtp, Verified for submission and submissions, Disabled for lmtp.",
    )
    ca_secret_ref: AuthoritiesSecretRef | None = Field(
        default=None,
        description="Secret with PEM certificates to trust in addition to the system's. Default: the system's alone.",
    )
    ca_file: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = Field(
        default=None,
        description="File with such certificates, relative to the resources folder; local mode only.",
        json_schema_extra={"x-mailrail-local": True},
    )


_RETRY: Final = RetrySchedule()


class Retry(Part):
    """When to repeat a failed attempt, and when to give up."""

    delays_seconds: Annotated[tuple[Seconds, ...], Field(min_length=1, max_length=64)] | None = Field(
        default=None,
        description="Seconds to wait before attempts 2, 3, ...; the last value repeats until the lifetime is over.",
        json_schema_extra=compiled_default(list(_RETRY.delays)),
    )
    lifetime_seconds: Seconds | None = Field(
        default=None,
        description="Seconds after the message was accepted; the first failure after that is final.",
        json_schema_extra=compiled_default(_RETRY.lifetime),
    )
    null_sender_lifetime_seconds: Seconds | None = Field(
        default=None,
        description="The lifetime of mail with the null reverse-path (<>).",
        json_schema_extra=compiled_default(_RETRY.null_sender_lifetime),
    )
    max_attempts: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None,
        description="Give up after this many attempts, even if the lifetime is not over. Default: the lifetime alone.",
    )
    delayed_dsn_after: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None,
        description="Send a DSN about the delay after this many failed attempts.",
        json_schema_extra=compiled_default(_RETRY.delayed_dsn_after),
    )
