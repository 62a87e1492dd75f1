"""Documents, good and bad, and what people are told about the bad ones (design 5, CFG-01)."""

import json
from typing import Any

import pytest

from mailrail.core.resources import API_VERSION, KINDS, InvalidResource, canonical, read
from mailrail.core.resources.problems import PROBLEMS_LIMIT

GATEWAY = {
    "hostname": "mail.example.org",
    "listeners": [{"name": "mx", "protocol": "MX", "port": 25}],
    "postmaster": {"accountRef": {"name": "postmaster"}},
}
DOMAIN = {"domainName": "example.org", "gatewayRef": {"name": "edge"}, "delivery": {"mailbox": {}}}
ACCOUNT = {"domainRef": {"name": "example-org"}, "addresses": ["alice"]}
ROUTE = {"parentRefs": [{"kind": "MailGateway", "name": "edge"}], "rules": [{"direct": {}}]}


ENTRY = {"name": "teams", "kinds": ["MailDomain"], "namespaces": {"from": "All"}}


def document(kind: str, spec: Any) -> str:
    return json.dumps({"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": "a"}, "spec": spec})


def problems(kind: str, spec: Any) -> list[str]:
    with pytest.raises(InvalidResource) as refused:
        read(document(kind, spec), kind)
    return [str(p) for p in refused.value.problems]


GOOD: list[tuple[str, Any]] = [
    ("MailGateway", GATEWAY),
    ("MailGateway", GATEWAY | {"attach": [ENTRY | {"domainNames": ["."]}]}),
    ("MailGateway", GATEWAY | {"attach": [ENTRY | {"namespaces": {"from": "Same"}}]}),
    (
        "MailGateway",
        GATEWAY
        | {
            "attach": [
                {
                    "name": "teams",
                    "kinds": ["MailDomain", "MailRoute"],
                    "namespaces": {
                        "from": "Selector",
                        "selector": {
                            "matchLabels": {"mail": "yes"},
                            "matchExpressions": [
                                {"key": "example.org/tier", "operator": "In", "values": ["a", "b"]},
                                {"key": "old", "operator": "DoesNotExist"},
                            ],
                        },
                    },
                    "domainNames": [".teams.example.org"],
                    "minimumPriority": 5000,
                }
            ]
        },
    ),
    ("MailGateway", GATEWAY | {"notifications": {"fullContentBytes": 4096}}),
    ("MailGateway", GATEWAY | {"retry": {"delaysSeconds": [60, 120], "lifetimeSeconds": 3600, "maxAttempts": 8}}),
    ("MailGateway", GATEWAY | {"limits": {"messageBytes": 1048576, "connectionsPerIP": 5, "recipients": 100}}),
    ("MailGateway", GATEWAY | {"extensions": {"requireTLS": {"mode": "WhenSecure"}}}),
    ("MailGateway", GATEWAY | {"extensions": {}}),
    ("MailDomain", DOMAIN),
    ("MailDomain", DOMAIN | {"delivery": {"none": {}}}),
    (
        "MailDomain",
        DOMAIN | {"delivery": {"transport": {"ref": {"name": "store", "namespace": "mail"}, "recipients": "Any"}}},
    ),
    (
        "MailDomain",
        DOMAIN | {"aliases": [{"localPart": "sales", "to": ["alice", "bob@example.net"]}], "separators": "+-"},
    ),
    ("MailDomain", DOMAIN | {"aliases": [{"localPart": "müller", "to": ["müller.karl"]}]}),
    ("MailDomain", DOMAIN | {"mtaSts": {"mode": "Enforce"}}),
    ("MailDomain", DOMAIN | {"reports": {}}),
    ("MailDomain", DOMAIN | {"delivery": {"none": {}}, "reports": {"dmarc": "rua", "tls": "rua"}}),
    ("MailDomain", DOMAIN | {"mtaSts": {"mode": "Testing", "maxAgeSeconds": 31557600, "mx": ["*.a.org", "mx.b.org"]}}),
    ("MailAccount", ACCOUNT | {"addresses": ["alice", "a.b@example.org"], "limits": {"messagesPerDay": 0}}),
    ("MailAccount", {"domainRef": {"name": "d"}, "receive": ["@"], "sendAs": ["@", "news"]}),
    ("MailAccount", {"domainRef": {"name": "d"}, "receive": ["@"], "login": "robot"}),
    (
        "MailAccount",
        ACCOUNT | {"credentialsSecretRef": {"name": "a-secret-whose-name-is-longer-than-a-label." + "x" * 77}},
    ),
    ("MailTransport", {"direct": {}}),
    ("MailTransport", {"direct": {"ipFamilies": ["IPv6"], "sourceAddresses": ["192.0.2.1", "2001:db8::1"]}}),
    ("MailTransport", {"smtp": {"host": "[2001:db8::1]"}}),
    ("MailTransport", {"smtp": {"host": "relay", "port": 2525, "tls": {"mode": "Required"}}}),
    ("MailTransport", {"submission": {"host": "127.0.0.1", "tls": {"caFile": "ca.pem", "mode": "Verified"}}}),
    (
        "MailTransport",
        {"submissions": {"host": "r.example", "auth": {"secretRef": {"name": "s"}, "mechanisms": ["PLAIN"]}}},
    ),
    ("MailTransport", {"socks": {"address": "[::1]:1080", "remoteIPs": ["192.0.2.1"], "remoteHostname": "o.example"}}),
    ("MailTransport", {"lmtp": {"host": "store.mail.svc"}, "limits": {"rate": {"messages": 1, "perSeconds": 300}}}),
    ("MailTransport", {"direct": {}, "signedMail": {"mode": "Reencode"}, "attach": [ENTRY]}),
    ("MailTransport", {"fail": {}}),
    ("MailGateway", GATEWAY | {"security": {"minimum": "Encrypted", "otherwise": "Fail"}}),
    ("MailDomain", DOMAIN | {"security": {"minimum": "Authenticated", "proofs": ["MTASTS", "DANE"]}}),
    ("MailTransport", {"direct": {}, "security": {"whenUnanswered": "Proceed"}}),
    ("MailTransport", {"lmtp": {"host": "s", "tls": {"mode": "Verified"}}, "security": {"minimum": "Encrypted"}}),
    ("MailRoute", ROUTE | {"rules": [{"direct": {}, "require": {"tls": {"minimum": "Encrypted"}}}]}),
    ("MailRoute", ROUTE),
    (
        "MailRoute",
        ROUTE | {"rules": [{"transportRef": {"name": "t"}, "matches": [{"toDomains": [".", ".x.org", "org"]}]}]},
    ),
]


