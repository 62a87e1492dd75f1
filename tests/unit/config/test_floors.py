"""Floors (`security`, `require`) from documents to the revision, and what is said of those that nothing can meet."""

import json
from typing import Any

import pytest
from unit.config.test_compiler import (
    GLOBAL,
    Content,
    account,
    build,
    by_transport,
    domain,
    gateway,
    route,
    to,
    transport,
    words,
)

from mailrail.core.config.diagnostics import ConditionType, Reason, Severity, Status
from mailrail.core.config.pieces import piece_of
from mailrail.core.revision.revision import (
    NO_FLOOR,
    ObjectRef,
    Otherwise,
    Security,
    TlsMinimum,
    TlsProof,
    Unanswered,
    decode,
)

DANE_ONLY = {"minimum": "Authenticated", "proofs": ["DANE"]}
PKIX_ONLY = {"minimum": "Authenticated", "proofs": ["PKIX"]}
ENCRYPTED = {"minimum": "Encrypted"}


def said(field: str, value: Content | None) -> dict[str, Any]:
    """The field, if there is anything to say."""
    return {field: value} if value else {}


def built(edge: Content | None = None, org: Content | None = None, *more: Content) -> Any:
    """A compilation of a gateway and a domain with these floors, and what else there is."""
    return build(
        [
            gateway(**said("security", edge)),
            domain("example-org", "example.org", **said("security", org)),
            account("postmaster", "example-org", "postmaster"),
            *more,
        ]
    )


def test_each_floor_is_in_the_revision_as_it_is_written() -> None:
    every = {"minimum": "Authenticated", "proofs": ["MTASTS", "DANE"], "otherwise": "Fail", "whenUnanswered": "Proceed"}
    compiled = built(
        every,
        ENCRYPTED,
        transport("relay", smtp={"host": "relay.example", "tls": {"mode": "Required"}}, security=ENCRYPTED),
        route("r", GLOBAL, to("relay", "x.example", require={"tls": {"otherwise": "Fail"}}), to(None, "y.example")),
    )
    revision = decode(compiled.encoded)
    assert revision.gateways[0].security == Security(
        TlsMinimum.AUTHENTICATED, (TlsProof.DANE, TlsProof.MTA_STS), Otherwise.FAIL, Unanswered.PROCEED
    )
    assert revision.domains[0].security == revision.transports[0].security == Security(TlsMinimum.ENCRYPTED)
    assert [rule.require for rule in revision.global_routes[0].rules] == [Security(otherwise=Otherwise.FAIL), NO_FLOOR]
    assert words(compiled) == []


@pytest.mark.parametrize("where", ["gateway", "domain", "transport", "rule", "nowhere"])
def test_a_service_that_knows_no_floors_refuses_a_revision_that_has_one(where: str) -> None:
    """Else it would send without what they demand (decision 23)."""
    rule = to("relay", "x.example", **said("require", {"tls": ENCRYPTED} if where == "rule" else None))
    members = said("security", ENCRYPTED if where == "transport" else None)
    compiled = built(
        ENCRYPTED if where == "gateway" else None,
        ENCRYPTED if where == "domain" else None,
        transport("relay", smtp={"host": "relay.example"}, **members),
        route("r", GLOBAL, rule),
    )
    assert compiled.revision.format == (1 if where == "nowhere" else 2)


def test_a_version_that_knows_no_floors_does_not_go_on_with_a_piece_that_has_one() -> None:
    def stored(kind: str, document: Content) -> int:
        made = piece_of(ObjectRef(kind, "default", document["metadata"]["name"]), json.dumps(document))[1]
        assert made is not None
        return made.format

    assert stored("MailGateway", gateway()) == 1
    assert stored("MailGateway", gateway(security=ENCRYPTED)) == 2
    assert stored("MailDomain", domain("a", "a.example", security=ENCRYPTED)) == 2
    assert stored("MailTransport", transport("t", direct={}, security=ENCRYPTED)) == 2
    assert stored("MailRoute", route("r", GLOBAL, to(None, "x.example", require={"tls": ENCRYPTED}))) == 2
    assert stored("MailRoute", route("r", GLOBAL, to(None, "x.example"))) == 1
    assert stored("MailAccount", account("a", "b", "c")) == 1


