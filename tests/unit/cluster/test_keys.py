"""Secrets of an installation: made once, renewed in time, and never so that two pods stop knowing each other."""

import base64
import copy
import datetime
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from cryptography import x509

from mailrail.cluster.keys import RIPE, ROLES, KeyPart, Secret, Wanted, ensure, plan
from mailrail.core.revision.sealing import Keyring
from mailrail.kit.certificates import CA_LIFETIME, LIFETIME, Clock, Pair, utc_now
from mailrail.kit.kubernetes import Api, ApiError

NOW = datetime.datetime(2026, 11, 1, 12, tzinfo=datetime.UTC)
EVERYTHING = Wanted(prefix="mail", parts=frozenset(KeyPart), smtp_names=("mx.example.org", "192.0.2.1"))


def after(found: Mapping[str, Secret], now: datetime.datetime, wanted: Wanted = EVERYTHING) -> dict[str, Secret]:
    """What is there once `plan` was followed."""
    return {**found, **plan(wanted, found, now)}


def shake_hands(server: Secret, client: Secret, folder: Path) -> None:
    """Mutual TLS in memory between two roles; raises ssl.SSLError."""
    sides: list[ssl.SSLObject] = []
    wires = [ssl.MemoryBIO(), ssl.MemoryBIO()]
    for number, (secret, purpose) in enumerate(((server, ssl.PROTOCOL_TLS_SERVER), (client, ssl.PROTOCOL_TLS_CLIENT))):
        pem = folder / f"{number}.pem"
        pem.write_bytes(secret.data["tls.crt"] + secret.data["tls.key"])
        context = ssl.SSLContext(purpose)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(pem)
        context.load_verify_locations(cadata=secret.data["ca.crt"].decode())
        # The handshake is over, on both sides, within these exchanges; the certificate of the client is checked in it.
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        sides.append(context.wrap_bio(wires[number], wires[1 - number], server_side=purpose is ssl.PROTOCOL_TLS_SERVER))
    open_sides = sides[::-1]
    for _ in range(6):
        for side in list(open_sides):
            try:
                side.do_handshake()
                open_sides.remove(side)
            except ssl.SSLWantReadError:
                continue
    assert not open_sides


def test_the_first_run_makes_everything_and_the_second_nothing() -> None:
    made = plan(EVERYTHING, {}, NOW)
    assert set(made) == set(EVERYTHING.names())
    assert plan(EVERYTHING, made, NOW) == {}


@pytest.mark.parametrize("part", list(KeyPart))
def test_only_what_is_asked_for_is_made(part: KeyPart) -> None:
    wanted = Wanted(prefix="mail", parts=frozenset((part,)))
    assert set(plan(wanted, {}, NOW)) == set(wanted.names())


def test_every_role_can_speak_with_every_other(tmp_path: Path) -> None:
    made = plan(EVERYTHING, {}, NOW)
    for one in ROLES:
        for other in ROLES:
            shake_hands(made[EVERYTHING.role(one)], made[EVERYTHING.role(other)], tmp_path)


def test_a_certificate_is_renewed_when_a_third_of_its_life_is_left() -> None:
    made = plan(EVERYTHING, {}, NOW)
    assert not plan(EVERYTHING, made, NOW + LIFETIME * 0.6)
    renewed = plan(EVERYTHING, made, NOW + LIFETIME * 0.7)
    assert set(renewed) == {EVERYTHING.role(r) for r in ROLES}


def test_a_new_authority_is_trusted_a_day_before_it_signs(tmp_path: Path) -> None:
    late = utc_now() - RIPE - datetime.timedelta(hours=2)  # TLS goes by the real clock, so the end of this is now
    before = plan(EVERYTHING, {}, late - CA_LIFETIME * 2 / 3 - datetime.timedelta(hours=1))
    old = after(before, late - datetime.timedelta(days=1))  # role certificates are young, the authority comes of age
    told = after(old, late)
    role = EVERYTHING.role
    assert told[EVERYTHING.authority] != old[EVERYTHING.authority]
    for name in ("queue", "ingress"):
        assert told[role(name)].data["tls.crt"] == old[role(name)].data["tls.crt"], "it still signs as before"
        authorities = x509.load_pem_x509_certificates(told[role(name)].data["ca.crt"])
        assert len(authorities) == 2
    assert plan(EVERYTHING, told, late + RIPE / 2) == {}
    signed = after(told, late + RIPE + datetime.timedelta(hours=1))
    assert signed[role("queue")].data["tls.crt"] != told[role("queue")].data["tls.crt"]
    # A pod that has the new files and one that has not: whoever calls whom.
    shake_hands(signed[role("queue")], told[role("ingress")], tmp_path)
    shake_hands(told[role("queue")], signed[role("ingress")], tmp_path)


def test_an_authority_that_expired_is_trusted_no_more() -> None:
    made = plan(EVERYTHING, {}, NOW)
    end = NOW + CA_LIFETIME
    later = after(after(made, end - datetime.timedelta(days=30)), end + datetime.timedelta(days=1))
    (only,) = x509.load_pem_x509_certificates(later[EVERYTHING.role("queue")].data["ca.crt"])
    assert only.not_valid_after_utc > end + datetime.timedelta(days=1)


