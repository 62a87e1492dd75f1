"""What another version of Mailrail accepted, and this one cannot read, goes on as it runs (CFG-01)."""

import json
import zlib
from dataclasses import replace
from typing import Any

import pytest
from unit.config.test_compiler import (
    Content,
    account,
    basics,
    build,
    by_transport,
    domain,
    gateway,
    names,
    open_to,
    ref,
    route,
    secret,
    to,
    transport,
    words,
)

from mailrail.core.config.compiler import Compiled
from mailrail.core.config.diagnostics import ConditionType, Reason, Status
from mailrail.core.config.pieces import FORMAT, SIZE_LIMIT
from mailrail.core.config.state import (
    Accepted,
    CompilerState,
    StoredPiece,
    UnreadableState,
    decode_state,
    encode_state,
    with_bounded_pieces,
)
from mailrail.core.resources import AnyResource, canonical, read
from mailrail.core.revision.revision import ObjectRef, UnreadableRevision, decode

SHOP = domain("shop", "shop.example", delivery=by_transport("store"))
FUTURE: list[dict[str, Any]] = [
    {"egress": {"pool": "eu"}},  # a field of a later version
    {"delivery": {"pigeon": {}}},  # a member of its union
    {"delivery": {"transport": {"ref": {"name": "store"}, "recipients": "Guess"}}},  # a word of its enumeration
]
UNKNOWN: list[StoredPiece | None] = [
    None,  # it was too large to be kept
    StoredPiece(FORMAT + 1, "{}"),
    StoredPiece(FORMAT, "{}"),
    StoredPiece(FORMAT, "no JSON"),
]


def of_another_version(written: Content, spec: dict[str, Any]) -> Content:
    return written | {"spec": written["spec"] | spec}


def source_of(written: Content) -> str:
    return canonical(json.loads(json.dumps(written)))


def accepted_by_another_version(documents: list[Content], *future: Content) -> CompilerState:
    """The state of a compilation by a version that could read `future`: names, pieces and sources as it stored them."""
    state = build(documents, files={}).state
    sources = {(d["kind"], d["metadata"]["name"]): source_of(d) for d in future}
    accepted = tuple(replace(a, source=sources.get((a.ref.kind, a.ref.name), a.source)) for a in state.accepted)
    return replace(state, accepted=accepted)


def with_piece(state: CompilerState, name: str, piece: StoredPiece | None) -> CompilerState:
    return replace(state, accepted=tuple(replace(a, piece=piece) if a.ref.name == name else a for a in state.accepted))


def documents(shop: Content) -> list[Content]:
    return [*basics(), shop, account("ann", "shop", "ann"), transport("store")]


def condition(compiled: Compiled, kind: str, name: str, of: ConditionType) -> tuple[Status, Reason, str]:
    found = compiled.diagnostics.of(kind, name).condition(of)
    assert found is not None
    return found.status, found.reason, found.message


# --- with fields that CRDs hide -------------------------------------------------------------------------------------


def stored_as(written: Content, generation: int, uid: str = "1") -> Content:
    """As the API server shows an object."""
    return written | {"metadata": written["metadata"] | {"generation": generation, "uid": uid}}


@pytest.mark.parametrize("spec", FUTURE[:2])
def test_a_field_that_older_CRDs_hide_stays_in_force_and_is_named(spec: dict[str, Any]) -> None:
    """An upgrade is taken back: the older version reads a sound object without its demand, of the same generation."""
    demanding = stored_as(of_another_version(SHOP, spec), 3)
    state = accepted_by_another_version(documents(stored_as(SHOP, 3)), demanding)
    hidden = stored_as(of_another_version(SHOP, {"delivery": {}}) if "delivery" in spec else SHOP, 3)
    compiled = build(documents(hidden), state)
    assert compiled.revision.domains == build(documents(SHOP)).revision.domains
    assert compiled.held == ()
    (field,) = spec
    status, reason, message = condition(compiled, "MailDomain", "shop", ConditionType.ACCEPTED)
    assert (status, reason) == (Status.FALSE, Reason.NOT_SUPPORTED)
    assert f"spec.{field}" in message
    assert "the API server no longer shows it" in message
    again = build(documents(hidden), compiled.state)
    assert again.encoded == compiled.encoded
    assert condition(again, "MailDomain", "shop", ConditionType.ACCEPTED)[1] is Reason.NOT_SUPPORTED


