"""Documents to one revision: deterministic, and careful with what already works (CFG-01; design 4 and 5)."""

import base64
import datetime
import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from mailrail.core.config import pieces
from mailrail.core.config.building import BuildOptions
from mailrail.core.config.compiler import Compiled, compile
from mailrail.core.config.diagnostics import ConditionType, Reason, Severity, SourceLocation, Status
from mailrail.core.config.loader import Document, Unreadable
from mailrail.core.config.pieces import account_uid
from mailrail.core.config.reading import Sources
from mailrail.core.config.state import CompilerState, decode_state, encode_state
from mailrail.core.mtasts.policy import Mode
from mailrail.core.resources import API_VERSION
from mailrail.core.revision.revision import (
    AuthenticationMode,
    DomainDelivery,
    ListenerProtocol,
    MessageRate,
    MtaSts,
    ObjectRef,
    ReportAddresses,
    Revision,
    Role,
    SecretRef,
    SenderRules,
    SuffixMode,
    TlsMode,
    Transport,
    TransportKind,
    TransportLimits,
    decode,
    secrets_for,
)
from mailrail.core.revision.sealing import Keyring
from mailrail.core.sasl.verifiers import ScramVerifier
from mailrail.core.spf.result import SpfResult

KEYS = Keyring({"k1": bytes(32)})
Content = dict[str, Any]


def resource(kind: str, name: str, spec: Content, namespace: str = "default", **metadata: Any) -> Content:
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace} | metadata,
        "spec": spec,
    }


def gateway(name: str = "edge", **more: Any) -> Content:
    spec: Content = {
        "hostname": "mail.example.org",
        "listeners": [
            {"name": "mx", "protocol": "MX", "port": 25},
            {"name": "sub", "protocol": "Submission", "port": 587},
        ],
        "postmaster": {"accountRef": {"name": "postmaster"}},
    }
    return resource("MailGateway", name, spec | more)


def domain(
    name: str, domain_name: str, namespace: str = "default", delivery: Content | None = None, **more: Any
) -> Content:
    reference = {"name": "edge", "namespace": "default"}
    how = {"mailbox": {}} if delivery is None else delivery
    return resource(
        "MailDomain", name, {"domainName": domain_name, "gatewayRef": reference, "delivery": how} | more, namespace
    )


def by_transport(name: str, recipients: str = "Listed", **more: Any) -> Content:
    return {"transport": {"ref": {"name": name} | more, "recipients": recipients}}


def open_to(*kinds: str, namespaces: Content | None = None, **powers: Any) -> list[Content]:
    """An `attach` that lets these kinds in from everywhere, or from the namespaces said."""
    return [{"name": "others", "kinds": list(kinds), "namespaces": namespaces or {"from": "All"}} | powers]


EVERYTHING = open_to("MailDomain", "MailRoute", domainNames=["."], minimumPriority=0)


def account(name: str, domain_name: str, *addresses: str, namespace: str = "default", **more: Any) -> Content:
    return resource(
        "MailAccount", name, {"domainRef": {"name": domain_name}, "addresses": list(addresses)} | more, namespace
    )


def transport(name: str, namespace: str = "default", **members: Any) -> Content:
    return resource("MailTransport", name, members or {"smtp": {"host": "relay.example"}}, namespace)


def route(
    name: str, parents: Iterable[tuple[str, str]], *rules: Content, namespace: str = "default", **more: Any
) -> Content:
    refs = [{"kind": kind, "name": target, "namespace": "default"} for kind, target in parents]
    return resource("MailRoute", name, {"parentRefs": refs, "rules": list(rules)} | more, namespace)


GLOBAL = [("MailGateway", "edge")]


def to(
    transport_name: str | None, *domains: str, attempts: int = 0, senders: Iterable[str] = (), **more: Any
) -> Content:
    match = {"toDomains": list(domains), "fromDomains": list(senders), "minimumAttempts": attempts}
    target: Content = {"direct": {}} if transport_name is None else {"transportRef": {"name": transport_name}}
    return target | {"matches": [match]} | more


def secret(name: str, namespace: str = "default", **values: str) -> Content:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": {k.replace("_", "."): v for k, v in values.items()},
    }


def basics() -> list[Content]:
    return [gateway(), domain("example-org", "example.org"), account("postmaster", "example-org", "postmaster")]


def sources(
    documents: Iterable[Content], origin: str = "f.yaml", unreadable: Iterable[str] = (), **more: Any
) -> Sources:
    made = tuple(Document(json.loads(json.dumps(d)), SourceLocation(origin, n)) for n, d in enumerate(documents, 1))
    return Sources(made, tuple(Unreadable(SourceLocation(o, 1), "broken") for o in unreadable), **more)


def build(documents: Iterable[Content], previous: CompilerState | Compiled = CompilerState(), **more: Any) -> Compiled:  # noqa: B008
    options, keys = more.pop("options", None), more.pop("keys", KEYS)
    state = previous.state if isinstance(previous, Compiled) else previous
    return compile(sources(documents, **more), decode_state(encode_state(state)), keys, options)


def words(compiled: Compiled, *severities: Severity) -> list[str]:
    wanted = severities or tuple(Severity)
    return [
        f"{f.ref}: {f.message}" if f.ref else f.message for f in compiled.diagnostics.findings if f.severity in wanted
    ]


def names(revision: Revision) -> set[str]:
    return {d.name for d in revision.domains}


def ref(kind: str, name: str, namespace: str = "default") -> ObjectRef:
    return ObjectRef(kind, namespace, name)


# --- determinism -------------------------------------------------------------------------------------------------


def crowd() -> list[Content]:
    """Something of everything, conflicts and mistakes included."""
    return [
        *basics(),
        domain(
            "b-org", "b.example", aliases=[{"localPart": "x", "to": ["y"]}, {"localPart": "y", "to": ["z@example.org"]}]
        ),
        domain("thief", "example.org"),
        domain("c-org", "c.example", delivery=by_transport("missing")),
        domain("loop", "loop.example", aliases=[{"localPart": "a", "to": ["b"]}, {"localPart": "b", "to": ["a"]}]),
        account("alice", "example-org", "alice", "Alice.L", credentialsSecretRef={"name": "pw"}),
        account("bob", "example-org", "bob", "alice", credentialsSecretRef={"name": "nothing"}),
        account("carol", "b-org", "carol"),
        secret("pw", password="wonderland"),
        transport("relay"),
        transport("login", submission={"host": "s.example", "auth": {"secretRef": {"name": "cred"}}}),
        secret("cred", username="us", password="hush"),
        transport("broken", smtp={"host": "-"}),
        route("r1", GLOBAL, to("relay", ".x.example"), to("login", "a.x.example")),
        route("r2", GLOBAL, to("login", "x.example"), to("missing", "y.example")),
        route("r3", [("MailDomain", "example-org"), ("MailAccount", "alice")], to(None, "z.example", attempts=3)),
        route("r4", [("MailDomain", "nowhere")], to(None, "z.example")),
    ]


@settings(max_examples=60)
@given(st.permutations(crowd()), st.permutations(crowd()))
def test_any_order_of_documents_gives_the_same_bytes_CFG_01(one: list[Content], other: list[Content]) -> None:
    # The same places: a document's line does not change because the directory was listed in another order.
    place = {json.dumps(d): SourceLocation("f.yaml", n) for n, d in enumerate(crowd(), 1)}
    results = [
        compile(Sources(tuple(Document(d, place[json.dumps(d)]) for d in documents)), CompilerState(), KEYS)
        for documents in (one, other)
    ]
    assert results[0].encoded == results[1].encoded
    assert results[0].diagnostics == results[1].diagnostics
    assert encode_state(results[0].state) == encode_state(results[1].state)


def test_a_second_compilation_of_the_same_documents_changes_nothing_CFG_01() -> None:
    first = build(crowd())
    second = build(crowd(), first)
    third = build(crowd(), second)
    assert first.checksum == second.checksum == third.checksum
    assert second.state == third.state == first.state
    assert second.diagnostics == first.diagnostics


def test_a_revision_reads_back_from_its_bytes() -> None:
    compiled = build(crowd())
    assert decode(compiled.encoded) == compiled.revision


