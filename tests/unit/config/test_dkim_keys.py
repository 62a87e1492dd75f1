"""DKIM keys of domains: which of them signs, and what becomes of mail whose key cannot be used."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mailrail.core.config.compiler import Compiled, compile
from mailrail.core.config.diagnostics import ConditionType, Reason, Status
from mailrail.core.config.loader import Document
from mailrail.core.config.reading import Sources
from mailrail.core.config.state import CompilerState, decode_state, encode_state
from mailrail.core.dkim.key import write_key_record
from mailrail.core.dkim.rotation import DAY, KeyStage
from mailrail.core.dkim.sign import read_private_key
from mailrail.core.revision.revision import Domain, ObjectRef, Role, canonical_json, decode, secrets_for
from mailrail.core.revision.sealing import Keyring

KEYS = Keyring({"k1": bytes(32)})
NOW = 1_800_000_000
ORG = ObjectRef("MailDomain", "mail", "org")
Content = dict[str, Any]


@cache
def pem(kind: str, number: int = 0) -> str:
    key = Ed25519PrivateKey.generate() if kind == "ed25519" else generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def record(text: str) -> str:
    return write_key_record(read_private_key(text.encode()).public_key())


def resource(kind: str, name: str, spec: Content, namespace: str = "mail") -> Content:
    return {
        "apiVersion": "mailrail.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def secret(name: str, namespace: str = "mail", **values: str) -> Content:
    data = {f"{selector}.pem": text for selector, text in values.items()}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": data}


def selector(name: str, of: str = "dkim", **more: Any) -> Content:
    return {"name": name, "privateKeySecretRef": {"name": of}} | more


def domain(name: str, domain_name: str, *selectors: Content, namespace: str = "mail", **more: Any) -> Content:
    also = {"alsoSignAs": more.pop("also")} if "also" in more else {}
    spec = {
        "domainName": domain_name,
        "gatewayRef": {"name": "edge", "namespace": "mail"},
        "delivery": {"mailbox": {}},
        "dkim": {"selectors": list(selectors)} | also,
    }
    return resource("MailDomain", name, spec | more, namespace)


BASE = (
    resource(
        "MailGateway",
        "edge",
        {
            "hostname": "mx1.example.org",
            "listeners": [{"name": "mx", "protocol": "MX", "port": 25}],
            "postmaster": {"accountRef": {"name": "postmaster"}},
            "attach": [
                {"name": "all", "kinds": ["MailDomain"], "namespaces": {"from": "All"}, "domainNames": ["."]},
            ],
        },
    ),
    resource("MailAccount", "postmaster", {"domainRef": {"name": "org"}, "addresses": ["postmaster"]}),
)


def build(
    *documents: Content, seen: Mapping[tuple[str, str], float] | None = None, previous: CompilerState | None = None
) -> Compiled:
    sources = Sources(tuple(Document(d) for d in (*BASE, *documents)), keys_seen=seen or {}, now=NOW)
    return compile(sources, previous or CompilerState(), KEYS)


def found(compiled: Compiled, ref: ObjectRef = ORG) -> Domain:
    return next(each for each in compiled.revision.domains if each.ref == ref)


def stages(compiled: Compiled) -> dict[str, str]:
    return {key.selector: key.stage.value for key in found(compiled).dkim}


def reference(compiled: Compiled, ref: ObjectRef = ORG) -> tuple[Status, Reason, str]:
    status = next(each for each in compiled.diagnostics.objects if each.ref == ref)
    condition = status.condition(ConditionType.RESOLVED_REFS)
    assert condition is not None
    return condition.status, condition.reason, condition.message


def test_an_rsa_and_an_ed25519_key_sign_together_and_reach_ingress_and_queue_alone_DKIM_08b() -> None:
    compiled = build(
        domain("org", "example.org", selector("a-rsa"), selector("a-ed")),
        secret("dkim", **{"a-rsa": pem("rsa"), "a-ed": pem("ed25519")}),
    )
    keys = found(compiled).dkim
    assert [(key.selector, key.algorithm, key.signs) for key in keys] == [
        ("a-rsa", "rsa-sha256", True),
        ("a-ed", "ed25519-sha256", True),
    ]
    assert [key.record for key in keys] == [record(pem("rsa")), record(pem("ed25519"))]
    paths = {key.private_key.path for key in keys}
    assert compiled.values[keys[0].private_key.path]() == pem("rsa").encode()
    for role in Role:
        held = paths & secrets_for(compiled.revision, role)
        assert held == (paths if role in (Role.INGRESS, Role.QUEUE) else set()), role
    assert b"PRIVATE" not in compiled.encoded + canonical_json(compiled.state)
    assert decode(compiled.encoded) == compiled.revision
    assert reference(compiled)[0] is Status.TRUE


def test_a_new_key_signs_two_days_after_its_record_was_seen_and_never_is_there_a_gap() -> None:
    documents = (
        domain("org", "example.org", selector("old"), selector("new")),
        secret("dkim", old=pem("rsa"), new=pem("rsa", 1)),
    )
    old = ("old._domainkey.example.org", record(pem("rsa")))
    new = ("new._domainkey.example.org", record(pem("rsa", 1)))
    assert stages(build(*documents)) == {"old": "signing", "new": "new"}
    assert stages(build(*documents, seen={old: NOW - 90 * DAY})) == {"old": "signing", "new": "new"}
    waiting = build(*documents, seen={old: NOW - 90 * DAY, new: NOW - DAY})
    assert stages(waiting) == {"old": "signing", "new": "waiting"}
    assert waiting.again_at == NOW + DAY
    ready = build(*documents, seen={old: NOW - 90 * DAY, new: NOW - 2 * DAY})
    assert stages(ready) == {"old": "retired", "new": "signing"}
    assert ready.again_at == NOW + 14 * DAY
    assert stages(build(*documents, seen={old: NOW - 90 * DAY, new: NOW - 16 * DAY})) == {
        "old": "removable",
        "new": "signing",
    }
    # A record of another key under the same name says nothing of this one.
    other = (new[0], record(pem("rsa", 2)))
    assert stages(build(*documents, seen={old: NOW - 90 * DAY, other: NOW - 9 * DAY}))["old"] == "signing"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("Auto", "Always", {"old": "retired", "new": "signing"}),
        ("Always", "Auto", {"old": "signing", "new": "waiting"}),
        ("Always", "Always", {"old": "signing", "new": "signing"}),
        ("Never", "Auto", {"old": "retired", "new": "signing"}),
        ("Never", "Never", {"old": "retired", "new": "retired"}),
    ],
)
def test_what_the_domain_says_of_a_key_comes_before_what_the_dns_says(
    old: str, new: str, expected: dict[str, str]
) -> None:
    seen = {("new._domainkey.example.org", record(pem("rsa", 1))): float(NOW - 3 * DAY)}
    compiled = build(
        domain("org", "example.org", selector("old", sign=old), selector("new", sign=new)),
        secret("dkim", old=pem("rsa"), new=pem("rsa", 1)),
        seen=seen,
    )
    assert stages(compiled) == expected


@pytest.mark.parametrize(
    ("content", "reason", "words"),
    [
        (None, Reason.SECRET_NOT_FOUND, "Secret mail/dkim does not exist"),
        ({"other": "x"}, Reason.SECRET_NOT_FOUND, "has no key s.pem"),
        ({"s": "-----BEGIN nonsense"}, Reason.SECRET_INVALID, "no private key in PEM"),
        ({"s": "x" * 20_000}, Reason.SECRET_INVALID, "at most 16384"),
    ],
)
def test_mail_goes_unsigned_and_the_status_says_so_where_a_key_cannot_be_used(
    content: dict[str, str] | None, reason: Reason, words: str
) -> None:
    documents = [domain("org", "example.org", selector("s"))]
    documents += [secret("dkim", **content)] if content is not None else []
    compiled = build(*documents)
    assert found(compiled).dkim == ()
    status, why, message = reference(compiled)
    assert (status, why) == (Status.FALSE, reason)
    assert words in message
    assert "mail is not signed with it" in message
    assert "spec.dkim.selectors[0].privateKeySecretRef.name" in message


def test_an_ed25519_key_never_signs_alone_DKIM_08b() -> None:
    compiled = build(domain("org", "example.org", selector("s")), secret("dkim", s=pem("ed25519")))
    assert stages(compiled) == {"s": "new"}
    assert reference(compiled)[:2] == (Status.FALSE, Reason.SIGNING_NOT_POSSIBLE)


def test_while_its_secret_cannot_be_read_a_key_signs_on() -> None:
    good = domain("org", "example.org", selector("s"))
    first = build(good, secret("dkim", s=pem("rsa")))
    broken = secret("dkim") | {"stringData": {"s.pem": 1}}
    second = build(good, broken, previous=decode_state(encode_state(first.state)))
    assert found(second).dkim == found(first).dkim
    assert stages(build(good, previous=first.state)) == {}  # one that is gone signs no more


def test_another_domain_signs_too_where_it_lets_the_first_one_DKIM_08a() -> None:
    entry = {"name": "customers", "kinds": ["MailDomain"], "namespaces": {"from": "All"}}
    customer = domain("org", "example.org", selector("s"), also=[{"name": "provider", "namespace": "hosting"}])
    keys = secret("dkim", s=pem("rsa")), secret("dkim", "hosting", p=pem("rsa", 1))

    def provider(*selectors: Content, **more: Any) -> Content:
        return domain("provider", "provider.example", *selectors, namespace="hosting", **more)

    compiled = build(customer, provider(selector("p"), attach=[entry]), *keys)
    assert found(compiled).also_sign_as == ("provider.example",)
    for documents, reason in (
        ([provider(selector("p"))], Reason.REF_NOT_PERMITTED),
        ([provider(attach=[entry])], Reason.SIGNING_NOT_POSSIBLE),
        ([], Reason.DOMAIN_NOT_FOUND),
    ):
        refused = build(customer, *documents, *keys)
        assert found(refused).also_sign_as == ()
        assert found(refused).dkim[0].signs
        assert reference(refused)[:2] == (Status.FALSE, reason)
        assert "mail goes out without its signature" in reference(refused)[2]


def test_a_key_enters_the_revision_in_the_stage_that_services_read() -> None:
    compiled = build(domain("org", "example.org", selector("s")), secret("dkim", s=pem("rsa")))
    assert found(compiled).dkim[0].stage is KeyStage.SIGNING
    assert build(domain("org", "example.org")).revision.domains[0].dkim == ()