def test_a_field_that_was_hidden_stays_in_force_where_the_version_that_has_it_is_back() -> None:
    """The older version wrote a status, which dropped the field for good; the object looks as if it never had it."""
    demanding = stored_as(domain("shop", "shop.example", retry={"lifetimeSeconds": 3600}), 3)
    first = build(documents(demanding))
    dropped = documents(stored_as(domain("shop", "shop.example"), 3))
    second = build(dropped, first)
    assert second.encoded == first.encoded
    status, reason, message = condition(second, "MailDomain", "shop", ConditionType.ACCEPTED)
    assert (status, reason) == (Status.FALSE, Reason.NOT_SUPPORTED)
    assert "spec.retry: the API server no longer shows it" in message


@pytest.mark.parametrize("change", [{"generation": 4}, {"uid": "2"}])
def test_a_field_that_somebody_removed_is_gone(change: dict[str, Any]) -> None:
    first = build(documents(stored_as(domain("shop", "shop.example", retry={"lifetimeSeconds": 3600}), 3)))
    second = build(documents(stored_as(domain("shop", "shop.example"), **{"generation": 3, **change})), first)
    assert second.encoded != first.encoded
    assert condition(second, "MailDomain", "shop", ConditionType.ACCEPTED)[0] is Status.TRUE


# --- with its piece -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", FUTURE)
def test_an_object_that_this_version_cannot_read_runs_on_and_holds_up_no_change_of_others(spec: dict[str, Any]) -> None:
    shop = of_another_version(SHOP, spec)
    state = accepted_by_another_version(documents(SHOP), shop)
    compiled = build([*documents(shop), route("new", [("MailDomain", "shop")], to(None))], state, files={})
    assert compiled.held == ()
    before = build(documents(SHOP)).revision
    assert compiled.revision.domains == before.domains
    assert [level.rules[0].route.name for level in compiled.revision.domain_routes] == ["new"]
    status, reason, message = condition(compiled, "MailDomain", "shop", ConditionType.ACCEPTED)
    assert (status, reason) == (Status.FALSE, Reason.NOT_SUPPORTED)
    assert "it runs on as that version compiled it: mend it, or run a version that can read it" in message
    assert "spec" in message, "what it is that cannot be read is said too"
    assert condition(compiled, "MailDomain", "shop", ConditionType.PROGRAMMED)[0] is Status.UNKNOWN, "services run it"
    assert any("its last accepted version stays in use" in text for text in words(compiled) if "MailDomain" in text)


