"""Documents tried out over what is accepted: nothing else changes, and nothing is stored (DIF-02, DIF-07)."""

import json
from typing import Any

import pytest

from mailrail.core.config.compiler import Compiled, compile
from mailrail.core.config.loader import Document
from mailrail.core.config.reading import Sources
from mailrail.core.config.trial import OBJECTS_LIMIT, OCTETS_LIMIT, Trial, TrialMode, TrialRefused, read, try_out
from mailrail.core.resources import API_VERSION
from mailrail.core.revision.sealing import Keyring

KEYS = Keyring({"k1": bytes(32)})
OTHER_KEYS = Keyring({"k2": b"x" * 32})
Content = dict[str, Any]


def resource(kind: str, name: str, spec: Content) -> Content:
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name, "namespace": "default"}, "spec": spec}


def secret(name: str, **values: str) -> Content:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": "default"},
        "stringData": values,
    }


def smarthost(host: str) -> Content:
    return resource("MailTransport", "relay", {"submission": {"host": host, "auth": {"secretRef": {"name": "login"}}}})


def route(name: str, *domains: str) -> Content:
    rule = {"matches": [{"toDomains": list(domains)}], "transportRef": {"name": "relay"}}
    return resource("MailRoute", name, {"parentRefs": [{"kind": "MailGateway", "name": "edge"}], "rules": [rule]})


BASE = [
    resource(
        "MailGateway",
        "edge",
        {
            "hostname": "mail.example.org",
            "listeners": [{"name": "mx", "protocol": "MX", "port": 25}],
            "postmaster": {"accountRef": {"name": "alice"}},
        },
    ),
    resource(
        "MailDomain",
        "here",
        {"domainName": "example.org", "gatewayRef": {"name": "edge"}, "delivery": {"mailbox": {}}},
    ),
    resource(
        "MailAccount",
        "alice",
        {"domainRef": {"name": "here"}, "addresses": ["alice"], "credentialsSecretRef": {"name": "password"}},
    ),
    smarthost("relay.example.net"),
    route("a", "a.example"),
]
SECRETS = [secret("login", username="us", password="looking-glass"), secret("password", password="wonderland")]


@pytest.fixture(scope="module", params=["cluster", "folder"])
def accepted(request: pytest.FixtureRequest) -> Compiled:
    """What is accepted, on a cluster or in files."""
    files: dict[str, bytes] | None = {} if request.param == "folder" else None
    documents = [Document(content) for content in (*BASE, *SECRETS)]
    compiled = compile(Sources(tuple(documents), files=files), compile(Sources(), _nothing(), KEYS).state, KEYS)
    assert not compiled.diagnostics.errors
    return compiled


def _nothing() -> Any:
    from mailrail.core.config.state import CompilerState

    return CompilerState()


def tried(accepted: Compiled, *contents: Content | str, mode: TrialMode = TrialMode.MERGE) -> Trial:
    files = [(f"{n}.yaml", (c if isinstance(c, str) else json.dumps(c)).encode()) for n, c in enumerate(contents)]
    return try_out(read(files), mode, accepted.state, OTHER_KEYS, 0)


def domains(compiled: Compiled) -> set[str]:
    return {
        domain
        for level in compiled.revision.global_routes
        for rule in level.rules
        for match in rule.matches
        for domain in match.to_domains
    }


def test_no_documents_are_no_change_CFG_01(accepted: Compiled) -> None:
    found = tried(accepted)
    assert found.candidate.encoded == found.base.encoded == accepted.encoded
    assert (found.findings, found.is_bad) == ((), False)


def test_merged_documents_replace_objects_or_add_some_and_all_else_stays_DIF_02(accepted: Compiled) -> None:
    found = tried(accepted, route("b", "b.example"), smarthost("other.example.net"))
    assert domains(found.candidate) == {"a.example", "b.example"}
    (transport,) = found.candidate.revision.transports
    assert (transport.host, transport.username) == ("other.example.net", "us"), "its Secret counts as unchanged"
    assert found.candidate.revision.accounts == accepted.revision.accounts
    assert found.findings == ()
    assert found.base.encoded == accepted.encoded


def test_replacing_documents_are_all_there_is_DIF_02(accepted: Compiled) -> None:
    found = tried(accepted, *(c for c in BASE if c["metadata"]["name"] != "a"), mode=TrialMode.REPLACE)
    assert domains(found.candidate) == set()
    assert found.candidate.revision.transports == accepted.revision.transports
    assert not found.is_bad


def test_deleted_objects_go_and_who_misses_them_is_told_DIF_02(accepted: Compiled) -> None:
    found = tried(accepted, smarthost("whatever.example"), mode=TrialMode.DELETE)
    assert found.candidate.revision.transports == ()
    assert domains(found.candidate) == {"a.example"}
    assert [str(one.ref) for one in found.findings] == ["MailRoute default/a"]
    gone = tried(accepted, route("a"), mode=TrialMode.DELETE)
    assert domains(gone.candidate) == set()
    assert tried(accepted, route("absent"), mode=TrialMode.DELETE).is_bad


def test_a_bad_document_is_named_with_its_line_and_what_was_accepted_stays_DIF_02(accepted: Compiled) -> None:
    broken = json.dumps(route("b", "b.example")) + "\n---\n" + json.dumps(route("a", "not a domain"))
    found = tried(accepted, broken)
    assert found.is_bad
    assert domains(found.candidate) == {"a.example", "b.example"}
    assert any(one.place.origin == "0.yaml" and one.place.line == 3 for one in found.findings)
    unreadable = tried(accepted, "kind: [")
    assert unreadable.is_bad
    assert unreadable.candidate.encoded == accepted.encoded


def test_nothing_of_a_secret_comes_out_of_a_trial_DIF_07(accepted: Compiled) -> None:
    found = tried(accepted, secret("login", username="us", password="jabberwocky"), secret("broken", password=7))  # type: ignore[arg-type]
    assert b"jabberwocky" not in found.candidate.encoded
    assert "jabberwocky" not in str(found.findings)
    assert "jabberwocky" not in repr(found)


def test_too_many_or_too_large_documents_are_refused_before_they_are_read_DIF_07() -> None:
    with pytest.raises(TrialRefused, match="more than 1024 KiB"):
        read([("a", b"x" * OCTETS_LIMIT), ("b", b"x")])
    with pytest.raises(TrialRefused, match="more than 5000 documents"):
        read([("a", b"---\na: 1\n" * (OBJECTS_LIMIT + 1))])