def test_the_summary_counts_what_serves() -> None:
    assert build(crowd()).summary == "1 gateway, 3 domains, 3 accounts, 2 transports, 6 rules"


# --- broken documents (CFG-01) -----------------------------------------------------------------------------------


def test_a_broken_edit_keeps_that_objects_last_version_and_lets_other_changes_in_CFG_01() -> None:
    first = build([*basics(), transport("relay"), route("r", GLOBAL, to("relay", "a.example"))])
    second = build(
        [
            *basics(),
            transport("relay", smtp={"host": "relay.example", "port": 0}),
            route("r", GLOBAL, to("relay", "b.example")),
        ],
        first,
    )
    [relay] = second.revision.transports
    assert (relay.host, relay.port) == ("relay.example", 25)
    assert second.revision.global_routes[0].rules[0].matches[0].to_domains == ("b.example",)
    assert words(second) == [
        "MailTransport default/relay: spec.smtp.port: 0 is too small; at least 1; "
        "its last accepted version stays in use"
    ]
    status = second.diagnostics.of("MailTransport", "relay")
    accepted = status.condition(ConditionType.ACCEPTED)
    assert accepted is not None
    assert (accepted.status, accepted.reason) == (Status.FALSE, Reason.INVALID)
    third = build([*basics(), transport("relay", smtp={"host": "relay.example", "port": 0})], second)
    assert third.revision.transports == second.revision.transports


def test_a_refused_edit_of_what_no_service_runs_does_not_say_that_the_version_before_serves() -> None:
    waiting = domain("lost", "lost.example", gatewayRef={"name": "nowhere"})
    first = build([*basics(), waiting])
    waiting["spec"] |= {"catchAll": "@"}
    programmed = (
        build([*basics(), waiting], first).diagnostics.of("MailDomain", "lost").condition(ConditionType.PROGRAMMED)
    )
    assert programmed is not None
    assert programmed.message == (
        "the newest version is not accepted; its last accepted version stays, and no service runs it"
    )


def test_a_document_never_accepted_is_left_out_CFG_01() -> None:
    compiled = build([*basics(), transport("relay", smtp={})])
    assert compiled.revision.transports == ()
    assert words(compiled) == ["MailTransport default/relay: spec.smtp.host: is required; it is left out"]


def test_an_unparseable_file_counts_as_all_its_documents_unchanged_CFG_01() -> None:
    documents = [*basics(), transport("relay"), secret("pw", password="x"), account("a", "example-org", "a",
                 credentialsSecretRef={"name": "pw"})]  # fmt: skip
    first = build(documents)
    second = build([], first, unreadable=["f.yaml"])
    assert second.encoded == first.encoded
    assert second.state == first.state
    assert words(second, Severity.ERROR) == ["broken; its documents stay as they were"]
    # Another file's objects do not depend on it.
    third = build([transport("other")], first, origin="g.yaml", unreadable=["f.yaml"])
    assert {t.ref.name for t in third.revision.transports} == {"relay", "other"}


def test_a_document_whose_identity_cannot_be_read_makes_nothing_of_its_file_disappear_CFG_01() -> None:
    first = build([*basics(), transport("relay")])
    broken: Content
    for broken in (
        transport("relay") | {"kind": "MailTransprt"},
        transport("relay") | {"apiVersion": "mailrail.dev/v1"},
        transport("relay") | {"metadata": {}},
        {"spec": {}},
    ):
        second = build([*basics(), broken], first)
        assert second.encoded == first.encoded
        assert len(second.diagnostics.errors) == 1
    assert build(basics(), first).revision.transports == ()  # a document that is simply gone is gone


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"kind": None}, "kind: is missing; one of MailGateway, "),
        ({"kind": "MailRout"}, "kind: MailRout is not known here; one of MailGateway, "),
        ({"apiVersion": None}, "apiVersion: is missing; a MailTransport has mailrail.dev/v1alpha1"),
        ({"apiVersion": "v1"}, "apiVersion: is v1; a MailTransport has mailrail.dev/v1alpha1"),
        ({"metadata": {}}, "metadata.name: a MailTransport needs a name"),
    ],
)
def test_what_an_identity_lacks_is_said_in_the_words_of_documents(broken: Content, message: str) -> None:
    document = {key: value for key, value in (transport("relay") | broken).items() if value is not None}
    [told] = words(build([*basics(), document]))
    assert told.startswith(message)


def test_a_deleted_object_is_gone_though_another_file_is_broken() -> None:
    first = build([*basics(), transport("relay")])
    assert build(basics(), first, unreadable=["other.yaml"]).revision.transports == ()


def in_files(**files: list[Content] | None) -> Sources:
    """Documents of several files, a.yaml for `a`; None stands for a file that cannot be read."""
    read = [sources(documents, f"{name}.yaml") for name, documents in files.items() if documents is not None]
    broken = tuple(Unreadable(SourceLocation(f"{name}.yaml", 1), "broken") for name, d in files.items() if d is None)
    return Sources(tuple(d for one in read for d in one.documents), broken, files={})


def relayed(compiled: Compiled) -> set[str]:
    return {t.ref.name for t in compiled.revision.transports}


def test_what_was_in_a_file_that_is_gone_stays_while_an_unreadable_one_may_be_its_new_name_CFG_01() -> None:
    with_login = transport("t", submission={"host": "s.example", "auth": {"secretRef": {"name": "cred"}}})
    holding = [with_login, transport("relay"), secret("cred", username="us", password="hush")]
    first = compile(in_files(base=basics(), old=holding), CompilerState(), KEYS)
    second = compile(in_files(base=basics(), new=None), first.state, KEYS)
    assert second.encoded == first.encoded  # renamed, with a mistake in it
    assert words(second) == [
        "may be the new name of old.yaml, whose documents stay as they were until this file can be read",
        "broken; its documents stay as they were",
    ]
    again = compile(in_files(base=basics(), new=None), second.state, KEYS)
    assert (again.encoded, again.diagnostics) == (first.encoded, second.diagnostics)
    mended = compile(in_files(base=basics(), new=[with_login, holding[2]]), again.state, KEYS)
    assert relayed(mended) == {"t"}  # and now it is known that the other one is deleted
    assert words(mended) == []


def test_a_renamed_file_of_which_one_document_has_no_identity_drops_none_of_its_objects_CFG_01() -> None:
    first = compile(in_files(base=basics(), old=[transport("a"), transport("b")]), CompilerState(), KEYS)
    renamed = in_files(base=basics(), new=[transport("a"), transport("b") | {"kind": "MailTransprt"}])
    second = compile(renamed, first.state, KEYS)
    third = compile(renamed, second.state, KEYS)
    assert third.encoded == second.encoded == first.encoded


def test_what_is_gone_from_the_api_server_was_deleted_whatever_else_could_not_be_read_CFG_01() -> None:
    with_login = transport("t", submission={"host": "s.example", "auth": {"secretRef": {"name": "cred"}}})
    objects = sources([*basics(), with_login], "").documents
    login = sources([secret("cred", username="us", password="hush")], "secret default/cred").documents
    unreadable = (Unreadable(SourceLocation("secret default/other"), "the Secret cannot be read (403)"),)
    first = compile(Sources((*objects, *login)), CompilerState(), KEYS)
    second = compile(Sources(objects, unreadable), first.state, KEYS)
    assert {use.secret for use in first.state.uses} == {"cred"}
    assert not second.state.uses  # a Secret that somebody deleted gives nothing any more


def test_a_deleted_file_takes_its_objects_along_when_the_broken_file_held_others_CFG_01() -> None:
    first = compile(in_files(base=basics(), a=[transport("a")], b=[transport("b")]), CompilerState(), KEYS)
    second = compile(in_files(base=basics(), b=None), first.state, KEYS)
    assert relayed(second) == {"b"}
    assert words(second) == ["broken; its documents stay as they were"]


def test_the_first_of_two_documents_with_one_name_counts() -> None:
    compiled = build([*basics(), transport("t", lmtp={"host": "a"}), transport("t", lmtp={"host": "b"})])
    assert [t.host for t in compiled.revision.transports] == ["a"]
    (told,) = words(compiled)
    assert re.fullmatch(
        r"MailTransport default/t: is defined twice; the one in \S+:\d+ counts, the first by file name and line", told
    )