@pytest.mark.parametrize(("kind", "spec"), GOOD)
def test_a_good_document_is_read(kind: str, spec: Any) -> None:
    assert read(document(kind, spec), kind).metadata.name == "a"


LISTENER = {"name": "in", "protocol": "Submission", "port": 587}
IN_CLEAR = [
    "spec: remove security.minimum, or set tls.mode to Opportunistic or more: with Disabled there is no TLS",
]
BAD: list[tuple[str, Any, list[str]]] = [
    # floors
    (
        "MailTransport",
        {"smtp": {"host": "relay", "tls": {"mode": "Disabled"}}, "security": {"minimum": "Encrypted"}},
        IN_CLEAR,
    ),
    ("MailTransport", {"lmtp": {"host": "store"}, "security": {"minimum": "Authenticated"}}, IN_CLEAR),
    (
        "MailGateway",
        GATEWAY | {"security": {"minimum": "Encrypted", "proofs": ["DANE"]}},
        ["spec.security: set minimum to Authenticated, or remove proofs: nothing else asks for one"],
    ),
    (
        "MailDomain",
        DOMAIN | {"security": {"minimum": "Authenticated", "proofs": ["PKIX", "PKIX"]}},
        ["spec.security: proofs: entries must be unique"],
    ),
    (
        "MailRoute",
        ROUTE | {"rules": [{"direct": {}, "require": {"tls": {"minimum": "None"}}}]},
        [
            "spec.rules[0].require.tls.minimum: 'None' is not one of Opportunistic, Encrypted, Authenticated",
        ],
    ),
    # types
    (
        "MailGateway",
        GATEWAY | {"notifications": True},
        [
            "spec.notifications: must be a mapping of fields, not true (a yes/no value; put it in quotes if text is "
            "meant)"
        ],
    ),
    (
        "MailGateway",
        GATEWAY | {"hostname": True},
        ["spec.hostname: must be text, not true (a yes/no value; put it in quotes if text is meant)"],
    ),
    (
        "MailTransport",
        {"smtp": {"host": "h", "port": "25"}},
        ["spec.smtp.port: must be a whole number, not the text '25'"],
    ),
    ("MailTransport", {"smtp": "h"}, ["spec.smtp: must be a mapping of fields, not the text 'h'"]),
    ("MailRoute", ROUTE | {"rules": {}}, ["spec.rules: must be a list, not a mapping"]),
    ("MailAccount", ACCOUNT | {"addresses": [12]}, ["spec.addresses[0]: must be text, not the number 12"]),
    ("MailDomain", None, ["spec: must be a mapping of fields, not empty"]),
    # required and unknown fields
    ("MailGateway", {k: v for k, v in GATEWAY.items() if k != "postmaster"}, ["spec.postmaster: is required"]),
    ("MailDomain", {k: v for k, v in DOMAIN.items() if k != "delivery"}, ["spec.delivery: is required"]),
    ("MailRoute", ROUTE | {"priorty": 1}, ["spec.priorty: there is no such field; did you mean priority?"]),
    ("MailRoute", ROUTE | {"xyz": 1}, ["spec.xyz: there is no such field; possible here: parentRefs, priority, rules"]),
    (
        "MailTransport",
        {"smtp": {"host": "h", "insecureSkipVerify": True}},
        ["spec.smtp.insecureSkipVerify: there is no such field; possible here: host, port, tls"],
    ),
    # ranges and lengths
    ("MailTransport", {"smtp": {"host": "h", "port": 70000}}, ["spec.smtp.port: 70000 is too large; at most 65535"]),
    ("MailTransport", {"fail": {"code": 250}}, ["spec.fail.code: 250 is too small; at least 400"]),
    ("MailTransport", {"fail": {"code": 600}}, ["spec.fail.code: 600 is too large; at most 599"]),
    ("MailTransport", {"fail": {"text": "a\r\nb"}}, ["spec.fail.text: 'a??b' should be printable ASCII on one line"]),
    (
        "MailTransport",
        {"direct": {}, "limits": {"rate": {"messages": 0, "perSeconds": 1}}},
        ["spec.limits.rate.messages: 0 is too small; at least 1"],
    ),
    (
        "MailTransport",
        {"direct": {}, "limits": {"rate": 0.5}},
        ["spec.limits.rate: must be a mapping of fields, not the number 0.5"],
    ),
    ("MailGateway", GATEWAY | {"listeners": []}, ["spec.listeners: needs at least 1 entry"]),
    ("MailRoute", ROUTE | {"rules": [{"direct": {}}] * 65}, ["spec.rules: has 65 entries; at most 64"]),
    (
        "MailGateway",
        GATEWAY | {"limits": {"recipients": 99}},
        ["spec.limits.recipients: 99 is too small; at least 100"],
    ),
    # names, with the spelling that would do
    (
        "MailGateway",
        GATEWAY | {"hostname": "Mail.Example.ORG."},
        [
            "spec.hostname: 'Mail.Example.ORG.' should be a domain name in lower-case A-labels, like example.org; "
            "write mail.example.org"
        ],
    ),
    (
        "MailDomain",
        DOMAIN | {"domainName": "bücher.example"},
        [
            "spec.domainName: 'bücher.example' should be a domain name in lower-case A-labels, like example.org; "
            "write xn--bcher-kva.example"
        ],
    ),
    (
        "MailRoute",
        ROUTE | {"rules": [{"direct": {}, "matches": [{"toDomains": ["*.x.org"]}]}]},
        [
            "spec.rules[0].matches[0].toDomains[0]: '*.x.org' should be example.org for that "
            "domain, .example.org for it "
            "and every subdomain, or . for the empty domain"
        ],
    ),
    (
        "MailRoute",
        ROUTE | {"rules": [{"direct": {}, "matches": [{"fromDomains": [".X.org"]}]}]},
        [
            "spec.rules[0].matches[0].fromDomains[0]: '.X.org' should be example.org for that "
            "domain, .example.org for it "
            "and every subdomain, or . for the empty domain; write .x.org"
        ],
    ),
    (
        "MailAccount",
        ACCOUNT | {"addresses": ["alice smith"]},
        ["spec.addresses[0]: 'alice smith' should be an address like alice@example.org, or only the part before the @"],
    ),
    (
        "MailAccount",
        ACCOUNT | {"addresses": ["@"]},
        ["spec.addresses[0]: '@' should be an address like alice@example.org, or only the part before the @"],
    ),
    (
        "MailAccount",
        ACCOUNT | {"receive": ["@example.org"]},
        [
            "spec.receive[0]: '@example.org' should be an address like alice@example.org, only the part before the @, "
            "or @ for every address of the domain"
        ],
    ),
    (
        "MailDomain",
        DOMAIN | {"gatewayRef": {"name": "Edge_1"}},
        [
            "spec.gatewayRef.name: 'Edge_1' should be lower-case letters, digits, - and ., with a "
            "letter or digit at both ends"
        ],
    ),
    (
        "MailDomain",
        DOMAIN | {"separators": "."},
        ["spec.separators: '.' should be characters such as + or -, but not the dot"],
    ),
    # unions
    ("MailTransport", {}, ["spec: set exactly one of direct, smtp, submission, submissions, socks, lmtp or fail"]),
    (
        "MailTransport",
        {"direct": {}, "fail": {}},
        ["spec: set exactly one of direct, smtp, submission, submissions, socks, lmtp or fail"],
    ),
    ("MailRoute", ROUTE | {"rules": [{"name": "x"}]}, ["spec.rules[0]: set exactly one of transportRef or direct"]),
    (
        "MailRoute",
        ROUTE | {"rules": [{"direct": {}, "transportRef": {"name": "t"}}]},
        ["spec.rules[0]: set exactly one of transportRef or direct"],
    ),
    (
        "MailTransport",
        {"smtp": {"host": "h", "tls": {"caFile": "a", "caSecretRef": {"name": "b"}}}},
        ["spec.smtp.tls: set only one of caSecretRef or caFile"],
    ),
    (
        "MailTransport",
        {"smtp": {"host": "h", "tls": {"mode": False}}},  # YAML reads no, off and false alike
        [
            "spec.smtp.tls.mode: must be one of Disabled, Opportunistic, Required, Verified, not false "
            "(a yes/no value; put it in quotes if text is meant)"
        ],
    ),
    (
        "MailTransport",
        {"smtp": {"host": "[2001:db8::1]:2525"}},
        [
            "spec.smtp.host: '[2001:db8::1]:2525' should be a host name in lower-case A-labels or an IP address; "
            "write 2001:db8::1, and the port in its own field"
        ],
    ),
    (
        "MailTransport",
        {"socks": {"address": "p:1080", "remoteIPs": ["192.0.2.1", "192.0.2.1"], "remoteHostname": "o.example"}},
        ["spec.socks: remoteIPs: entries must be unique"],
    ),
    (
        "MailDomain",
        DOMAIN | {"delivery": "mailbox"},
        ["spec.delivery: must be a mapping of fields, not the text 'mailbox'"],
    ),
    ("MailDomain", DOMAIN | {"delivery": {}}, ["spec.delivery: set exactly one of mailbox, transport or none"]),
    (
        "MailDomain",
        DOMAIN | {"delivery": {"mailbox": {}, "none": {}}},
        ["spec.delivery: set exactly one of mailbox, transport or none"],
    ),
    ("MailDomain", DOMAIN | {"delivery": {"transport": {}}}, ["spec.delivery.transport.ref: is required"]),
    (
        "MailRoute",
        ROUTE | {"parentRefs": [{"kind": "MailTransport", "name": "t"}]},
        ["spec.parentRefs[0].kind: 'MailTransport' is not one of MailAccount, MailDomain, MailGateway"],
    ),
    # rules between fields
    (
        "MailGateway",
        GATEWAY | {"listeners": [LISTENER | {"protocol": "Submissions"}]},
        ["spec.listeners[0]: set tls: protocol Submissions uses TLS from the first byte"],
    ),
    (
        "MailGateway",
        GATEWAY | {"listeners": [{"name": "mx", "protocol": "MX", "port": 25, "mechanisms": ["PLAIN"]}]},
        ["spec.listeners[0]: remove mechanisms: an MX listener never offers AUTH"],
    ),
    (
        "MailGateway",
        GATEWAY | {"listeners": [LISTENER, LISTENER | {"port": 588}]},
        ["spec: listeners: each entry needs a different name"],
    ),
    (
        "MailGateway",
        GATEWAY | {"listeners": [LISTENER, LISTENER | {"name": "b"}]},
        ["spec: listeners: each entry needs a different port"],
    ),
    (
        "MailGateway",
        GATEWAY | {"attach": [ENTRY | {"namespaces": {"from": "Selector"}, "domainNames": ["."]}]},
        ["spec.attach[0].namespaces: set selector if from is Selector, and only then"],
    ),
    (
        "MailGateway",
        GATEWAY | {"attach": [ENTRY]},
        [
            "spec.attach[0]: set domainNames: an entry that lets other namespaces attach a MailDomain says which "
            "names they may claim"
        ],
    ),
    (
        "MailDomain",
        DOMAIN | {"attach": [ENTRY | {"kinds": ["MailRoute"]}]},
        [
            "spec.attach[0]: set minimumPriority: an entry that lets other namespaces attach a MailRoute says before "
            "which priority none of theirs is asked"
        ],
    ),
    (
        "MailGateway",
        GATEWAY | {"attach": [ENTRY | {"kinds": ["MailRoute"], "domainNames": ["."], "minimumPriority": 0}]},
        ["spec.attach[0]: remove domainNames: it is about MailDomain, which kinds does not name"],
    ),
    (
        "MailGateway",
        GATEWAY | {"attach": [ENTRY | {"domainNames": ["."], "minimumPriority": 0}]},
        ["spec.attach[0]: remove minimumPriority: it is about MailRoute, which kinds does not name"],
    ),
    ("MailGateway", GATEWAY | {"attach": []}, ["spec.attach: needs at least 1 entry"]),
    (
        "MailGateway",
        GATEWAY | {"attach": [ENTRY | {"domainNames": ["."]}] * 2},
        ["spec: attach: each entry needs a different name"],
    ),
    (
        "MailGateway",
        GATEWAY | {"listeners": [LISTENER | {"proxyProtocol": {"trustedCIDRs": ["10.0.0.0/99"]}}]},
        [
            "spec.listeners[0].proxyProtocol.trustedCIDRs: 10.0.0.0/99 is not a network, like "
            "10.0.0.0/8 or 2001:db8::/32"
        ],
    ),
    (
        "MailDomain",
        DOMAIN | {"delivery": {"transport": {"ref": {"name": "t"}, "recipients": "Any", "listed": ["a"]}}},
        ["spec.delivery.transport: remove listed: with recipients Any every address exists"],
    ),
    (
        "MailDomain",
        DOMAIN | {"delivery": {"none": {}}, "catchAll": "alice"},
        ["spec: remove catchAll and aliases: a domain with delivery none takes no mail"],
    ),
    (
        "MailDomain",
        DOMAIN | {"aliases": [{"localPart": "a", "to": ["b"]}, {"localPart": "a", "to": ["c"]}]},
        ["spec: aliases: each entry needs a different localPart"],
    ),
    (
        "MailAccount",
        {"domainRef": {"name": "d"}, "receive": ["@"], "sendAs": ["@"]},
        ["spec: set login: an account that has no address but @ has no default login"],
    ),
    (
        "MailAccount",
        {"domainRef": {"name": "d"}, "login": "robot"},
        ["spec: set addresses, receive or sendAs: an account needs an address"],
    ),
    (
        "MailRoute",
        ROUTE | {"parentRefs": [{"kind": "MailGateway", "name": "edge"}] * 2},
        ["spec: parentRefs: entries must be unique"],
    ),
    (
        "MailRoute",
        ROUTE | {"rules": [{"direct": {}, "matches": [{"toDomains": [f"d{n}.example" for n in range(200)]}] * 21}]},
        ["spec: rules: all together name at most 4000 domains"],
    ),
    (
        "MailDomain",
        DOMAIN | {"aliases": [{"localPart": f"a{n}", "to": [f"b{i}" for i in range(100)]} for n in range(201)]},
        ["spec: aliases: all together stand for at most 20000 addresses"],
    ),
    ("MailAccount", ACCOUNT | {"addresses": ["a", "a"]}, ["spec: addresses: entries must be unique"]),
    (
        "MailTransport",
        {"submission": {"host": "h", "tls": {"mode": "Opportunistic"}}},
        [
            "spec.submission: remove tls.mode or set it to Verified: credentials are never sent to a host "
            "whose name is not verified"
        ],
    ),
    (
        "MailTransport",
        {"direct": {"sourceAddresses": ["192.0.2.1", "192.0.2.2"]}},
        ["spec.direct.sourceAddresses: give at most one source address of each family"],
    ),
    (
        "MailTransport",
        {"direct": {"sourceAddresses": ["1.2.3"]}},
        ["spec.direct.sourceAddresses: 1.2.3 is not an IP address"],
    ),
    (
        "MailTransport",
        {"socks": {"address": "p:0", "remoteIPs": ["192.0.2.1"], "remoteHostname": "o"}},
        ["spec.socks.address: the port must be between 1 and 65535"],
    ),
    (
        "MailTransport",
        {"submission": {"host": "h", "auth": {"secretRef": {"name": "s"}, "mechanisms": ["NTLM"]}}},
        [
            "spec.submission.auth.mechanisms[0]: 'NTLM' is not one of SCRAM-SHA-256-PLUS, SCRAM-SHA-256, "
            "SCRAM-SHA-1-PLUS, SCRAM-SHA-1, CRAM-MD5, PLAIN, LOGIN"
        ],
    ),
]


