"""The Secrets of an installation that nobody gave: made once, renewed in time (docs/decisions/0012).

Names below start with a prefix, the name of the installation:

    <prefix>-ca             the installation's own authorities, with their keys; no pod mounts it
    <prefix>-<role>-tls     tls.crt, tls.key and ca.crt of a role, for gRPC with mutual TLS
    <prefix>-smtp-tls       a self-signed certificate for the listeners of a gateway
    <prefix>-sealing-keys   file name = key id, content = 32 octets in base64 (CFG-02)
    <prefix>-postgres       login of the bundled Postgres, with the keys that CloudNativePG writes

What `plan` decides is pure: what is there, and the time, go in; what is to be written comes out. A Secret that was not
made here (it lacks our label) is never touched. Services read changed files by themselves.

A new authority takes two runs, at least a day apart: first everyone is told to trust it, then it signs. So two pods of
which only one has its new certificate still know each other.
"""

import base64
import binascii
import datetime
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any
from urllib.parse import quote

from mailrail.cluster import POSTGRES_PORT
from mailrail.kit.certificates import (
    CA_LIFETIME,
    LIFETIME,
    SEALING_KEY_SIZE,
    SMTP_LIFETIME,
    Pair,
    due,
    issue,
    make_authority,
    names_of,
    self_signed,
    signed_by,
)
from mailrail.kit.kubernetes import Api, ApiError, core_path
from mailrail.kit.rpc import ROLE_SUFFIX

ROLES = ("config", "queue", "ingress", "outbound", "policy", "operator", "cli")
"""Who has a certificate."""
MADE_BY = ("app.kubernetes.io/managed-by", "mailrail-keys")
"""The label of Secrets that are made here."""
RIPE = datetime.timedelta(days=1)
"""How long everyone is told to trust a new authority before it signs; the kubelet needs a minute or two."""
_ROUNDS = 5