# --- claims (design 5, CFG-01) ------------------------------------------------------------------------------------


def test_the_older_claim_to_a_domain_wins_whatever_the_names() -> None:
    first = build([*basics(), domain("zz", "shop.example")])
    second = build([*basics(), domain("aa", "shop.example"), domain("zz", "shop.example")], first)
    assert [d.ref.name for d in second.revision.domains if d.name == "shop.example"] == ["zz"]
    assert words(second) == [
        "MailDomain default/aa: the domain shop.example belongs to MailDomain default/zz; it is left out"
    ]
    condition = second.diagnostics.of("MailDomain", "aa").condition(ConditionType.ACCEPTED)
    assert condition is not None
    assert condition.reason is Reason.CONFLICTED


def test_of_two_new_claims_the_first_by_namespace_and_name_wins() -> None:
    compiled = build([*basics(), domain("b", "shop.example"), domain("a", "shop.example")])
    assert [d.ref.name for d in compiled.revision.domains if d.name == "shop.example"] == ["a"]


def test_another_namespaces_object_is_not_named_to_the_loser() -> None:
    first = build([gateway(attach=EVERYTHING), *basics()[1:]])
    second = build([gateway(attach=EVERYTHING), *basics()[1:], domain("x", "example.org", namespace="team")], first)
    assert words(second) == [
        "MailDomain team/x: the domain example.org belongs to an object of another namespace; it is left out"
    ]


def test_an_edit_that_would_take_an_address_is_refused_whole_and_the_old_version_serves() -> None:
    documents = [*basics(), account("a", "example-org", "anna"), account("b", "example-org", "bob")]
    first = build(documents)
    documents[-1] = account("b", "example-org", "bobby", "ANNA")
    second = build(documents, first)
    served = {a.ref.name: a.addresses for a in second.revision.accounts}
    assert served["b"] == ("bob@example.org",)
    assert words(second) == [
        "MailAccount default/b: the address anna@example.org belongs to MailAccount default/a; "
        "its last accepted version stays in use"
    ]
    # The old version keeps its claims against newcomers, too.
    third = build([*documents, account("c", "example-org", "bob")], second)
    assert "c" not in {a.ref.name for a in third.revision.accounts}


def test_a_name_that_its_winner_cannot_have_goes_to_the_next() -> None:
    """a wants what z holds; b must not lose to a, which does not serve."""
    first = build([*basics(), account("z", "example-org", "zoe")])
    second = build(
        [*basics(), account("z", "example-org", "zoe"), account("a", "example-org", "new", "zoe"),
         account("b", "example-org", "new")], first)  # fmt: skip
    assert {a.ref.name: a.addresses for a in second.revision.accounts if a.ref.name != "postmaster"} == {
        "b": ("new@example.org",),
        "z": ("zoe@example.org",),
    }


def test_logins_are_one_of_a_kind_without_regard_to_case() -> None:
    compiled = build(
        [*basics(), account("a", "example-org", "a", login="Root"), account("b", "example-org", "b", login="root")]
    )
    assert {a.login for a in compiled.revision.accounts} == {"root", "postmaster@example.org"}
    assert "the login root belongs to MailAccount default/a" in words(compiled)[0]


def test_an_address_of_another_domain_is_left_out_and_named() -> None:
    compiled = build([*basics(), account("a", "example-org", "a", "a@example.net")])
    assert compiled.revision.accounts[0].addresses == ("a@example.org",)
    assert words(compiled) == [
        "MailAccount default/a: spec.addresses[1]: a@example.net is not an address of its domain example.org; "
        "it is left out"
    ]


# --- gateway and postmaster ---------------------------------------------------------------------------------------


def test_a_gateway_without_its_postmaster_account_is_left_out() -> None:
    compiled = build([gateway(), domain("example-org", "example.org")])
    assert compiled.revision.gateways == ()
    assert words(compiled, Severity.ERROR) == [
        "MailGateway default/edge: spec.postmaster.accountRef: MailAccount default/postmaster does not exist; "
        "a gateway needs its postmaster; it is left out"
    ]


@pytest.mark.parametrize("missing", ["MailDomain", "MailAccount"])
def test_deleting_the_postmaster_takes_no_gateway_down(missing: str) -> None:
    first = build(basics())
    second = build([d for d in basics() if d["kind"] != missing], first)
    assert second.revision.gateways == first.revision.gateways
    assert [a.ref.name for a in second.revision.accounts] == ["postmaster"]
    assert any("was deleted; it stays in use while it is needed" in w for w in words(second))
    third = build([d for d in basics() if d["kind"] != missing], second)
    assert third.encoded == second.encoded


def test_an_edit_to_a_postmaster_that_is_not_there_keeps_the_old_one() -> None:
    first = build(basics())
    second = build([gateway(postmaster={"accountRef": {"name": "nobody"}}), *basics()[1:]], first)
    assert second.revision.gateways == first.revision.gateways
    assert "its last accepted version stays in use" in words(second)[0]


def test_settings_of_a_gateway_arrive_and_defaults_stay() -> None:
    compiled = build(
        [gateway(retry={"delaysSeconds": [60], "maxAttempts": 8}, limits={"messageBytes": 4096, "connectionsPerIP": 3},
                 notifications={"fullContentBytes": 2048}), *basics()[1:]],
        options=BuildOptions(captive=True, port_offset=1000),
    )  # fmt: skip
    [made] = compiled.revision.gateways
    assert (made.retry.delays, made.retry.max_attempts, made.retry.lifetime) == ((60,), 8, 432000)
    assert (made.limits.message_size, made.limits.connections_per_ip, made.limits.recipients) == (4096, 3, 1000)
    assert made.dsn_full_limit == 2048
    assert made.offer_requiretls
    assert [(li.protocol, li.port, li.accept_any_recipient) for li in made.listeners] == [
        (ListenerProtocol.MX, 1025, True),
        (ListenerProtocol.SUBMISSION, 1587, False),
    ]


@pytest.mark.parametrize(
    ("extensions", "offered"),
    [
        ({}, True),
        ({"requireTLS": {"mode": "WhenSecure"}}, True),
        ({"requireTLS": {"mode": "Disabled"}}, False),
    ],
)
def test_a_gateway_says_whether_requiretls_is_offered(extensions: Content, offered: bool) -> None:
    [made] = build([gateway(extensions=extensions), *basics()[1:]]).revision.gateways
    assert made.offer_requiretls is offered


def test_a_gateway_that_says_nothing_enforces_by_the_tree_walk_and_refuses_what_fails_spf() -> None:
    [made] = build(basics()).revision.gateways
    assert made.authentication == SenderRules(
        mode=AuthenticationMode.ENFORCE,
        trusted_forwarders=(),
        trusted_sealers=(),
        refused_spf=(SpfResult.FAIL,),
        defer_on_temperror=False,
        suffixes=SuffixMode.WALK,
    )
    [made] = build([gateway(authentication={}), *basics()[1:]]).revision.gateways
    assert made.authentication == SenderRules()


@pytest.mark.parametrize(
    ("said", "compiled"),
    [
        ({"mode": "Monitor"}, SenderRules(AuthenticationMode.MONITOR)),
        ({"mode": "Disabled"}, SenderRules(AuthenticationMode.DISABLED)),
        (
            {"trustedForwarders": ["192.0.2.0/24", "lists.example.net"], "trustedSealers": ["sealer.example.net"]},
            SenderRules(trusted_forwarders=("192.0.2.0/24", "lists.example.net"),
                        trusted_sealers=("sealer.example.net",)),
        ),
        ({"refusedSPF": []}, SenderRules(refused_spf=())),
        ({"refusedSPF": ["Fail", "TempError", "PermError"]},
         SenderRules(refused_spf=(SpfResult.FAIL, SpfResult.TEMPERROR, SpfResult.PERMERROR))),
        ({"whenUnanswered": "Defer"}, SenderRules(defer_on_temperror=True)),
    ],
)  # fmt: skip
def test_a_gateway_says_what_is_done_about_who_sent_a_message(said: Content, compiled: SenderRules) -> None:
    [made] = build([gateway(authentication=said), *basics()[1:]]).revision.gateways
    assert made.authentication == compiled