@pytest.mark.parametrize(("kind", "spec", "messages"), BAD)
def test_a_bad_document_is_refused_with_the_place_and_what_to_write(kind: str, spec: Any, messages: list[str]) -> None:
    assert problems(kind, spec) == messages


def test_several_problems_are_told_at_once_and_a_flood_is_cut() -> None:
    assert len(problems("MailRoute", {"parentRefs": [{}], "rules": [{"matches": [{"toDomains": ["A"]}]}]})) == 3
    many = problems("MailAccount", ACCOUNT | {"addresses": ["a b"] * 100})
    assert len(many) == PROBLEMS_LIMIT + 1
    assert many[-1] == "and 80 more problems"


def test_a_long_or_unprintable_value_is_shown_short_and_clean() -> None:
    [text] = problems("MailDomain", DOMAIN | {"domainName": "\x1b[31m" + "x" * 250})
    assert "\x1b" not in text
    assert len(text) < 200


def test_what_kubernetes_adds_changes_nothing() -> None:
    plain = json.loads(document("MailDomain", DOMAIN))
    dressed = plain | {
        "metadata": plain["metadata"]
        | {"labels": {"a": "b"}, "resourceVersion": "7", "managedFields": [], "generation": 3},
        "status": {"conditions": []},
    }
    assert canonical(plain) == canonical(dressed)
    assert read(json.dumps(dressed), "MailDomain").metadata.generation == 3


def test_every_kind_names_itself_for_the_cluster() -> None:
    assert {model.SHORT for model in KINDS.values()} == {"mgw", "mdom", "macct", "mtrans", "mroute"}
    assert all(kind.lower() + "s" == model.PLURAL for kind, model in KINDS.items())


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_list_and_mapping_is_bounded(kind: str) -> None:
    """CEL's cost is estimated from the bounds, and local mode reads files that anybody may have written."""
    schema = KINDS[kind].model_json_schema()
    unbounded: list[str] = []

    def walk(node: Any, where: str) -> None:
        if isinstance(node, dict):
            if node.get("type") == "string" and not {"maxLength", "enum", "const"} & node.keys():
                unbounded.append(where)
            if node.get("type") == "array" and "maxItems" not in node:
                unbounded.append(where)
            for key, value in node.items():
                walk(value, f"{where}.{key}")
        elif isinstance(node, list):
            for item in node:
                walk(item, where)

    walk(schema, kind)
    assert unbounded == []