class KeyPart(Enum):
    """What is made; the rest was given."""

    MTLS = "mtls"
    SEALING = "sealing"
    SMTP = "smtp"
    POSTGRES = "postgres"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What an installation needs."""

    prefix: str
    parts: frozenset[KeyPart]
    smtp_names: tuple[str, ...] = ("localhost",)
    """Host names of the SMTP certificate."""
    postgres_host: str = "localhost"
    """Where the bundled Postgres will be reached, for its URL."""
    roles: tuple[str, ...] = ROLES

    def names(self) -> tuple[str, ...]:
        """Names of all Secrets."""
        found: list[str] = []
        if KeyPart.MTLS in self.parts:
            found += [self.authority, *(self.role(r) for r in self.roles)]
        if KeyPart.SEALING in self.parts:
            found.append(self.sealing)
        if KeyPart.SMTP in self.parts:
            found.append(self.smtp)
        if KeyPart.POSTGRES in self.parts:
            found.append(self.postgres)
        return tuple(found)

    @property
    def authority(self) -> str:
        """Name of the Secret with the authorities."""
        return f"{self.prefix}-ca"

    def role(self, role: str) -> str:
        """Name of the Secret of a role."""
        return f"{self.prefix}-{role}-tls"

    @property
    def sealing(self) -> str:
        """Name of the Secret with the sealing keys."""
        return f"{self.prefix}-sealing-keys"

    @property
    def smtp(self) -> str:
        """Name of the Secret with the SMTP certificate."""
        return f"{self.prefix}-smtp-tls"

    @property
    def postgres(self) -> str:
        """Name of the Secret with the login of the bundled Postgres."""
        return f"{self.prefix}-postgres"


@dataclass(frozen=True)
class Secret:
    """A Secret as far as we care."""

    data: Mapping[str, bytes] = field(repr=False)
    type: str = "Opaque"
    ours: bool = True


def plan(wanted: Wanted, found: Mapping[str, Secret], now: datetime.datetime) -> dict[str, Secret]:
    """Which Secrets to write, by name: missing ones and those that are due. Equal ones are left out."""
    made: dict[str, Secret] = {}
    if KeyPart.MTLS in wanted.parts:
        made |= _mutual_tls(wanted, found, now)
    if KeyPart.SEALING in wanted.parts and wanted.sealing not in found:
        # The id holds the time, so that the newest is the greatest; and chance, since a key that was lost and made anew
        # must not pass for the old one: what is sealed under an unknown id is sealed again.
        key_id = f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
        made[wanted.sealing] = Secret({key_id: base64.b64encode(secrets.token_bytes(SEALING_KEY_SIZE)) + b"\n"})
    if KeyPart.SMTP in wanted.parts:
        held = _pair(found.get(wanted.smtp))
        names = list(wanted.smtp_names)
        if held is None or due(held, SMTP_LIFETIME, now) or sorted(names_of(held.certificate)) != sorted(names):
            fresh = self_signed(names, now)
            # Nobody vouches for it but itself: whoever wants to verify it takes it as its own authority.
            made[wanted.smtp] = _tls(fresh, fresh.certificate_pem)
    if KeyPart.POSTGRES in wanted.parts and wanted.postgres not in found:
        made[wanted.postgres] = _login(wanted.postgres_host)
    return {name: secret for name, secret in made.items() if name not in found or found[name].ours}


def _mutual_tls(wanted: Wanted, found: Mapping[str, Secret], now: datetime.datetime) -> dict[str, Secret]:
    made: dict[str, Secret] = {}
    authorities = _authorities(found.get(wanted.authority), now)
    if not authorities or due(authorities[-1], CA_LIFETIME, now):
        authorities.append(make_authority(f"Mailrail {wanted.prefix}", now))
    kept = _stored(authorities)
    if wanted.authority not in found or found[wanted.authority].data != kept:
        made[wanted.authority] = Secret(kept)
    ripe = [a for a in authorities if a.certificate.not_valid_before_utc + RIPE <= now]
    # The newest that everyone had the time to trust; at the very beginning, the only one.
    authority = ripe[-1] if ripe else authorities[0]
    trusted = b"".join(a.certificate_pem for a in reversed(authorities))
    for role in wanted.roles:
        name, names = wanted.role(role), [role + ROLE_SUFFIX]
        secret = found.get(name)
        held = _pair(secret)
        if (
            secret is None
            or held is None
            or due(held, LIFETIME, now)
            or names_of(held.certificate) != names
            or not signed_by(held.certificate, authority.certificate)
        ):
            held = issue(authority, role, names, now)
            made[name] = _tls(held, trusted)
        elif secret.data.get("ca.crt") != trusted:
            made[name] = _tls(held, trusted)
    return made


def _authorities(secret: Secret | None, now: datetime.datetime) -> list[Pair]:
    """Those that have not expired, oldest first."""
    if secret is None:
        return []
    pairs = (
        Pair.read(content, secret.data.get(name.removesuffix(".crt") + ".key", b""))
        for name, content in secret.data.items()
        if name.endswith(".crt")
    )
    valid = [p for p in pairs if p is not None and p.certificate.not_valid_after_utc > now]
    return sorted(valid, key=lambda p: p.certificate.not_valid_before_utc)


def _stored(authorities: Sequence[Pair]) -> dict[str, bytes]:
    stored: dict[str, bytes] = {}
    for authority in authorities:
        name = f"{authority.certificate.not_valid_before_utc:%Y%m%dT%H%M%SZ}"
        stored |= {f"{name}.crt": authority.certificate_pem, f"{name}.key": authority.key_pem}
    return stored


def _pair(secret: Secret | None) -> Pair | None:
    return None if secret is None else Pair.read(secret.data.get("tls.crt", b""), secret.data.get("tls.key", b""))


def _tls(pair: Pair, authorities: bytes) -> Secret:
    data = {"tls.crt": pair.certificate_pem, "tls.key": pair.key_pem, "ca.crt": authorities}
    return Secret(data, "kubernetes.io/tls")


def _login(host: str) -> Secret:
    password = secrets.token_urlsafe(24)
    values = {
        "username": "mailrail",
        "password": password,
        "dbname": "mailrail",
        "host": host,
        "port": str(POSTGRES_PORT),
        "uri": f"postgresql://mailrail:{quote(password, safe='')}@{host}:{POSTGRES_PORT}/mailrail",
    }
    return Secret({name: value.encode() for name, value in values.items()})


# --- the API server -------------------------------------------------------------------------------------------------


async def ensure(
    api: Api, namespace: str, wanted: Wanted, labels: Mapping[str, str], now: datetime.datetime
) -> list[str]:
    """Make and renew what `plan` says; names of the Secrets that were written. Safe from several processes at once.

    Raises ApiError, or what aiohttp raises when the API server is unreachable.
    """
    written: list[str] = []
    for _ in range(_ROUNDS):
        objects = {name: await api.get(core_path("secrets", namespace, name)) for name in wanted.names()}
        found = {name: _from_object(o) for name, o in objects.items() if o is not None}
        due_now = plan(wanted, found, now)
        try:
            for name, secret in due_now.items():  # the authority is the first
                await _write(api, namespace, name, secret, objects[name], labels)
                written.append(name)
        except ApiError as error:
            if error.code == 409:  # somebody else wrote it meanwhile: look again
                continue
            raise
        return written
    raise ApiError(409, "another process keeps writing the same Secrets; run this again")


async def _write(
    api: Api, namespace: str, name: str, secret: Secret, before: Mapping[str, Any] | None, labels: Mapping[str, str]
) -> None:
    metadata: dict[str, Any] = {"name": name, "namespace": namespace, "labels": dict(labels) | dict([MADE_BY])}
    if before is not None:
        metadata["resourceVersion"] = before["metadata"]["resourceVersion"]
    body = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": secret.type,
        "data": {key: base64.b64encode(content).decode() for key, content in secret.data.items()},
    }
    if before is None:
        await api.call("POST", core_path("secrets", namespace), body)
    else:
        await api.call("PUT", core_path("secrets", namespace, name), body)


def _from_object(body: Mapping[str, Any]) -> Secret:
    data: dict[str, bytes] = {}
    for key, text in (body.get("data") or {}).items():
        try:
            data[key] = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            data[key] = b""
    labels = body["metadata"].get("labels") or {}
    return Secret(data, body.get("type", "Opaque"), labels.get(MADE_BY[0]) == MADE_BY[1])