@pytest.mark.parametrize(("said", "compiled"), [("TreeWalk", SuffixMode.WALK), ("PublicSuffixList", SuffixMode.LIST)])
def test_a_gateway_chooses_how_an_organization_is_found_DMRC_20b(said: str, compiled: SuffixMode) -> None:
    [made] = build([gateway(authentication={"discoveryMethod": said}), *basics()[1:]]).revision.gateways
    assert made.authentication.suffixes is compiled


@pytest.mark.parametrize("forwarder", ["192.0.2.0/33", "2001:db8::1/129", "Lists.Example", "*.example.net"])
def test_a_forwarder_that_is_neither_network_nor_domain_is_refused(forwarder: str) -> None:
    made = build([gateway(authentication={"trustedForwarders": [forwarder]}), *basics()[1:]])
    assert not made.revision.gateways
    assert any("trustedForwarders" in word for word in words(made))


def test_a_domain_may_say_another_mode_than_its_gateway() -> None:
    made = build([gateway(), domain("a", "a.example", authentication={"mode": "Monitor"}),
                  domain("b", "b.example"), *basics()[1:]])  # fmt: skip
    modes = {d.name: d.authentication for d in made.revision.domains}
    assert (modes["a.example"], modes["b.example"]) == (AuthenticationMode.MONITOR, None)


@pytest.mark.parametrize(
    ("said", "compiled"),
    [
        ({"mode": "Enforce"}, MtaSts(Mode.ENFORCE, 604_800)),
        ({"mode": "Testing", "maxAgeSeconds": 3600}, MtaSts(Mode.TESTING, 3600)),
        ({"mode": "Disabled"}, MtaSts(Mode.NONE, 86_400)),
        (
            {"mode": "Enforce", "mx": ["b.example", "*.a.example"]},
            MtaSts(Mode.ENFORCE, 604_800, ("b.example", "*.a.example")),
        ),
    ],
)
def test_a_domain_says_which_mta_sts_policy_is_served_for_it(said: Content, compiled: MtaSts) -> None:
    made = build([gateway(), domain("example-org", "example.org", mtaSts=said), *basics()[2:]])
    assert [d.mta_sts for d in made.revision.domains] == [compiled]
    assert build(basics()).revision.domains[0].mta_sts is None


def test_a_domain_says_which_of_its_addresses_take_reports() -> None:
    made = build([gateway(), domain("example-org", "example.org", reports={"tls": "TLS"}), *basics()[2:]])
    assert [d.reports for d in made.revision.domains] == [ReportAddresses("dmarc-reports", "tls")]
    assert build(basics()).revision.domains[0].reports is None


def test_an_alias_may_lead_to_a_report_address() -> None:
    aliases = [{"localPart": "rua", "to": ["dmarc-reports"]}]
    made = build([gateway(), domain("example-org", "example.org", aliases=aliases, reports={}), *basics()[2:]])
    assert not [said for said in words(made) if "does not exist" in said]


def test_a_listener_whose_port_and_offset_are_no_port_stays_shut_and_says_so() -> None:
    """uvloop listened on that number modulo 65536."""
    listeners = [{"name": "mx", "protocol": "MX", "port": 25}, {"name": "high", "protocol": "MX", "port": 65000}]
    compiled = build([gateway(listeners=listeners), *basics()[1:]], options=BuildOptions(port_offset=7000))
    assert [li.port for li in compiled.revision.gateways[0].listeners] == [7025]
    assert words(compiled) == [
        "MailGateway default/edge: spec.listeners[1].port: 65000 plus the port offset 7000 is not a port; "
        "the listener stays closed"
    ]


def test_a_listener_offers_what_it_allows_and_some_account_can_use() -> None:
    """Design 5: EHLO is never per user; CRAM-MD5 needs a password and its switch."""

    def offered(*accounts: Content, **listener: Any) -> tuple[str, ...]:
        made = gateway(listeners=[{"name": "s", "protocol": "Submission", "port": 587} | listener])
        return build([made, *basics()[1:], *accounts]).revision.gateways[0].listeners[0].mechanisms

    with_password = [account("a", "example-org", "a", credentialsSecretRef={"name": "pw"}), secret("pw", password="x")]
    verifier = str(ScramVerifier("SCRAM-SHA-1", 4096, b"salt", bytes(20), bytes(20)))
    sha1_only = [
        account("a", "example-org", "a", credentialsSecretRef={"name": "v"}),
        {**secret("v"), "stringData": {"scram-sha-1": verifier}},
    ]
    assert offered() == ()
    assert offered(*with_password) == (
        *("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-1", "PLAIN", "LOGIN"),
    )
    assert offered(*sha1_only) == ("SCRAM-SHA-1-PLUS", "SCRAM-SHA-1", "PLAIN", "LOGIN")
    assert offered(*with_password, mechanisms=["PLAIN", "CRAM-MD5", "SCRAM-SHA-256"]) == (
        *("SCRAM-SHA-256", "CRAM-MD5", "PLAIN"),
    )
    assert offered(*sha1_only, mechanisms=["CRAM-MD5"]) == ()


# --- domains and recipients ---------------------------------------------------------------------------------------


def test_a_domain_whose_gateway_is_not_there_waits_for_it() -> None:
    compiled = build([*basics(), domain("b", "b.example", gatewayRef={"name": "nowhere"}), account("c", "b", "carol")])
    assert names(compiled.revision) == {"example.org"}
    assert words(compiled) == [
        "MailDomain default/b: spec.gatewayRef.name: MailGateway default/nowhere does not exist yet",
        "MailAccount default/c: its MailDomain default/b is not attached to a gateway yet",
    ]
    condition = compiled.diagnostics.of("MailDomain", "b").condition(
        ConditionType.RESOLVED_REFS, ref("MailGateway", "nowhere")
    )
    assert condition is not None
    assert (condition.status, condition.reason) == (Status.FALSE, Reason.PARENT_NOT_FOUND)


def test_who_may_attach_from_another_namespace_is_the_targets_choice() -> None:
    own = open_to("MailDomain", namespaces={"from": "Same"})[0] | {"name": "own"}

    def attached(namespaces: Content | None, **labels: str) -> set[str]:
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team", "labels": labels}}
        entry = open_to("MailDomain", namespaces=namespaces, domainNames=["."])
        made = gateway() if namespaces is None else gateway(attach=[own, *entry])
        documents = [made, *basics()[1:], domain("x", "x.example", namespace="team"), namespace]
        return names(build(documents).revision) - {"example.org"}

    assert attached(None) == set()
    assert attached({"from": "Same"}) == set()
    assert attached({"from": "All"}) == {"x.example"}
    selector = {"from": "Selector", "selector": {"matchLabels": {"mail": "yes", "tier": "a"}}}
    assert attached(selector, mail="yes") == set()
    assert attached(selector, mail="yes", tier="a", more="b") == {"x.example"}


def test_a_reference_that_the_target_does_not_permit_is_as_if_it_were_not_there() -> None:
    documents = [
        gateway(attach=EVERYTHING),
        *basics()[1:],
        transport("relay"),
        domain("x", "x.example", namespace="team",
               delivery=by_transport("relay", namespace="default")),
        route("r", GLOBAL, {"transportRef": {"name": "relay", "namespace": "default"}}, namespace="team"),
    ]  # fmt: skip
    compiled = build(documents)
    [rule] = compiled.revision.global_routes[0].rules
    assert rule.missing
    team = next(d for d in compiled.revision.domains if d.name == "x.example")
    assert team.transport not in {t.ref for t in compiled.revision.transports}
    reasons = {f.reason for f in compiled.diagnostics.findings}
    assert reasons == {Reason.REF_NOT_PERMITTED}
    documents[3] = transport("relay", attach=open_to("MailDomain", "MailRoute"), smtp={"host": "relay.example"})
    allowed = build(documents)
    assert not allowed.revision.global_routes[0].rules[0].missing
    assert allowed.diagnostics.findings == ()


def test_a_domain_keeps_a_missing_delivery_transport_so_that_mail_is_deferred() -> None:
    compiled = build([*basics(), domain("c", "c.example", delivery=by_transport("gone", "Any"))])
    made = next(d for d in compiled.revision.domains if d.name == "c.example")
    assert (made.delivery, made.transport) == (DomainDelivery.TRANSPORT, ref("MailTransport", "gone"))
    assert "MailTransport default/gone does not exist; until it does, matching mail is deferred" in words(compiled)[0]


