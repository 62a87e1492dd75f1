"""What the operator writes into the status of each kind, as models: the CRDs' status schemas come from them.

Status says conditions, never a phase; facts that change for every object at once (revision numbers, who runs what) live
on MailGateway alone, so that one publish does not rewrite thousands of objects. Nothing secret, and nothing copied from
a referenced object, is ever in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from mailrail.core.resources.base import Part

MESSAGE_LIMIT: Final = 4096
"""Characters of a condition's message; longer ones are cut."""
CONTROLLER_NAME_LIMIT: Final = 128
"""Characters of a controller's name, which is its field manager, too: Kubernetes allows no more there."""
DNS_RECORDS_LIMIT: Final = 64
"""Records that the status of a domain lists."""

_Name = Annotated[str, StringConstraints(max_length=253)]
_ControllerName = Annotated[str, StringConstraints(max_length=CONTROLLER_NAME_LIMIT)]
_Time = Annotated[str, StringConstraints(max_length=64), Field(json_schema_extra={"format": "date-time"})]


class ConditionStatus(Part):
    """One condition, in the shape of `metav1.Condition`."""

    type: Annotated[str, StringConstraints(min_length=1, max_length=316)] = Field(
        description="What the condition is about."
    )
    status: Literal["True", "False", "Unknown"] = Field(description="True, False or Unknown.")
    observed_generation: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="The metadata.generation that the condition is about."
    )
    last_transition_time: _Time = Field(description="When the status last changed.")
    reason: Annotated[str, StringConstraints(min_length=1, max_length=1024)] = Field(
        description="Reason, from a closed list; see the reference page."
    )
    message: Annotated[str, StringConstraints(max_length=MESSAGE_LIMIT)] = Field(description="The reason in words.")


class ParentStatus(Part):
    """The state of the object with regard to one object that it attaches to."""

    kind: _Name = Field(description="Kind of the object that it attaches to.")
    namespace: _Name = Field(description="Namespace of the object that it attaches to.")
    name: _Name = Field(description="Name of the object that it attaches to.")
    controller_name: _ControllerName = Field(description="The controller that wrote this entry, and alone writes it.")
    conditions: Annotated[tuple[ConditionStatus, ...], Field(max_length=16)] = Field(
        default=(),
        description="Accepted, ResolvedRefs and Programmed; Shadowed and Ambiguous only while true.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class CommonStatus(Part):
    """What every kind has."""

    controller_name: _ControllerName | None = Field(
        default=None,
        description="The controller that judges the object and writes all of this status but entries of parents that "
        "other controllers wrote: mailrail.dev/operator, or its configured name.",
    )
    observed_generation: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="The metadata.generation that this status is about."
    )
    conditions: Annotated[tuple[ConditionStatus, ...], Field(max_length=16)] = Field(
        default=(),
        description="Accepted, ResolvedRefs, Programmed and Ready; Shadowed and Ambiguous only while true.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class AttachedStatus(CommonStatus):
    """What every kind has that attaches to another."""

    parents: Annotated[tuple[ParentStatus, ...], Field(max_length=64)] = Field(
        default=(),
        description="Conditions for each object that this one attaches to, by the controller that says so.",
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["kind", "namespace", "name", "controllerName"],
        },
    )


class SealingKeyStatus(Part):
    """A key that stored secrets are sealed with. A key that is not listed may be removed."""

    id: _Name = Field(description="Name of the key in the key Secret.")
    needed_by: Literal["Head", "History"] = Field(
        description="Head: services need it now. History: only a rollback to an older revision needs it."
    )


class ConfigStatus(Part):
    """The configuration as services run it: the only place with revision numbers."""

    revision: Annotated[int, Field(ge=0)] = Field(description="Head: the revision that services should run.")
    newest: Annotated[int, Field(ge=0)] = Field(
        description="The newest stored revision; greater than head while head is pinned."
    )
    checksum: Annotated[str, StringConstraints(max_length=71)] = Field(description="SHA-256 of the newest revision.")
    pinned: bool = Field(description="Whether head is pinned by a rollback.")
    consumers: Annotated[int, Field(ge=0)] = Field(description="Live processes that read the configuration.")
    up_to_date: Annotated[int, Field(ge=0)] = Field(description="Processes that run head.")
    rejecting: Annotated[int, Field(ge=0)] = Field(description="Processes that could not use it.")
    sealing_keys: Annotated[tuple[SealingKeyStatus, ...], Field(max_length=64)] = Field(
        default=(),
        description="Keys that stored secrets are sealed with; a key that is not listed may be removed (CFG-02).",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"]},
    )


