"""What another version of Mailrail accepted, and this one cannot read, goes on as it runs (CFG-01)."""

import json
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
    names,
    ref,
    route,
    to,
    transport,
    words,
)

from mailrail.core.config.diagnostics import ConditionType, Reason
from mailrail.core.config.state import CompilerState
from mailrail.core.resources import canonical

SHOP = domain("shop", "shop.example", delivery=by_transport("store"))
FUTURE: list[dict[str, Any]] = [
    {"security": {"minimum": "Authenticated"}},  # a field of a later version
    {"delivery": {"pigeon": {}}},  # a member of its union
    {"delivery": {"transport": {"ref": {"name": "store"}, "recipients": "Guess"}}},  # a word of its enumeration
]


def of_another_version(written: Content, spec: dict[str, Any]) -> Content:
    return written | {"spec": written["spec"] | spec}


def accepted_by_another_version(documents: list[Content], *future: Content) -> CompilerState:
    """The state of a compilation by a version that could read `future`: names and sources as it stored them."""
    state = build(documents).state
    sources = {(d["kind"], d["metadata"]["name"]): canonical(json.loads(json.dumps(d))) for d in future}
    accepted = tuple(replace(a, source=sources.get((a.ref.kind, a.ref.name), a.source)) for a in state.accepted)
    return replace(state, accepted=accepted)


def documents(shop: Content) -> list[Content]:
    return [*basics(), shop, account("ann", "shop", "ann"), transport("store")]


@pytest.mark.parametrize("spec", FUTURE)
def test_an_object_that_this_version_cannot_read_holds_up_the_publish_and_is_named(spec: dict[str, Any]) -> None:
    shop = of_another_version(SHOP, spec)
    state = accepted_by_another_version(documents(SHOP), shop)
    compiled = build([*documents(shop), route("new", [("MailDomain", "shop")], to(None))], state)
    assert compiled.held == (ref("MailDomain", "shop"),)
    condition = compiled.diagnostics.of("MailDomain", "shop").condition(ConditionType.ACCEPTED)
    assert condition is not None
    assert "spec" in condition.message
    assert "this version of Mailrail cannot read it, neither as it is nor as it was accepted" in condition.message
    assert any("its last accepted version stays in use" in text for text in words(compiled) if "MailDomain" in text)
    waiting = compiled.diagnostics.of("MailRoute", "new").condition(ConditionType.ACCEPTED)
    assert waiting is not None
    assert waiting.reason is Reason.NOT_SUPPORTED
    assert "nothing is published until MailDomain default/shop can be read" in waiting.message


def test_mending_or_deleting_the_object_lets_everything_go_on() -> None:
    shop = of_another_version(SHOP, FUTURE[0])
    state = accepted_by_another_version(documents(SHOP), shop)
    mended = build(documents(SHOP), state)
    assert (mended.held, "shop.example" in names(mended.revision)) == ((), True)
    deleted = build([d for d in documents(SHOP) if d is not SHOP], state)
    assert (deleted.held, "shop.example" in names(deleted.revision)) == ((), False)


def test_a_mended_object_that_is_refused_for_another_reason_still_holds_up_the_publish() -> None:
    """It would fall back to the version that cannot be read, and so to nothing."""
    ann = account("ann", "example-org", "ann")
    future = of_another_version(ann, {"forward": {"to": ["x@y.example"]}})
    state = accepted_by_another_version([*basics(), ann], future)
    thief = account("ann", "example-org", "ann", "postmaster")
    compiled = build([*basics(), thief], state)
    assert compiled.held == (ref("MailAccount", "ann"),)


def test_a_file_that_cannot_be_read_with_an_object_that_cannot_be_read_holds_up_the_publish() -> None:
    shop = of_another_version(SHOP, FUTURE[0])
    state = accepted_by_another_version(documents(SHOP), shop)
    moved = tuple(replace(a, origin="shop.yaml") if a.ref.name == "shop" else a for a in state.accepted)
    others = [d for d in documents(SHOP) if d is not SHOP]
    compiled = build(others, replace(state, accepted=moved), unreadable=["shop.yaml"], files={})
    assert compiled.held == (ref("MailDomain", "shop"),)


def test_what_was_never_accepted_holds_up_nothing() -> None:
    compiled = build(documents(of_another_version(SHOP, FUTURE[0])))
    assert compiled.held == ()
    assert names(compiled.revision) == {"example.org"}