def test_aliases_become_full_addresses_in_lower_case() -> None:
    compiled = build(
        [*basics(), account("a", "example-org", "a"),
         domain("d", "d.example", aliases=[{"localPart": "Sales", "to": ["INFO", "a@example.org", "Info"]},
                                           {"localPart": "info", "to": ["x@far.example"]}], catchAll="Sales")]
    )  # fmt: skip
    made = next(d for d in compiled.revision.domains if d.name == "d.example")
    assert [(a.local, a.targets) for a in made.aliases] == [
        ("info", ("x@far.example",)),
        ("sales", ("info@d.example", "a@example.org")),
    ]
    assert made.catch_all == "sales@d.example"


@pytest.mark.parametrize(
    "aliases",
    [
        [{"localPart": "a", "to": ["a"]}],
        [{"localPart": "a", "to": ["b"]}, {"localPart": "b", "to": ["x@far.example", "A"]}],
        [{"localPart": "a", "to": ["b+tag"]}, {"localPart": "b", "to": ["a"]}],
    ],
)
def test_a_cycle_of_aliases_is_refused(aliases: list[Content]) -> None:
    compiled = build([*basics(), domain("loop", "loop.example", aliases=aliases)])
    assert names(compiled.revision) == {"example.org"}
    [text] = words(compiled)
    assert "spec.aliases: leads back to itself: a@loop.example → " in text
    accepted = compiled.diagnostics.of("MailDomain", "loop").condition(ConditionType.ACCEPTED)
    assert accepted is not None
    assert accepted.reason is Reason.ALIAS_CYCLE


def test_a_cycle_through_two_domains_is_refused_for_the_edit_that_closes_it() -> None:
    one = domain("one", "one.example", aliases=[{"localPart": "a", "to": ["b@two.example"]}])
    two = domain("two", "two.example", aliases=[{"localPart": "b", "to": ["c@far.example"]}])
    first = build([*basics(), one, two])
    closing = domain("two", "two.example", aliases=[{"localPart": "b", "to": ["a@one.example"]}], separators="-")
    second = build([*basics(), one, closing], first)
    assert {d.name: d.separators for d in second.revision.domains}["two.example"] == "+"
    assert words(second, Severity.ERROR) == [
        "MailDomain default/two: spec.aliases: leads back to itself: a@one.example → b@two.example → a@one.example; "
        "its last accepted version stays in use"
    ]


def test_catch_alls_that_point_at_each_other_are_a_cycle() -> None:
    compiled = build(
        [*basics(), domain("a", "a.example", catchAll="x@b.example"), domain("b", "b.example", catchAll="x@a.example")]
    )
    assert names(compiled.revision) == {"example.org", "a.example"}


def test_a_catch_all_to_an_address_that_does_not_exist_is_cut_and_named() -> None:
    compiled = build([*basics(), domain("d", "d.example", catchAll="ghost")])
    assert next(d for d in compiled.revision.domains if d.name == "d.example").catch_all is None
    assert words(compiled) == ["MailDomain default/d: spec.catchAll: ghost@d.example does not exist"]


def test_a_cycle_that_a_deletion_opens_is_cut_and_named() -> None:
    """An account stood before the alias of the same name; without it the alias would lead in a circle."""
    looping = domain("d", "d.example", aliases=[{"localPart": "a", "to": ["b"]}, {"localPart": "b", "to": ["a"]}])
    first = build([*basics(), looping, account("a", "d", "a")])
    assert "an account has a@d.example; the alias never applies" in words(first)[0]
    second = build([*basics(), looping], first)
    made = next(d for d in second.revision.domains if d.name == "d.example")
    assert [a.local for a in made.aliases] == ["a"]
    assert any("leads back to itself" in w for w in words(second, Severity.WAITING))


def test_an_alias_to_nobody_is_named() -> None:
    compiled = build([*basics(), domain("d", "d.example", aliases=[{"localPart": "a", "to": ["ghost@example.org"]}])])
    assert words(compiled) == [
        "MailDomain default/d: spec.aliases[0]: ghost@example.org does not exist; mail for the alias goes on without it"
    ]
    assert next(d for d in compiled.revision.domains if d.name == "d.example").aliases != ()


def test_an_alias_is_found_whichever_way_its_accent_is_written_RFC_6532_3_1() -> None:
    aliases = [{"localPart": "jose\u0301", "to": ["josé2"]}, {"localPart": "jose\u03012", "to": ["x@far.example"]}]
    compiled = build([*basics(), domain("d", "d.example", aliases=aliases)])
    assert words(compiled) == []
    made = next(d for d in compiled.revision.domains if d.name == "d.example")
    assert [a.local for a in made.aliases] == ["josé", "josé2"]


@pytest.mark.parametrize(("one", "other"), [("Info", "info"), ("josé", "jose\u0301")])
def test_two_aliases_that_are_the_same_to_mail_are_refused(one: str, other: str) -> None:
    """One of them was dropped without a word."""
    aliases = [{"localPart": one, "to": ["a@far.example"]}, {"localPart": other, "to": ["b@far.example"]}]
    [text] = words(build([*basics(), domain("d", "d.example", aliases=aliases)]), Severity.ERROR)
    assert "each entry needs a localPart that differs in more than case and Unicode form" in text


def people(local: str, count: int) -> Content:
    return {"localPart": local, "to": [f"{local}-{n}@far.example" for n in range(count)]}


def everyone(groups: int) -> list[Content]:
    """`all` stands for groups of a thousand people each."""
    names = [f"g{n}" for n in range(groups)]
    halls = [people(f"{name}-{n}", 100) for name in names for n in range(10)]
    grouped = [{"localPart": name, "to": [f"{name}-{n}" for n in range(10)]} for name in names]
    return [*halls, *grouped, {"localPart": "all", "to": names}]


def test_an_alias_that_leads_to_more_addresses_than_ingress_follows_is_refused() -> None:
    compiled = build([*basics(), domain("big", "big.example", aliases=everyone(12))])
    assert names(compiled.revision) == {"example.org"}
    [text] = words(compiled, Severity.ERROR)
    assert "spec.aliases: all@big.example leads to more than 10000 addresses" in text
    accepted = compiled.diagnostics.of("MailDomain", "big").condition(ConditionType.ACCEPTED)
    assert accepted is not None
    assert accepted.reason is Reason.ALIAS_TOO_LARGE


def test_an_alias_below_the_limit_is_fine_also_when_its_members_share_theirs() -> None:
    shared = [*everyone(9), {"localPart": "twice", "to": ["all", "g0", "g1", "g2", "g3"]}]
    compiled = build([*basics(), domain("big", "big.example", aliases=shared)])
    assert words(compiled) == []
    assert names(compiled.revision) == {"example.org", "big.example"}


def test_the_edit_that_makes_an_alias_too_large_is_refused_whichever_domain_has_the_alias() -> None:
    top = domain("top", "top.example", aliases=[{"localPart": "all", "to": ["all@big.example"]}, people("more", 100)])
    small = domain("big", "big.example", aliases=everyone(9))
    first = build([*basics(), top, small])
    assert words(first) == []
    second = build([*basics(), top, domain("big", "big.example", aliases=everyone(12), separators="-")], first)
    [text] = words(second, Severity.ERROR)
    assert text.startswith("MailDomain default/big: spec.aliases: all@big.example leads to more than")
    assert text.endswith("its last accepted version stays in use")
    assert {d.name: d.separators for d in second.revision.domains} == {
        "example.org": "+",
        "top.example": "+",
        "big.example": "+",
    }


def test_an_alias_that_a_deletion_makes_too_large_stays_and_its_mail_is_said_to_wait() -> None:
    """An account stood before the alias of the same name. Cut, the alias would refuse mail for good."""
    big = domain("big", "big.example", aliases=everyone(12))
    first = build([*basics(), big, account("all", "big", "all")])
    assert words(first, Severity.ERROR) == []
    second = build([*basics(), big], first)
    [text] = words(second, Severity.WAITING)
    assert "all@big.example leads to more than 10000 addresses" in text
    assert text.endswith("mail for it is deferred")
    assert len(next(d for d in second.revision.domains if d.name == "big.example").aliases) == 133