class ListenerStatus(Part):
    """One listener of a gateway."""

    name: Annotated[str, StringConstraints(max_length=63)] = Field(description="Name of the listener in spec.")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(description="Port of the listener in spec.")
    open_in: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Live ingress processes that have it open; absent where none may."
    )
    conditions: Annotated[tuple[ConditionStatus, ...], Field(max_length=8)] = Field(
        default=(),
        description="Accepted and Programmed.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class MailGatewayStatus(CommonStatus):
    """Of a gateway."""

    domains: Annotated[int, Field(ge=0)] | None = Field(default=None, description="Number of attached MailDomains.")
    listeners: Annotated[tuple[ListenerStatus, ...], Field(max_length=16)] = Field(
        default=(),
        description="Each listener of the spec: whether it is accepted, and whether ingress has it open.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    config: ConfigStatus | None = Field(default=None, description="The configuration as services run it.")


class DnsRecordStatus(Part):
    """A DNS record that the domain needs."""

    purpose: Literal["SPF", "DKIM", "DMARC", "MTA-STS", "TLSRPT", "MX", "PTR"] = Field(
        description="What the record is for."
    )
    type: Literal["TXT", "MX", "PTR", "A"] = Field(description="Record type.")
    name: Annotated[str, StringConstraints(max_length=255)] = Field(description="Owner name.")
    value: Annotated[str, StringConstraints(max_length=4096)] = Field(description="Value to publish.")
    state: Literal["Match", "Missing", "Mismatch", "Unknown"] = Field(
        description="Match: published as needed. Missing: not published. Mismatch: published with another value. "
        "Unknown: the lookup failed."
    )
    message: Annotated[str, StringConstraints(max_length=1024)] = Field(default="", description="What is wrong.")


class DkimKeyStatus(Part):
    """A DKIM key of the domain."""

    selector: Annotated[str, StringConstraints(max_length=63)] = Field(description="Name of the selector in spec.")
    type: Literal["RSA", "Ed25519"] = Field(description="Type of the key.")
    state: Literal["New", "Waiting", "Signing", "Retired", "Removable"] = Field(
        description="New: publish its record. Waiting: its record is in the DNS, and resolvers may not know it yet. "
        "Signing: mail is signed with it. Retired: it does not sign, and its record has to stay for mail that is under "
        "way. Removable: the record may go, and then the entry in spec."
    )
    record: Annotated[str, StringConstraints(max_length=4096)] = Field(
        description="The record to publish, as a line of a zone file."
    )
    value: Annotated[str, StringConstraints(max_length=4096)] = Field(
        description="The value of that record as one text, for forms that ask for name and value."
    )
    published_since: _Time | None = Field(
        default=None, description="Since when the record is in the DNS; absent while it is not."
    )


class MailDomainStatus(AttachedStatus):
    """Of a domain. Its conditions have DNSConfigured besides, which is no part of Ready."""

    accounts: Annotated[int, Field(ge=0)] | None = Field(default=None, description="Number of attached MailAccounts.")
    dns_records: Annotated[tuple[DnsRecordStatus, ...], Field(max_length=DNS_RECORDS_LIMIT)] | None = Field(
        default=None, description="DNS records that the domain needs, and whether they are published."
    )
    dkim_keys: Annotated[tuple[DkimKeyStatus, ...], Field(max_length=8)] = Field(
        default=(),
        description="DKIM keys of the domain, and where each is in its life.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["selector"]},
    )


class MailAccountStatus(AttachedStatus):
    """Of an account."""

    address_count: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Number of addresses that it receives mail for."
    )


class MailTransportStatus(CommonStatus):
    """Of a transport. Its conditions have Healthy besides, which is no part of Ready."""

    type: _Name | None = Field(default=None, description="The kind of transport: the member of spec that is set.")
    endpoint: Annotated[str, StringConstraints(max_length=512)] | None = Field(
        default=None, description="The next hop."
    )
    referenced_by: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="MailRoutes and MailDomains that refer to it."
    )


