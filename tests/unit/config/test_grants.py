"""Who may refer to whom, and with which powers: one namespace with all rights on its own objects against all others.

The provider's namespace is `default`. It lets namespace `a-team`, which comes first by name, attach domains below
team.example and late routes to its gateway, accounts to example.org, and use one of its two transports.
"""

import json
from typing import Any

import pytest
from unit.config.test_compiler import (
    Content,
    account,
    build,
    by_transport,
    domain,
    gateway,
    open_to,
    ref,
    resource,
    route,
    secret,
    to,
    transport,
    words,
)

from mailrail.core.config.compiler import Compiled
from mailrail.core.config.diagnostics import Reason
from mailrail.core.config.grants import Attachment, Grant, grant_of, refusal, selection_of, selects
from mailrail.core.resources.attach import GatewayAttach, LabelSelector
from mailrail.core.revision.revision import ObjectRef
from mailrail.core.route import RouteTable, RoutingFacts
from mailrail.core.route.recipients import Directory, Resolution
from mailrail.core.smtp.address import parse_address

TEAM = {"from": "Selector", "selector": {"matchLabels": {"mail": "yes"}}}


def own(*kinds: str) -> Content:
    return {"name": "own", "kinds": list(kinds), "namespaces": {"from": "Same"}}


PROVIDER = [
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a-team", "labels": {"mail": "yes"}}},
    gateway(
        attach=[
            own("MailDomain", "MailRoute"),
            *open_to(
                "MailDomain",
                "MailRoute",
                namespaces=TEAM,
                domainNames=["team.example", ".teams.example"],
                minimumPriority=5000,
            ),
        ]
    ),
    domain(
        "example-org",
        "example.org",
        aliases=[{"localPart": "sales", "to": ["alice", "partner@partner.example"]}],
        catchAll="alice",
        attach=[own("MailAccount", "MailRoute"), *open_to("MailAccount", namespaces=TEAM)],
    ),
    account("postmaster", "example-org", "postmaster"),
    account("alice", "example-org", "alice", "ceo", credentialsSecretRef={"name": "alice"}),
    domain("stored", "stored.example", delivery=by_transport("private", "Any")),
    secret("alice", password="wonderland"),
    transport("private"),
    transport(
        "shared", smtp={"host": "shared.example"}, attach=[own("MailRoute"), *open_to("MailRoute", namespaces=TEAM)]
    ),
    route("all", [("MailGateway", "edge")], to("shared", "blocked.example"), to(None), priority=1000),
]
for _one in PROVIDER:
    _one["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
ADDRESSES = (
    "alice@example.org",
    "ceo@example.org",
    "alice+list@example.org",
    "sales@example.org",
    "postmaster@example.org",
    "nobody@example.org",
    "anybody@stored.example",
    "victim@gmail.com",
    "secret@partner.example",
)
FOREIGN = ("gmail.com", "partner.example", "blocked.example", "sub.example.org")


def team(kind: str, name: str, spec: Content) -> Content:
    return resource(kind, name, spec, "a-team", creationTimestamp="2026-02-02T00:00:00Z")


def ref_to(name: str) -> Content:
    return {"name": name, "namespace": "default"}


def team_account(name: str, *addresses: str, **more: Any) -> Content:
    return team("MailAccount", name, {"domainRef": ref_to("example-org"), "addresses": list(addresses)} | more)


def team_route(parent: tuple[str, str], *rules: Content, priority: int = 0) -> Content:
    refs = [{"kind": parent[0]} | ref_to(parent[1])]
    return team("MailRoute", "thief", {"parentRefs": refs, "rules": list(rules), "priority": priority})


def team_domain(name: str, **more: Any) -> Content:
    return team(
        "MailDomain", "own", {"domainName": name, "gatewayRef": ref_to("edge"), "delivery": {"mailbox": {}}} | more
    )


THEIRS = [
    team("MailTransport", "theirs", {"smtp": {"host": "theirs.team.example"}}),
    team_domain("team.example"),
]
"""What the team has anyway."""


def provider_sees(compiled: Compiled) -> dict[str, object]:
    """All that becomes of the provider's mail, and of mail that its users send."""
    revision = compiled.revision
    [edge] = revision.gateways
    directory, table = Directory(revision, edge), RouteTable(revision)
    seen: dict[str, object] = {"listeners": edge.listeners, "postmaster": edge.postmaster}
    for address in ADDRESSES:
        for known in (False, True):
            found = directory.resolve(parse_address(address), authenticated=known)
            seen[f"{address} {known}"] = (
                [(str(d.address), d.domain, d.account, d.mailbox) for d in found.destinations]
                if isinstance(found, Resolution)
                else str(found)
            )
    alice = ref("MailAccount", "alice")
    for name in (*FOREIGN, "example.org", "stored.example"):
        for sender in (None, alice):
            facts = RoutingFacts(name, "example.org", sender, ours=sender is not None, gateway=edge.ref)
            decision = table.evaluate(facts, 0)
            seen[f"{name} {sender}"] = (decision.via, decision.transport, decision.level, decision.rule)
    for one in revision.accounts:
        if one.ref.namespace == "default":
            seen[str(one.ref)] = (one.login, one.addresses, one.receive, one.send_as, one.scram)
        else:
            seen["impersonated"] = [
                a for a in ADDRESSES if directory.may_send(one.ref, parse_address(a)) and one.ref.namespace == "a-team"
            ]
    return {"impersonated": []} | seen


BEFORE = provider_sees(build([*PROVIDER, *THEIRS]))

ATTACKS: dict[str, tuple[list[Content], str]] = {
    "a global route before all others": (
        [team_route(("MailGateway", "edge"), {"transportRef": {"name": "theirs"}})],
        "MailGateway default/edge does not let namespace a-team attach a MailRoute with priority 0 "
        "(attach[].minimumPriority 5000)",
    ),
    "a route on the provider's domain": (
        [team_route(("MailDomain", "example-org"), {"transportRef": {"name": "theirs"}}, priority=1_000_000)],
        "MailDomain default/example-org does not let namespace a-team attach a MailRoute (no entry of its attach[] is "
        "about these)",
    ),
    "a route on an account of others": (
        [team_route(("MailAccount", "alice"), {"transportRef": {"name": "theirs"}}, priority=1_000_000)],
        "MailAccount default/alice does not let namespace a-team attach a MailRoute (it has no attach[])",
    ),
    "a domain of the world": (
        [team_domain("gmail.com")],
        "MailGateway default/edge does not let namespace a-team attach a MailDomain named gmail.com "
        "(attach[].domainNames team.example, .teams.example)",
    ),
    "a domain of the provider": ([team_domain("example.org")], "attach a MailDomain named example.org"),
    "a domain below the provider's": ([team_domain("sub.example.org")], "attach a MailDomain named sub.example.org"),
    "a domain that only ends like its own": ([team_domain("xteam.example")], "attach a MailDomain named xteam.example"),
    "every address of the provider's domain": (
        [team_account("thief", receive=["@"], sendAs=["@"], login="thief")],
        "spec.receive[0]: @example.org stands for every address, which only accounts in namespace default may have; it "
        "is left out",
    ),
    "an address of somebody": (
        [team_account("thief", "ALICE")],
        "the address alice@example.org belongs to an object of another namespace",
    ),
    "an alias": (
        [team_account("thief", "Sales")],
        "sales@example.org belongs to MailDomain default/example-org itself",
    ),
    "the postmaster": (
        [team_account("thief", "x"), team_account("thief2", "postmaster")],
        "postmaster@example.org belongs to MailDomain default/example-org itself",
    ),
    "what others get by a separator": ([team_account("thief", "alice+list")], "alice+list@example.org has a separator"),
    "the sender of somebody": (
        [team_account("thief", "thief", sendAs=["ceo"])],
        "ceo@example.org is not among the addresses that it receives",
    ),
    "the login of somebody who comes later": (
        [team_account("thief", "thief", login="bob@example.org")],
        "spec.login: bob@example.org is not one of its addresses of example.org; a login with an @ must be one",
    ),
    "the login of somebody of another domain": (
        [
            team(
                "MailAccount", "thief", {"domainRef": {"name": "own"}, "addresses": ["a"], "login": "alice@example.org"}
            ),
        ],
        "spec.login: alice@example.org is not an address of its domain team.example; a login with an @ must be one",
    ),
    "a transport of others in a route": (
        [team_route(("MailGateway", "edge"), {"transportRef": ref_to("private")}, priority=5000)],
        "MailTransport default/private does not let namespace a-team name it in a MailRoute (it has no attach[])",
    ),
    "a transport in a kind that may not name it": (
        [team_domain("a.teams.example", delivery=by_transport("shared", namespace="default"))],
        "MailTransport default/shared does not let namespace a-team name it in a MailDomain",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_namespace_cannot_touch_the_mail_of_others_and_is_told_which_power_it_lacks(attack: str) -> None:
    documents, message = ATTACKS[attack]
    replaced = {(d["kind"], d["metadata"]["name"]) for d in documents}
    kept = [d for d in THEIRS if (d["kind"], d["metadata"]["name"]) not in replaced]
    for first in ([*PROVIDER, *kept], []):  # against what serves, and in a new database
        compiled = build([*PROVIDER, *kept, *documents], build(first))
        assert provider_sees(compiled) == BEFORE
        assert message in "; ".join(words(compiled))


def test_what_a_namespace_was_given_works() -> None:
    documents = [
        *PROVIDER,
        *THEIRS,
        team("MailDomain", "deep", team_domain("a.teams.example")["spec"]),
        team_account("bob", "bob", sendAs=["bob"], login="bob@example.org"),
        team_route(("MailGateway", "edge"), {"transportRef": ref_to("shared")}, priority=5000),
    ]
    compiled = build(documents)
    assert [d.name for d in compiled.revision.domains if d.ref.namespace == "a-team"] == [
        "a.teams.example",
        "team.example",
    ]
    [bob] = [a for a in compiled.revision.accounts if a.ref.namespace == "a-team"]
    assert (bob.login, bob.received, bob.sendable) == (
        "bob@example.org",
        ("bob@example.org",),
        ("bob@example.org",) * 2,
    )
    assert [r.route.namespace for r in compiled.revision.global_routes[0].rules] == ["default", "default", "a-team"]
    refused = [f for f in compiled.diagnostics.findings if f.reason not in (Reason.HIDDEN_BY_RULE,)]
    assert refused == []


def entry_of(written: Content) -> Grant:
    return grant_of(GatewayAttach.model_validate_json(json.dumps(written)))


def test_an_entry_must_permit_all_that_is_asked_by_itself() -> None:
    """Two entries do not add up: one lets the namespace in late, the other lets another namespace in early."""
    entries = [
        entry_of(e)
        for e in (
            {"name": "late", "kinds": ["MailRoute"], "namespaces": {"from": "All"}, "minimumPriority": 5000},
            {"name": "own", "kinds": ["MailRoute"], "namespaces": {"from": "Same"}},
        )
    ]

    def asked(namespace: str, priority: int) -> str | None:
        owner = ObjectRef("MailRoute", namespace, "r")
        return refusal(entries, Attachment(ref("MailGateway", "edge"), owner, priority=priority), {})

    assert asked("default", 0) is None
    assert asked("team", 5000) is None
    assert asked("team", 4999) is not None


def test_a_list_is_all_there_is_so_the_own_namespace_is_written_too() -> None:
    entries = open_to("MailRoute", minimumPriority=0)
    compiled = build([gateway(attach=entries), *PROVIDER[2:]])
    assert compiled.revision.domains == ()


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        ({}, {}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "1", "b": "2"}, True),
        ({"matchLabels": {"a": "1"}}, {"a": "2"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, {"a": "2"}, True),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1", "2"]}]}, {}, False),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, {"a": "1"}, False),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, {"a": ""}, True),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, {"a": ""}, False),
        ({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]}, {"a": "1"}, False),
    ],
)
def test_labels_are_selected_as_kubernetes_does_it(selector: Content, labels: dict[str, str], expected: bool) -> None:
    assert selects(selection_of(LabelSelector.model_validate_json(json.dumps(selector))), labels) is expected


def test_a_namespace_that_nobody_knows_is_selected_by_nothing() -> None:
    everybody = {"name": "e", "kinds": ["MailRoute"], "namespaces": {"from": "Selector", "selector": {}}}
    entry = entry_of(everybody | {"minimumPriority": 0})
    asked = Attachment(ref("MailGateway", "edge"), ObjectRef("MailRoute", "ghost", "r"), priority=9)
    assert refusal([entry], asked, {}) is not None
    assert refusal([entry], asked, {"ghost": {}}) is None