@pytest.mark.parametrize(
    "target", ["foo..bar@docomo.example", ".x@far.example", "x.@far.example", "a\x85b@far.example"]
)
def test_an_alias_to_an_address_that_mail_cannot_be_sent_to_is_refused(target: str) -> None:
    """Once it was accepted, and the address was left out at each message without a word."""
    compiled = build(
        [*basics(), domain("d", "d.example", aliases=[{"localPart": "a", "to": [target, "x@far.example"]}])]
    )
    [text] = words(compiled, Severity.ERROR)
    assert "spec.aliases[0].to[0]" in text


# --- transports -------------------------------------------------------------------------------------------------


def test_every_member_becomes_its_kind_with_its_defaults() -> None:
    auth = {"secretRef": {"name": "cred"}}
    documents = [
        transport("a", direct={"ipFamilies": ["IPv6"], "sourceAddresses": ["2001:db8::1"]}),
        transport("b", smtp={"host": "[2001:db8::2]"}),
        transport("c", submission={"host": "s.example", "auth": auth | {"mechanisms": ["PLAIN"]}}),
        transport("d", submissions={"host": "s.example", "auth": auth | {"username": "me"}}),
        transport(
            "e",
            socks={"address": "[::1]:1080", "remoteIPs": ["192.0.2.1"], "remoteHostname": "o.example", "auth": auth},
        ),
        transport(
            "f",
            lmtp={"host": "store", "port": 2424},
            limits={"maxConnections": 3, "recipientsPerMessage": 7, "rate": {"messages": 1, "perSeconds": 300}},
            signedMail={"mode": "Reencode"},
        ),
        transport("g", fail={}),
        secret("cred", username="us\n", password="hush\n"),
    ]
    compiled = build([*basics(), *documents])
    made = {t.ref.name: t for t in compiled.revision.transports}
    assert [t.kind for t in made.values()] == list(TransportKind)
    assert [t.tls for t in made.values()] == [
        TlsMode.OPPORTUNISTIC,
        TlsMode.OPPORTUNISTIC,
        TlsMode.VERIFIED,
        TlsMode.VERIFIED,
        TlsMode.OPPORTUNISTIC,
        TlsMode.NONE,
        TlsMode.OPPORTUNISTIC,
    ]
    assert (made["a"].families, made["a"].source_addresses) == (("ipv6",), ("2001:db8::1",))
    assert [(made[n].host, made[n].port) for n in "bcdf"] == [
        ("2001:db8::2", 25),
        ("s.example", 587),
        ("s.example", 465),
        ("store", 2424),
    ]
    assert (made["c"].username, made["c"].mechanisms, made["d"].username) == ("us", ("PLAIN",), "me")
    assert (made["e"].proxy_host, made["e"].proxy_port, made["e"].remote_hostname) == ("::1", 1080, "o.example")
    assert (made["f"].limits.connections, made["f"].limits.recipients_per_message) == (3, 7)
    assert made["g"].code == 554
    assert [made[n].reencode_signed for n in "bf"] == [False, True]
    assert made["f"].limits.rate == MessageRate(1, 300)
    for name in "cde":
        password = made[name].password
        assert password is not None
        assert compiled.values[password.path]() == b"hush"
    assert b"hush" not in compiled.encoded
    assert b"hush" not in encode_state(compiled.state)
    assert "hush" not in repr(compiled)


@dataclass(frozen=True, slots=True)
class LaterLimits(TransportLimits):
    """The limits of a later release, which has a field more."""

    octets_per_second: int | None = None


@dataclass(frozen=True, slots=True)
class LaterTransport(Transport):
    """A transport of a later release."""

    egress: str = "any"


def test_processes_of_two_releases_agree_on_a_transport_until_a_new_field_is_set_LSE_07() -> None:
    ref = ObjectRef("MailTransport", "default", "relay")
    password = SecretRef("default", "cred", "password", "00", "k1")

    def digest(kind: type[Transport], limits: TransportLimits, **more: Any) -> str:
        made = kind(ref, TransportKind.SUBMISSION, host="s.example", password=password, limits=limits, **more)
        return made.digest

    today = digest(Transport, TransportLimits(connections=3))
    assert digest(LaterTransport, LaterLimits(connections=3)) == today
    assert digest(LaterTransport, LaterLimits(connections=3), egress="eu") != today
    assert digest(LaterTransport, LaterLimits(connections=3, octets_per_second=9)) != today
    assert digest(Transport, TransportLimits(connections=4)) != today
    assert digest(Transport, TransportLimits(connections=3), username="us") != today


def test_a_changed_password_changes_the_revision_and_the_transports_digest_CFG_02() -> None:
    def made(password: str) -> Compiled:
        login = transport("c", submission={"host": "s.example", "auth": {"secretRef": {"name": "cred"}}})
        return build([*basics(), login, secret("cred", username="us", password=password)])

    one, other = made("a"), made("b")
    assert one.checksum != other.checksum
    assert one.revision.transports[0].digest != other.revision.transports[0].digest
    assert one.checksum == made("a").checksum
    login = transport("c", submission={"host": "s.example", "auth": {"secretRef": {"name": "cred"}}})
    documents = [*basics(), login, secret("cred", username="us", password="a")]
    assert one.checksum != build(documents, keys=Keyring({"k1": bytes(32), "k2": bytes(32)})).checksum


def test_a_transport_without_its_secret_is_unusable_and_its_mail_deferred_never_sent_without() -> None:
    login = transport("c", submission={"host": "s.example", "auth": {"secretRef": {"name": "cred"}}})
    first = build(
        [*basics(), login, secret("cred", username="us", password="a"), route("r", GLOBAL, to("c", "x.example"))]
    )
    assert not first.revision.global_routes[0].rules[0].missing
    second = build([*basics(), login, route("r", GLOBAL, to("c", "x.example"))], first)
    assert second.revision.transports == ()
    assert second.revision.global_routes[0].rules[0].missing
    assert words(second) == [
        "MailTransport default/c: spec.submission: Secret default/cred does not exist; "
        "until that is mended, mail for this transport is deferred",
        "MailRoute default/r: spec.rules[0].transportRef.name: MailTransport default/c cannot be used now, "
        "see its status; matching mail is deferred",
    ]
    # A Secret that is broken, not gone, counts as unchanged.
    broken = secret("cred", username="us", password="a") | {"data": {"password": "%%%"}}
    third = build([*basics(), login, broken, route("r", GLOBAL, to("c", "x.example"))], first)
    assert third.encoded == first.encoded
    assert words(third) == [
        "Secret default/cred: data.password: is not base64; put plain values under stringData; "
        "its last accepted content stays in use"
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"username": "us"}, "Secret default/cred has no key password"),
        ({"password": "x"}, "Secret default/cred has no key username"),
        ({"username": "us", "password": ""}, "Secret default/cred: the password is empty"),
        ({"username": "a\nb", "password": "x"}, "Secret default/cred: username must be up to 255 characters"),
    ],
)
def test_a_secret_that_cannot_be_used_says_so_without_its_content(values: dict[str, str], message: str) -> None:
    login = transport("c", submission={"host": "s.example", "auth": {"secretRef": {"name": "cred"}}})
    compiled = build([*basics(), login, secret("cred", **values)])
    assert message in words(compiled)[0]


def _certificate(key: ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.example.org")])
    moment = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(moment).not_valid_after(moment + datetime.timedelta(days=1)).sign(key, hashes.SHA256())
    )  # fmt: skip
    return made.public_bytes(serialization.Encoding.PEM)


def _pem(key: Any) -> str:
    return str(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()
    )


@pytest.fixture(scope="module")
def tls() -> tuple[str, str, str]:
    """A certificate, its key, and another key."""
    key, other = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    return _certificate(key).decode(), _pem(key), _pem(other)