class MailRouteStatus(AttachedStatus):
    """Of a route."""

    level: Annotated[str, StringConstraints(max_length=64)] | None = Field(
        default=None, description="Account, Domain or Global; several are separated by commas."
    )
    rule_count: Annotated[int, Field(ge=0)] | None = Field(default=None, description="Number of rules.")


FIRST_STATUS: Final = {
    "conditions": [
        {
            "type": kind,
            "status": "Unknown",
            "lastTransitionTime": "1970-01-01T00:00:00Z",
            "reason": "Pending",
            "message": "no operator has looked at it yet",
        }
        for kind in ("Accepted", "ResolvedRefs", "Programmed", "Ready")
    ]
}
"""The status that the API server gives a new object, as in the Gateway API: no condition is not read as all well."""


@dataclass(frozen=True, slots=True)
class PrinterColumn:
    """A column of `kubectl get`; `wide` ones are shown with `-o wide` only."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False


def _condition(kind: str, field: str = "status") -> str:
    return f'.status.conditions[?(@.type=="{kind}")].{field}'


_READY: Final = PrinterColumn("Ready", _condition("Ready"))
_HIDDEN: Final = PrinterColumn("Shadowed", _condition("Shadowed"))
_CONTRADICTED: Final = PrinterColumn("Ambiguous", _condition("Ambiguous"))
_AGE: Final = PrinterColumn("Age", ".metadata.creationTimestamp", "date")
_WHY: Final = (
    PrinterColumn("Accepted", _condition("Accepted", "reason"), wide=True),
    PrinterColumn("References", _condition("ResolvedRefs", "reason"), wide=True),
    PrinterColumn("Controller", ".status.controllerName", wide=True),
    PrinterColumn("Message", _condition("Ready", "message"), wide=True),
)


@dataclass(frozen=True, slots=True)
class KindInfo:
    """What a CRD needs besides the schema of `spec`."""

    status: type[CommonStatus]
    columns: tuple[PrinterColumn, ...]
    selectable: tuple[str, ...] = ()


KIND_INFO: Final[Mapping[str, KindInfo]] = {
    "MailGateway": KindInfo(
        MailGatewayStatus,
        (
            _READY,
            PrinterColumn("Hostname", ".spec.hostname"),
            PrinterColumn("Domains", ".status.domains", "integer"),
            PrinterColumn("Revision", ".status.config.revision", "integer"),
            PrinterColumn("Consumers", ".status.config.consumers", "integer", wide=True),
            PrinterColumn("UpToDate", ".status.config.upToDate", "integer", wide=True),
            *_WHY,
            _AGE,
        ),
        (".spec.hostname",),
    ),
    "MailDomain": KindInfo(
        MailDomainStatus,
        (
            _READY,
            PrinterColumn("Domain", ".spec.domainName"),
            PrinterColumn("Accounts", ".status.accounts", "integer"),
            PrinterColumn("DNS", _condition("DNSConfigured")),
            replace(_HIDDEN, wide=True),
            *_WHY,
            _AGE,
        ),
        (".spec.domainName", ".spec.gatewayRef.name"),
    ),
    "MailAccount": KindInfo(
        MailAccountStatus,
        (
            _READY,
            PrinterColumn("Domain", ".spec.domainRef.name"),
            PrinterColumn("Addresses", ".status.addressCount", "integer"),
            *_WHY,
            _AGE,
        ),
        (".spec.domainRef.name", ".spec.login"),
    ),
    "MailTransport": KindInfo(
        MailTransportStatus,
        (
            _READY,
            PrinterColumn("Type", ".status.type"),
            PrinterColumn("Endpoint", ".status.endpoint"),
            PrinterColumn("Refs", ".status.referencedBy", "integer"),
            PrinterColumn("Healthy", _condition("Healthy")),
            *_WHY,
            _AGE,
        ),
    ),
    "MailRoute": KindInfo(
        MailRouteStatus,
        (
            _READY,
            PrinterColumn("Level", ".status.level"),
            PrinterColumn("Priority", ".spec.priority", "integer"),
            PrinterColumn("Rules", ".status.ruleCount", "integer"),
            _HIDDEN,
            _CONTRADICTED,
            *_WHY,
            _AGE,
        ),
    ),
}
"""Columns begin with Ready and end with Age; a reader sees first what does not work."""