@pytest.mark.parametrize("damage", [{}, {"tls.crt": b"?", "tls.key": b"?"}])
def test_a_damaged_secret_is_made_anew(damage: dict[str, bytes]) -> None:
    made = plan(EVERYTHING, {}, NOW)
    name = EVERYTHING.role("queue")
    assert set(plan(EVERYTHING, {**made, name: Secret(damage)}, NOW)) == {name}


def test_a_secret_that_somebody_else_made_is_never_touched() -> None:
    theirs = {name: Secret({"tls.crt": b"?"}, ours=False) for name in EVERYTHING.names()}
    assert plan(EVERYTHING, theirs, NOW) == {}


def test_sealing_keys_are_never_replaced_and_a_lost_one_comes_back_under_a_greater_id_CFG_02() -> None:
    first = plan(EVERYTHING, {}, NOW)[EVERYTHING.sealing]
    again = plan(EVERYTHING, {}, NOW + datetime.timedelta(seconds=1))[EVERYTHING.sealing]
    (old,), (new,) = first.data, again.data
    assert new > old, "the greatest id seals"
    ring = Keyring({key: base64.b64decode(content) for key, content in {**first.data, **again.data}.items()})
    assert ring.newest == new
    kept = {EVERYTHING.sealing: Secret({"mine": b""})}
    assert EVERYTHING.sealing not in plan(EVERYTHING, kept, NOW + LIFETIME * 5)


def test_another_list_of_names_makes_another_smtp_certificate() -> None:
    made = plan(EVERYTHING, {}, NOW)
    other = Wanted(prefix="mail", parts=frozenset(KeyPart), smtp_names=("mx2.example.org",))
    fresh = plan(other, made, NOW)
    assert set(fresh) == {other.smtp}
    pair = Pair.read(fresh[other.smtp].data["tls.crt"], fresh[other.smtp].data["tls.key"])
    assert pair is not None
    names = pair.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["mx2.example.org"]


def test_the_login_of_the_bundled_postgres_has_the_keys_that_cloudnativepg_writes() -> None:
    wanted = Wanted(prefix="mail", parts=frozenset((KeyPart.POSTGRES,)), postgres_host="mail-postgres.mail.svc")
    data = {key: value.decode() for key, value in plan(wanted, {}, NOW)[wanted.postgres].data.items()}
    assert set(data) == {"username", "password", "dbname", "host", "port", "uri"}
    url = urlsplit(data["uri"])
    assert (url.hostname, str(url.port), url.path.lstrip("/")) == (data["host"], data["port"], data["dbname"])
    assert (url.username, unquote(url.password or "")) == (data["username"], data["password"])


# --- against an API server ------------------------------------------------------------------------------------------


class Server(Api):
    """Secrets in memory, with the API server's rule that whoever writes must have read the newest."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.version = 0
        self.rival: Clock | None = None
        """Called before the next write: somebody else who is at it, too."""

    async def get(self, path: str) -> dict[str, Any] | None:
        """A Secret, or None."""
        return copy.deepcopy(self.objects.get(path))

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None, **_: Any) -> dict[str, Any]:
        """POST and PUT of a Secret."""
        assert body is not None
        if self.rival is not None:
            rival, self.rival = self.rival, None
            rival()
        stored = copy.deepcopy(dict(body))
        if method == "POST":
            path = f"{path}/{stored['metadata']['name']}"
            if path in self.objects:
                raise ApiError(409, "already exists")
        elif self.objects[path]["metadata"]["resourceVersion"] != stored["metadata"]["resourceVersion"]:
            raise ApiError(409, "the object has been modified")
        self.version += 1
        stored["metadata"]["resourceVersion"] = str(self.version)
        self.objects[path] = stored
        return stored


async def test_what_was_written_once_is_found_again() -> None:
    server = Server()
    labels = {"app.kubernetes.io/instance": "mail"}
    assert set(await ensure(server, "ns", EVERYTHING, labels, NOW)) == set(EVERYTHING.names())
    assert await ensure(server, "ns", EVERYTHING, labels, NOW) == []
    body = server.objects[f"/api/v1/namespaces/ns/secrets/{EVERYTHING.role('queue')}"]
    assert body["type"] == "kubernetes.io/tls"
    assert body["metadata"]["labels"]["app.kubernetes.io/instance"] == "mail"


async def test_two_that_write_at_once_end_with_one_authority(tmp_path: Path) -> None:
    server, other = Server(), Server()
    await ensure(other, "ns", EVERYTHING, {}, NOW)
    authority = f"/api/v1/namespaces/ns/secrets/{EVERYTHING.authority}"

    def rival() -> datetime.datetime:
        server.objects[authority] = other.objects[authority]
        return NOW

    server.rival = rival
    await ensure(server, "ns", EVERYTHING, {}, NOW)
    queue = server.objects[f"/api/v1/namespaces/ns/secrets/{EVERYTHING.role('queue')}"]["data"]
    ingress = other.objects[f"/api/v1/namespaces/ns/secrets/{EVERYTHING.role('ingress')}"]["data"]
    secrets = [Secret({k: base64.b64decode(v) for k, v in data.items()}) for data in (queue, ingress)]
    shake_hands(secrets[0], secrets[1], tmp_path)