def test_a_listener_gets_certificate_and_key_and_keeps_the_last_when_the_secret_goes(tls: tuple[str, str, str]) -> None:
    certificate, key, _ = tls
    listener = {"name": "mx", "protocol": "MX", "port": 25, "tls": {"certificateSecretRef": {"name": "mx-tls"}}}
    made = [gateway(listeners=[listener]), *basics()[1:]]
    first = build([*made, secret("mx-tls", tls_crt=certificate, tls_key=key)])
    reference = first.revision.gateways[0].listeners[0].certificate
    assert reference is not None
    assert first.values[reference.path]().decode() == certificate.rstrip() + "\n" + key.rstrip() + "\n"
    assert reference.path in secrets_for(first.revision, Role.INGRESS)
    second = build(made, first)
    assert second.revision == first.revision
    assert "Secret default/mx-tls does not exist; its last certificate stays in use" in words(second)[0]
    third = build(made, second)
    assert third.revision == first.revision
    # A name that is mistyped, or whose Secret comes later, closes no port either.
    renamed = {**listener, "tls": {"certificateSecretRef": {"name": "mx-tsl"}}}
    fourth = build([gateway(listeners=[renamed]), *basics()[1:]], third)
    assert fourth.revision == first.revision
    assert "Secret default/mx-tsl does not exist; its last certificate stays in use" in words(fourth)[0]
    # Without any certificate the listener stays shut: in the clear would be a silent downgrade (promise 2).
    fresh = build(made)
    assert fresh.revision.gateways[0].listeners == ()
    assert "until that is mended, the listener stays closed" in words(fresh)[0]


@pytest.mark.parametrize(
    ("crt", "key", "message"),
    [
        ("junk", None, "tls.crt is not a PEM certificate"),
        (None, "junk", "tls.key is not an unencrypted PEM private key"),
        (None, "other", "tls.key is not the key of the first certificate in tls.crt"),
    ],
)
def test_a_certificate_that_could_not_serve_is_refused(
    tls: tuple[str, str, str], crt: str | None, key: str | None, message: str
) -> None:
    certificate, good, other = tls
    listener = {"name": "mx", "protocol": "MX", "port": 25, "tls": {"certificateSecretRef": {"name": "mx-tls"}}}
    values = {"tls_crt": crt or certificate, "tls_key": other if key == "other" else key or good}
    compiled = build([gateway(listeners=[listener]), *basics()[1:], secret("mx-tls", **values)])
    assert f"Secret default/mx-tls: {message}" in words(compiled)[0]


def test_authorities_come_from_a_secret_or_in_local_mode_a_file(tls: tuple[str, str, str]) -> None:
    certificate = tls[0]
    by_file = transport("t", lmtp={"host": "store", "tls": {"mode": "Verified", "caFile": "ca.pem"}})
    by_secret = transport("t", lmtp={"host": "store", "tls": {"mode": "Verified", "caSecretRef": {"name": "ca"}}})

    def ca(compiled: Compiled) -> bytes | None:
        [made] = compiled.revision.transports or [None]
        return compiled.values[made.ca.path]() if made is not None and made.ca is not None else None

    assert ca(build([*basics(), by_file], files={"ca.pem": certificate.encode()})) == certificate.encode()
    assert ca(build([*basics(), by_secret, secret("ca", ca_crt=certificate)])) == certificate.encode()
    for documents, files, message in (
        ([by_file], {}, "the file ca.pem does not exist or cannot be read"),
        ([by_file], None, "caFile works in local mode only; use caSecretRef"),
        ([by_file], {"ca.pem": b"junk"}, "the file ca.pem: it has no PEM certificate"),
        (
            [by_secret, secret("ca", ca_crt="junk")],
            {},
            "Secret default/ca, key ca.crt: it has no PEM certificate",
        ),
    ):
        compiled = build([*basics(), *documents], files=files)
        assert compiled.revision.transports == ()
        assert message in words(compiled)[0]


# --- accounts' credentials (CFG-03) -------------------------------------------------------------------------------


def test_a_password_becomes_two_verifiers_and_nothing_else_CFG_03() -> None:
    compiled = build([*basics(), account("a", "example-org", "a", credentialsSecretRef={"name": "pw"}),
                      secret("pw", password="wonderland\n")])  # fmt: skip
    made = compiled.revision.accounts[0]
    verifiers = [ScramVerifier.parse(compiled.values[r.path]().decode()) for _, r in made.scram]
    assert [(m, v.mechanism, v.admits("wonderland")) for (m, _), v in zip(made.scram, verifiers, strict=True)] == [
        ("SCRAM-SHA-256", "SCRAM-SHA-256", True),
        ("SCRAM-SHA-1", "SCRAM-SHA-1", True),
    ]
    assert made.password is None
    assert secrets_for(compiled.revision, Role.QUEUE) == secrets_for(compiled.revision, Role.OUTBOUND) == frozenset()


def test_the_sealed_password_goes_along_only_where_cram_md5_is_on_CFG_03() -> None:
    listener = {"name": "s", "protocol": "Submission", "port": 587, "mechanisms": ["CRAM-MD5", "PLAIN"]}
    compiled = build([gateway(listeners=[listener]), *basics()[1:],
                      account("a", "example-org", "a", credentialsSecretRef={"name": "pw"}),
                      secret("pw", password="x")])  # fmt: skip
    password = compiled.revision.accounts[0].password
    assert password is not None
    assert compiled.values[password.path]() == b"x"


def test_two_accounts_with_one_secret_get_different_verifiers_CFG_03() -> None:
    compiled = build([*basics(), secret("pw", password="x"),
                      *(account(n, "example-org", n, credentialsSecretRef={"name": "pw"}) for n in "ab")])  # fmt: skip
    one, other = (a.scram[0][1].path for a in compiled.revision.accounts[:2])
    assert one != other
    assert compiled.values[one]() != compiled.values[other]()


def test_the_uid_of_the_cluster_salts_the_verifier_and_in_local_mode_the_name_does_CFG_03() -> None:
    assert account_uid(ref("MailAccount", "a"), "uid-1") == "uid-1"
    assert account_uid(ref("MailAccount", "a"), None) == account_uid(ref("MailAccount", "a"), None)
    assert account_uid(ref("MailAccount", "a"), None) != account_uid(ref("MailAccount", "b"), None)
    content = account("a", "example-org", "a")
    content["metadata"]["uid"] = "uid-1"
    assert build([*basics(), content]).revision.accounts[0].uid == "uid-1"


def test_given_verifiers_serve_as_they_are_and_a_wrong_one_is_refused() -> None:
    verifier = str(ScramVerifier("SCRAM-SHA-256", 10000, b"salt", bytes(32), bytes(32)))
    made = account("a", "example-org", "a", credentialsSecretRef={"name": "v"})
    good = build(
        [*basics(), made, {**secret("v"), "data": {"scram-sha-256": base64.b64encode(verifier.encode()).decode()}}]
    )
    [(mechanism, reference)] = good.revision.accounts[0].scram
    assert (mechanism, good.values[reference.path]()) == ("SCRAM-SHA-256", verifier.encode())
    for values, message in (
        ({"scram-sha-1": verifier}, "scram-sha-1 is a SCRAM-SHA-256 verifier"),
        ({"scram-sha-256": "x"}, "key scram-sha-256: the verifier should look like"),
        ({"pasword": "x"}, "has no password and no scram-sha-256 or scram-sha-1"),
    ):
        bad = build([*basics(), made, {**secret("v"), "stringData": values}])
        assert bad.revision.accounts[0].scram == ()
        assert message in words(bad)[0]
        assert words(bad)[0].endswith("; the account cannot log in")


def test_a_deleted_credential_secret_ends_the_login() -> None:
    documents = [*basics(), account("a", "example-org", "a", credentialsSecretRef={"name": "pw"})]
    first = build([*documents, secret("pw", password="x")])
    assert first.revision.accounts[0].scram
    assert build(documents, first).revision.accounts[0].scram == ()


# --- routes -------------------------------------------------------------------------------------------------------


def rule_names(compiled: Compiled) -> list[str]:
    return [f"{r.route.name}/{r.name}" for level in compiled.revision.global_routes for r in level.rules]


def test_rules_are_ordered_by_priority_then_name_then_position() -> None:
    documents = [
        route("b", GLOBAL, to(None, "1.example"), to(None, "2.example", name="two")),
        route("a", GLOBAL, to(None, "3.example")),
        route("z", GLOBAL, to(None, "4.example"), priority=10),
        route("c", GLOBAL, to(None, "5.example"), priority=2000),
    ]
    for order in itertools.permutations(documents):
        assert rule_names(build([*basics(), *order])) == ["z/0", "a/0", "b/0", "b/two", "c/0"]