def test_an_object_that_cannot_be_read_is_tried_once_and_not_at_each_compilation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a rollback that may be every object of a kind (CFG-06)."""
    tried: list[str] = []

    def counted(source: str, kind: str) -> AnyResource:
        tried.append(source)
        return read(source, kind)

    monkeypatch.setattr("mailrail.core.config.pieces.read", counted)
    seldom = domain("tried-once", "tried-once.example")
    future = of_another_version(seldom, {"later": {}})
    compiled = build([*basics(), future], accepted_by_another_version([*basics(), seldom], future))
    again = build([*basics(), future], compiled)
    assert tried.count(source_of(future)) == 1
    assert again.diagnostics == compiled.diagnostics


OWN = {"name": "own", "kinds": ["MailDomain", "MailRoute"], "namespaces": {"from": "Same"}}
ONE_OF_EACH = [
    gateway(attach=[OWN, *open_to("MailDomain", "MailRoute", domainNames=[".team.example"], minimumPriority=2000)]),
    domain("example-org", "example.org", aliases=[{"localPart": "Sales", "to": ["ann", "x@y.example"]}]),
    domain("shop", "shop.example", delivery=by_transport("store"), retry={"lifetimeSeconds": 3600}),
    account("postmaster", "example-org", "postmaster"),
    account("ann", "example-org", "ann", credentialsSecretRef={"name": "ann"}, sendAs=["sales"]),
    secret("ann", password="wonderland"),
    transport("store", lmtp={"host": "store.example", "tls": {"mode": "Verified"}}, limits={"maxConnections": 5}),
    transport("login", submission={"host": "s.example", "auth": {"secretRef": {"name": "cred"}}}),
    secret("cred", username="us", password="hush"),
    route("rules", [("MailGateway", "edge"), ("MailDomain", "shop"), ("MailAccount", "ann")], to("login", "a.example")),
]


@pytest.mark.parametrize(
    ("kind", "name"),
    [(d["kind"], d["metadata"]["name"]) for d in ONE_OF_EACH if d["kind"] != "Secret"],
)
def test_no_part_of_the_revision_changes_when_an_object_can_no_longer_be_read(kind: str, name: str) -> None:
    """Its names, addresses, grants, Secrets and rules, and all that attaches to it."""
    changed = [
        of_another_version(d, {"later": {}}) if (d["kind"], d["metadata"]["name"]) == (kind, name) else d
        for d in ONE_OF_EACH
    ]
    before = build(ONE_OF_EACH)
    state = accepted_by_another_version(ONE_OF_EACH, *(d for d in changed if "later" in d.get("spec", {})))
    compiled = build(changed, state)
    assert compiled.encoded == before.encoded
    assert compiled.state.claims == before.state.claims
    assert compiled.state.uses == before.state.uses
    told = {s.ref for s in compiled.diagnostics.objects if s.conditions[-1].status is Status.FALSE}
    assert told == {ref(kind, name)}, "what attaches to it, and what names it, has nothing to say"


def test_the_piece_is_handed_on_as_it_is_until_the_object_is_mended_or_deleted() -> None:
    """A field that only the other version knows is still in it when that version is back."""
    shop = of_another_version(SHOP, FUTURE[0])
    state = accepted_by_another_version(documents(SHOP), shop)
    stored = next(a.piece for a in state.accepted if a.ref.name == "shop")
    assert stored is not None
    richer = StoredPiece(stored.format, json.dumps(json.loads(stored.text) | {"later": 1}))
    compiled = build(documents(shop), with_piece(state, "shop", richer), files={})
    compiled = build(documents(shop), compiled, files={})
    assert [a for a in compiled.state.accepted if a.ref.name == "shop"] == [
        Accepted(ref("MailDomain", "shop"), source_of(shop), "f.yaml", None, richer)
    ]
    assert "shop.example" in names(compiled.revision)
    mended = build(documents(SHOP | {"spec": SHOP["spec"] | {"separators": "-"}}), compiled)
    assert [d.separators for d in mended.revision.domains] == ["+", "-"]
    assert next(a.piece for a in mended.state.accepted if a.ref.name == "shop") != richer
    deleted = build([d for d in documents(SHOP) if d is not SHOP], compiled)
    assert names(deleted.revision) == {"example.org"}
    assert all(a.ref.name != "shop" for a in deleted.state.accepted)


def test_the_listeners_of_a_gateway_that_cannot_be_read_are_told_as_they_run() -> None:
    """Also the one that has the field which is not known."""
    future = gateway()
    future["spec"]["listeners"][1]["later"] = {}
    state = accepted_by_another_version(basics(), future)
    told = build([future, *basics()[1:]], state).diagnostics.of("MailGateway", "edge")
    assert [(li.name, li.accepted.status, li.programmed.status) for li in told.listeners] == [
        ("mx", Status.TRUE, Status.UNKNOWN),
        ("sub", Status.TRUE, Status.UNKNOWN),
    ]


def test_an_edit_that_cannot_be_read_changes_nothing_and_names_the_generation_that_serves() -> None:
    shop = of_another_version(SHOP, FUTURE[0])
    shop["metadata"] = shop["metadata"] | {"generation": 3}
    state = accepted_by_another_version(documents(SHOP | {"metadata": shop["metadata"]}), shop)
    edited = of_another_version(shop, {"separators": "-"})
    edited["metadata"] = shop["metadata"] | {"generation": 4}
    compiled = build(documents(edited), state, files={})
    assert [d.separators for d in compiled.revision.domains] == ["+", "+"]
    assert condition(compiled, "MailDomain", "shop", ConditionType.ACCEPTED)[1] is Reason.NOT_SUPPORTED
    assert condition(compiled, "MailDomain", "shop", ConditionType.PROGRAMMED) == (
        Status.FALSE,
        Reason.NOT_IN_USE,
        "generation 4 is not accepted; generation 3 serves on",
    )


def test_a_mended_object_that_is_refused_for_another_reason_falls_back_to_its_piece() -> None:
    ann = account("ann", "example-org", "ann")
    future = of_another_version(ann, {"forward": {"to": ["x@y.example"]}})
    state = accepted_by_another_version([*basics(), ann], future)
    thief = account("ann", "example-org", "ann", "postmaster")
    compiled = build([*basics(), thief], state)
    assert compiled.held == ()
    assert [a.addresses for a in compiled.revision.accounts] == [("ann@example.org",), ("postmaster@example.org",)]


def test_an_object_of_a_file_that_cannot_be_read_runs_on_as_its_piece_and_is_named() -> None:
    shop = of_another_version(SHOP, FUTURE[0])
    state = accepted_by_another_version(documents(SHOP), shop)
    moved = tuple(replace(a, origin="shop.yaml") if a.ref.name == "shop" else a for a in state.accepted)
    others = [d for d in documents(SHOP) if d is not SHOP]
    compiled = build(others, replace(state, accepted=moved), unreadable=["shop.yaml"], files={})
    assert (compiled.held, "shop.example" in names(compiled.revision)) == ((), True)
    assert condition(compiled, "MailDomain", "shop", ConditionType.ACCEPTED)[1] is Reason.NOT_SUPPORTED


# --- names, grants, Secrets -----------------------------------------------------------------------------------------


def test_a_name_stays_with_an_object_that_cannot_be_read_also_against_an_older_one_CFG_10() -> None:
    shop = of_another_version(SHOP, FUTURE[0])
    state = accepted_by_another_version(documents(SHOP), shop)
    squatter = domain("a-shop", "shop.example")
    squatter["metadata"]["creationTimestamp"] = "2001-01-01T00:00:00Z"
    compiled = build([*documents(shop), squatter], state)
    assert condition(compiled, "MailDomain", "a-shop", ConditionType.ACCEPTED)[1] is Reason.CONFLICTED
    assert [d.ref.name for d in compiled.revision.domains] == ["example-org", "shop"]
    assert compiled.state.claims == state.claims


def test_what_others_no_longer_permit_is_lost_to_an_object_that_cannot_be_read_CFG_10() -> None:
    grants = open_to("MailDomain", domainNames=["team.example"])
    team = domain("team", "team.example", namespace="team")
    future = of_another_version(team, {"later": {}})
    rest = basics()[1:]
    state = accepted_by_another_version([gateway(attach=[OWN, *grants]), *rest, team], future)
    kept = build([gateway(attach=[OWN, *grants]), *rest, future], state)
    assert names(kept.revision) == {"example.org", "team.example"}
    lost = build([gateway(attach=[OWN]), *rest, future], kept)
    assert names(lost.revision) == {"example.org"}
    found = lost.diagnostics.of("MailDomain", "team", "team").condition(ConditionType.RESOLVED_REFS)
    assert found is not None
    assert found.reason is Reason.REF_NOT_PERMITTED
    newcomer = domain("mine", "team.example")
    assert "team.example" in names(build([gateway(attach=[OWN]), *rest, future, newcomer], lost).revision)


def test_a_gateway_that_cannot_be_read_permits_what_it_permitted_and_no_more() -> None:
    edge = gateway(attach=[OWN, *open_to("MailDomain", domainNames=["team.example"])])
    wider = of_another_version(
        gateway(attach=[OWN, *open_to("MailDomain", domainNames=["."])]), {"egress": {"pool": "eu"}}
    )
    rest = basics()[1:]
    state = accepted_by_another_version([edge, *rest], of_another_version(edge, {"egress": {}}))
    strangers = [domain("team", "team.example", namespace="team"), domain("bank", "bank.example", namespace="team")]
    compiled = build([wider, *rest, *strangers], state)
    assert names(compiled.revision) == {"example.org", "team.example"}


def test_a_rotated_or_deleted_secret_reaches_an_object_that_cannot_be_read() -> None:
    ann = account("ann", "example-org", "ann", credentialsSecretRef={"name": "ann", "passwordKey": "pw"})
    future = of_another_version(ann, {"later": {}})
    before = [*basics(), ann, secret("ann", pw="old")]
    state = accepted_by_another_version(before, future)

    def verifiers(*secrets: Content) -> set[str]:
        compiled = build([*basics(), future, *secrets], state)
        return {use.path for account in compiled.revision.accounts for _, use in account.scram}

    assert verifiers(secret("ann", pw="old")) == {use.ref.path for use in state.uses}
    assert verifiers(secret("ann", pw="new")).isdisjoint(use.ref.path for use in state.uses)
    assert len(verifiers(secret("ann", pw="new"))) == 2
    assert verifiers() == set(), "who deletes a Secret revokes what it gave"


def test_no_piece_holds_a_secret() -> None:
    text = " ".join(a.piece.text for a in build(ONE_OF_EACH).state.accepted if a.piece is not None)
    assert "wonderland" not in text
    assert "hush" not in text
    assert "scram-sha" not in text, "nor a reference to a sealed value: that is made anew each time"


# --- bounds ---------------------------------------------------------------------------------------------------------


def test_a_piece_is_not_many_times_as_large_as_its_source() -> None:
    """Two letters of an alias stand for an address of 255: whole addresses are in no piece."""
    name = ".".join(("d" * 60, "e" * 60, "f" * 60, "g" * 60))
    aliases = [{"localPart": f"a{n}", "to": [f"b{m}" for m in range(20)]} for n in range(200)]
    large = domain("large", name, aliases=aliases)
    state = build([*basics(), large]).state
    accepted = next(a for a in state.accepted if a.ref.name == "large")
    assert accepted.piece is not None
    assert len(accepted.piece.text) < 2 * len(accepted.source)


def test_a_piece_that_is_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SIZE_LIMIT < 64 * 1024 * 1024, "a state with it can be sent"
    monkeypatch.setattr("mailrail.core.config.pieces.SIZE_LIMIT", 200)
    kept = {a.ref.name: a.piece for a in build([*basics(), transport("tiny-and-not-read-before")]).state.accepted}
    assert kept["tiny-and-not-read-before"] is None


def test_of_pieces_that_are_too_large_together_those_are_kept_that_are_needed_and_then_the_smallest() -> None:
    sizes = {"needed": 60, "large": 50, "small": 10, "medium": 20}
    accepted = tuple(
        Accepted(ObjectRef("MailRoute", "x", name), "{}", piece=StoredPiece(1, "p" * size))
        for name, size in sizes.items()
    )

    def kept(limit: int) -> set[str]:
        bounded = with_bounded_pieces(accepted, {ObjectRef("MailRoute", "x", "needed")}, limit)
        assert [a.ref for a in bounded] == [a.ref for a in accepted]
        return {a.ref.name for a in bounded if a.piece is not None}

    assert kept(140) == set(sizes)
    assert kept(139) == {"needed", "small", "medium"}
    assert kept(89) == {"needed", "small"}
    assert kept(60) == {"needed"}
    assert kept(59) == set()


def test_a_state_of_before_pieces_is_read_and_one_with_pieces_by_what_does_not_know_them() -> None:
    state = build(basics()).state
    assert decode_state(encode_state(state)) == state
    bare = replace(state, accepted=tuple(replace(a, piece=None) for a in state.accepted))
    assert build(basics(), bare).encoded == build(basics()).encoded
    assert build(basics(), bare).state == state, "the next publish stores them"


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (b"no zlib", "Error -3"),
        (zlib.compress(json.dumps({"accepted": [{}] * 1000}).encode()), "2000 validation errors"),
        (zlib.compress(bytes(1000)), "it is too large"),
    ],
    ids=["other bytes", "other fields", "too large"],
)
def test_why_a_state_cannot_be_read_is_said_once_and_is_no_longer_than_a_status_can_show(
    monkeypatch: pytest.MonkeyPatch, stored: bytes, words: str
) -> None:
    if words == "it is too large":
        monkeypatch.setattr("mailrail.core.config.state.SIZE_LIMIT", 999)
    with pytest.raises(UnreadableState, match=words) as raised:
        decode_state(stored)
    said = "the state of the last compilation"
    assert str(raised.value).startswith(f"{said} cannot be read: ")
    assert str(raised.value).count(said) == 1
    assert len(str(raised.value)) < 600


def test_why_a_revision_cannot_be_read_is_no_longer_than_a_status_can_show() -> None:
    with pytest.raises(UnreadableRevision, match="validation errors") as raised:
        decode(json.dumps({"domains": [{}] * 1000}).encode())
    assert len(str(raised.value)) < 600


# --- without its piece ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", UNKNOWN)
def test_an_object_of_which_nothing_can_be_read_holds_up_the_publish_and_is_named(piece: StoredPiece | None) -> None:
    shop = of_another_version(SHOP, FUTURE[0])
    state = with_piece(accepted_by_another_version(documents(SHOP), shop), "shop", piece)
    compiled = build([*documents(shop), route("new", [("MailDomain", "shop")], to(None))], state, files={})
    assert compiled.held == (ref("MailDomain", "shop"),)
    status, reason, message = condition(compiled, "MailDomain", "shop", ConditionType.ACCEPTED)
    assert (status, reason) == (Status.FALSE, Reason.NOT_SUPPORTED)
    assert "this version of Mailrail cannot read it, neither as it is nor as it was accepted" in message
    assert "no change of any object goes live: mend or delete it" in message
    assert condition(compiled, "MailDomain", "shop", ConditionType.PROGRAMMED)[2] == (
        "nothing is published until it can be read; services run on what they have of it"
    )
    assert any("its last accepted version stays in use" in text for text in words(compiled) if "MailDomain" in text)
    status, reason, message = condition(compiled, "MailRoute", "new", ConditionType.ACCEPTED)
    assert (status, reason) == (Status.FALSE, Reason.NOT_SUPPORTED)
    assert "nothing is published until MailDomain default/shop can be read" in message


@pytest.mark.parametrize("name", ["edge", "shop", "login", "postmaster"])
def test_while_nothing_is_published_nothing_untrue_is_said_of_what_runs_unchanged(name: str) -> None:
    """The compilation lacks the object, so what attaches to it would seem to have no parent."""
    changed = [of_another_version(d, {"later": {}}) if d["metadata"]["name"] == name else d for d in ONE_OF_EACH]
    future = [d for d in changed if "later" in d.get("spec", {})]
    state = with_piece(accepted_by_another_version(ONE_OF_EACH, *future), name, StoredPiece(FORMAT + 1, "{}"))
    compiled = build(changed, state)
    assert [held.name for held in compiled.held] == [name]
    for status in compiled.diagnostics.objects:
        untrue = [c for c in status.conditions if c.status is Status.FALSE]
        assert not untrue or status.ref in compiled.held, status
    assert {f.ref for f in compiled.diagnostics.findings} == set(compiled.held)


def test_an_edit_that_waits_for_another_object_is_not_said_to_serve() -> None:
    shop = of_another_version(SHOP, FUTURE[0])
    example = domain("example-org", "example.org")
    example["metadata"]["generation"] = 4
    before = [d if d["metadata"]["name"] != "example-org" else example for d in documents(SHOP)]
    state = with_piece(accepted_by_another_version(before, shop), "shop", None)
    edited = of_another_version(example, {"separators": "-"})
    edited["metadata"] = example["metadata"] | {"generation": 5}
    new = domain("new", "new.example")
    compiled = build([gateway(), edited, *basics()[2:], shop, *documents(SHOP)[4:], new], state)
    assert condition(compiled, "MailDomain", "example-org", ConditionType.PROGRAMMED)[2] == (
        "generation 5 is not accepted; generation 4 serves on"
    )
    assert condition(compiled, "MailDomain", "new", ConditionType.PROGRAMMED)[2] == (
        "no service runs it, see the other conditions"
    )


def test_mending_or_deleting_the_object_lets_everything_go_on() -> None:
    shop = of_another_version(SHOP, FUTURE[0])
    state = with_piece(accepted_by_another_version(documents(SHOP), shop), "shop", None)
    mended = build(documents(SHOP), state)
    assert (mended.held, "shop.example" in names(mended.revision)) == ((), True)
    deleted = build([d for d in documents(SHOP) if d is not SHOP], state)
    assert (deleted.held, "shop.example" in names(deleted.revision)) == ((), False)


def test_a_mended_object_that_is_refused_for_another_reason_still_holds_up_the_publish() -> None:
    """It would fall back to the version that cannot be read, and so to nothing."""
    ann = account("ann", "example-org", "ann")
    future = of_another_version(ann, {"forward": {"to": ["x@y.example"]}})
    state = with_piece(accepted_by_another_version([*basics(), ann], future), "ann", None)
    thief = account("ann", "example-org", "ann", "postmaster")
    compiled = build([*basics(), thief], state)
    assert compiled.held == (ref("MailAccount", "ann"),)


def test_a_file_that_cannot_be_read_with_an_object_that_cannot_be_read_holds_up_the_publish() -> None:
    shop = of_another_version(SHOP, FUTURE[0])
    state = with_piece(accepted_by_another_version(documents(SHOP), shop), "shop", None)
    moved = tuple(replace(a, origin="shop.yaml") if a.ref.name == "shop" else a for a in state.accepted)
    others = [d for d in documents(SHOP) if d is not SHOP]
    compiled = build(others, replace(state, accepted=moved), unreadable=["shop.yaml"], files={})
    assert compiled.held == (ref("MailDomain", "shop"),)


def test_an_object_of_a_kind_that_this_version_does_not_have_is_as_if_it_were_not_there() -> None:
    """Its file cannot be read, and all else in it stays as it was."""
    state = build(basics(), files={}).state
    egress = Accepted(ObjectRef("MailEgress", "default", "eu"), "{}", "f.yaml", piece=StoredPiece(FORMAT, "{}"))
    compiled = build([], replace(state, accepted=(egress, *state.accepted)), unreadable=["f.yaml"], files={})
    assert (compiled.held, compiled.encoded) == ((), build(basics(), files={}).encoded)


def test_what_was_never_accepted_holds_up_nothing() -> None:
    compiled = build(documents(of_another_version(SHOP, FUTURE[0])))
    assert compiled.held == ()
    assert names(compiled.revision) == {"example.org"}