def test_a_domain_whose_floor_shares_no_proof_with_the_gateways_is_told_so() -> None:
    compiled = built(DANE_ONLY, PKIX_ONLY)
    assert words(compiled, Severity.WAITING) == [
        "MailDomain default/example-org: spec.security: MailGateway default/edge and MailDomain default/example-org "
        "leave no proof that all of them allow; no mail of its senders leaves"
    ]
    found = compiled.diagnostics.of("MailDomain", "example-org").condition(ConditionType.RESOLVED_REFS)
    assert found is not None
    assert (found.status, found.reason) == (Status.FALSE, Reason.SECURITY_NOT_POSSIBLE)


@pytest.mark.parametrize("parents", [GLOBAL, [("MailDomain", "example-org")], [("MailAccount", "postmaster")]])
def test_a_rule_that_leaves_no_proof_is_told_so_at_each_level(parents: list[tuple[str, str]]) -> None:
    compiled = built(DANE_ONLY, None, route("r", parents, to(None, "x.example", require={"tls": PKIX_ONLY})))
    (told,) = words(compiled, Severity.WAITING)
    assert told == (
        "MailRoute default/r: spec.rules[0]: MailGateway default/edge and MailRoute default/r rule 0 leave no proof "
        "that all of them allow; matching mail cannot leave"
    )


def test_a_rule_is_told_once_that_it_leads_to_a_host_without_tls() -> None:
    """RTLS-02: no demand is met by a way that has none."""
    clear = transport("clear", smtp={"host": "relay.example", "tls": {"mode": "Disabled"}})
    both = [*GLOBAL, ("MailDomain", "example-org")]
    compiled = built(ENCRYPTED, None, clear, route("r", both, to("clear", "x.example")))
    (told,) = words(compiled, Severity.WAITING)
    assert told.endswith(
        "spec.rules[0]: MailGateway default/edge demands security.minimum Encrypted, and MailTransport default/clear "
        "says tls.mode Disabled; matching mail cannot leave"
    )


@pytest.mark.parametrize(
    ("host", "proofs", "possible"),
    [
        ("relay.example", ["MTASTS"], False),
        ("relay.example", ["DANE", "MTASTS"], True),
        ("relay.example", ["MTASTS", "PKIX"], True),
        ("192.0.2.25", ["DANE", "MTASTS"], False),
        ("192.0.2.25", ["PKIX"], True),
    ],
)
def test_a_rule_is_told_that_the_host_of_its_transport_can_never_give_the_proof_STS_09c(
    host: str, proofs: list[str], possible: bool
) -> None:
    relay = transport("relay", smtp={"host": host})
    floor = {"minimum": "Authenticated", "proofs": proofs}
    compiled = built(None, None, relay, route("r", GLOBAL, to("relay", "x.example", require={"tls": floor})))
    told = words(compiled, Severity.WAITING)
    assert (told == []) is possible
    if not possible:
        assert f"which the host {host} of MailTransport default/relay can never be; allow PKIX as well" in told[0]


def test_a_mail_store_is_no_way_out_so_no_floor_of_others_is_about_it() -> None:
    store = transport("store", lmtp={"host": "store.example", "port": 24})
    compiled = built(
        ENCRYPTED,
        None,
        store,
        domain("shop", "shop.example", delivery=by_transport("store")),
        route("r", GLOBAL, to("store", "x.example")),
    )
    assert words(compiled) == []


def test_floors_that_go_together_are_not_spoken_of() -> None:
    compiled = built(
        {"minimum": "Authenticated", "proofs": ["DANE", "PKIX"]},
        PKIX_ONLY,
        transport("relay", submission={"host": "relay.example"}, security={"minimum": "Encrypted"}),
        route("r", GLOBAL, to("relay", "x.example", require={"tls": PKIX_ONLY})),
    )
    assert words(compiled) == []