def test_a_route_attaches_to_each_of_its_parents_level_by_level() -> None:
    parents = [("MailGateway", "edge"), ("MailDomain", "example-org"), ("MailAccount", "postmaster")]
    made = route("r", parents, to(None, "x.example"))
    made["spec"]["parentRefs"].append({"kind": "MailGateway", "name": "edge"})  # the first one, in other words
    compiled = build([*basics(), made])
    revision = compiled.revision
    for levels, parent in (
        (revision.account_routes, ref("MailAccount", "postmaster")),
        (revision.domain_routes, ref("MailDomain", "example-org")),
        (revision.global_routes, ref("MailGateway", "edge")),
    ):
        assert [(level.parent, len(level.rules)) for level in levels] == [(parent, 1)]


def test_a_rule_with_a_missing_transport_keeps_its_place_and_defers() -> None:
    compiled = build([*basics(), route("r", GLOBAL, to("gone", "x.example"), to(None, ".x.example"))])
    first, second = compiled.revision.global_routes[0].rules
    assert (first.missing, first.transport) == (True, ref("MailTransport", "gone"))
    assert (second.missing, second.transport) == (False, None)
    condition = compiled.diagnostics.of("MailRoute", "r").condition(
        ConditionType.RESOLVED_REFS, ref("MailGateway", "edge")
    )
    assert condition is not None
    assert condition.reason is Reason.TRANSPORT_NOT_FOUND
    assert "deferred" in condition.message


def test_a_route_whose_parent_is_not_there_waits_and_the_other_parent_serves() -> None:
    compiled = build([*basics(), route("r", [("MailDomain", "nowhere"), *GLOBAL], to(None, "x.example"))])
    assert rule_names(compiled) == ["r/0"]
    status = compiled.diagnostics.of("MailRoute", "r")
    waiting = status.condition(ConditionType.RESOLVED_REFS, ref("MailDomain", "nowhere"))
    serving = status.condition(ConditionType.RESOLVED_REFS, ref("MailGateway", "edge"))
    assert waiting is not None
    assert serving is not None
    assert (waiting.reason, serving.status) == (Reason.PARENT_NOT_FOUND, Status.TRUE)


def conditions(compiled: Compiled, name: str, parent: ObjectRef) -> dict[ConditionType, str]:
    parents = dict(compiled.diagnostics.of("MailRoute", name).parents)
    shown = (ConditionType.SHADOWED, ConditionType.AMBIGUOUS)
    return {c.type: c.message for c in parents[parent] if c.type in shown}


def test_a_shadowed_rule_is_named_with_the_one_that_hides_it() -> None:
    edge = ref("MailGateway", "edge")
    compiled = build([
        *basics(),
        transport("t"),
        route("a", GLOBAL, to("t", ".x.example", name="wide"), to(None, "b.x.example"), priority=1),
        route("b", GLOBAL, to(None, "x.example", attempts=3)),
        route("c", GLOBAL, to(None, "y.example")),
    ])  # fmt: skip
    assert conditions(compiled, "a", edge) == {
        ConditionType.SHADOWED: "spec.rules[1] never applies: spec.rules[0] matches the same mail first"
    }
    assert conditions(compiled, "b", edge) == {
        ConditionType.SHADOWED: "spec.rules[0] never applies: rule wide of MailRoute default/a "
        "matches the same mail first"
    }
    assert conditions(compiled, "c", edge) == {}


def test_rules_that_only_names_decide_between_are_ambiguous_on_both_sides() -> None:
    edge = ref("MailGateway", "edge")
    compiled = build([
        *basics(),
        transport("t"),
        route("a", GLOBAL, to("t", ".x.example")),
        route("b", GLOBAL, to(None, "y.x.example", ".z.example")),
        route("c", GLOBAL, to("t", "y.x.example"), priority=5),
    ])  # fmt: skip
    assert "rule 0 of MailRoute default/b" in conditions(compiled, "a", edge)[ConditionType.AMBIGUOUS]
    assert "rule 0 of MailRoute default/a" in conditions(compiled, "b", edge)[ConditionType.AMBIGUOUS]
    assert conditions(compiled, "c", edge) == {}
    same = build(
        [*basics(), transport("t"), route("a", GLOBAL, to("t", "x.example")), route("b", GLOBAL, to("t", ".x.example"))]
    )
    assert conditions(same, "b", edge) == {}  # the same transport: the order makes no difference


def test_a_rule_that_no_mail_can_reach_says_why() -> None:
    home, edge = ref("MailDomain", "example-org"), ref("MailGateway", "edge")
    compiled = build([
        *basics(),
        route("a", [("MailDomain", "example-org")], to(None, "x.example", senders=["other.example"])),
        route("b", GLOBAL, to(None, "example.org")),
    ])  # fmt: skip
    assert (
        "none of its fromDomains matches example.org, to which it is attached"
        in (conditions(compiled, "a", home)[ConditionType.SHADOWED])
    )
    assert "domains of ours" in conditions(compiled, "b", edge)[ConditionType.SHADOWED]


# --- bounds and strangers -----------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["apiVersion", "kind", "metadata", "spec", "data", "stringData", "x"]),
            st.recursive(
                st.none()
                | st.booleans()
                | st.integers()
                | st.text(max_size=8)
                | st.sampled_from(["Secret", "MailRoute", "v1"]),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
                max_leaves=8,
            ),
            max_size=6,
        ),
        max_size=4,
    )
)
def test_no_document_makes_the_compiler_raise(documents: list[Content]) -> None:
    first = build(basics())
    assert build([*basics(), *documents], first).revision.gateways == first.revision.gateways


def test_secrets_appear_in_no_finding_state_or_representation() -> None:
    word = "Tr0ub4dor"
    documents = [
        *basics(),
        account("a", "example-org", "a", credentialsSecretRef={"name": "pw"}),
        secret("pw", password=word),
        {**secret("bad"), "data": {"password": word}},
        {**secret("odd"), "stringData": {"password": [word]}},
    ]
    compiled = build(documents)
    assert len(compiled.diagnostics.errors) == 2
    for text in (
        repr(compiled),
        compiled.diagnostics.encode(),
        compiled.encoded.decode(),
        repr(sources(documents).documents[3].place),
    ):
        assert word not in text


def test_what_is_there_and_refused_is_not_said_to_be_missing() -> None:
    compiled = build(
        [
            *basics(),
            domain("shop", "-"),
            account("bob", "shop", "bob"),
            transport("broken", smtp={"host": "-"}),
            transport("keyless", submission={"host": "s.example", "auth": {"secretRef": {"name": "nothing"}}}),
            route("r", GLOBAL, to("broken", "a.example"), to("keyless", "b.example"), to("nobody", "c.example")),
        ]
    )
    waiting = words(compiled, Severity.WAITING)
    assert any("MailDomain default/shop is refused, see its status" in text for text in waiting)
    assert any("MailTransport default/broken is refused, see its status" in text for text in waiting)
    assert any("MailTransport default/keyless cannot be used now, see its status" in text for text in waiting)
    assert any("MailTransport default/nobody does not exist" in text for text in waiting)
    reasons = [f.reason for f in compiled.diagnostics.findings if f.ref == ref("MailRoute", "r")]
    assert reasons.count(Reason.TRANSPORT_NOT_USABLE) == 2
    assert reasons.count(Reason.TRANSPORT_NOT_FOUND) == 1
    postmasterless = build(
        [
            gateway(postmaster={"accountRef": {"name": "bob"}}),
            *basics()[1:],
            domain("shop", "-"),
            account("bob", "shop", "bob"),
        ]
    )
    assert any("has no domain: MailDomain default/shop is refused" in text for text in words(postmasterless))


def test_a_change_of_one_object_among_very_many_makes_that_piece_alone_CFG_06() -> None:
    many = [*basics(), *(route(f"many{n}", GLOBAL, to("hop", f"d{n}.example")) for n in range(60))]
    first = build(many)
    made = pieces._made.cache_info().misses
    build([*many, route("another", GLOBAL, to("hop", "another.example"))], first.state)
    assert pieces._made.cache_info().misses == made + 1
    assert pieces.KEPT > 100_000, "all of 100,000 routes are kept: of fewer none would be found"
