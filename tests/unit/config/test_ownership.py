"""Who owns a name is decided by what objects say, and after a disaster as before it (CFG-10)."""

from typing import Any

from unit.config.test_compiler import EVERYTHING, Content, account, basics, build, domain, gateway, open_to, words

from mailrail.core.config.compiler import Compiled
from mailrail.core.config.diagnostics import ConditionType, Reason
from mailrail.core.config.ownership import KEPT_SECONDS

NOW = 1_800_000_000


def aged(document: Content, hour: int, uid: str = "") -> Content:
    """An object as an API server has it, made at that hour."""
    name = document["metadata"]["name"]
    more = {"uid": uid or f"uid-{name}-{hour}", "creationTimestamp": f"2026-11-29T{hour:02}:00:00Z"}
    return document | {"metadata": document["metadata"] | more}


def edge(**more: Any) -> list[Content]:
    return [aged(gateway(**more), 0), *(aged(document, 0) for document in basics()[1:])]


def owner(compiled: Compiled, name: str) -> str | None:
    """Namespace and name of the domain of that name."""
    found = [f"{d.ref.namespace}/{d.ref.name}" for d in compiled.revision.domains if d.name == name]
    assert len(found) <= 1
    return found[0] if found else None


def receiver(compiled: Compiled, address: str) -> str | None:
    found = [a.ref.name for a in compiled.revision.accounts if address in a.addresses]
    assert len(found) <= 1
    return found[0] if found else None


SHOP = aged(domain("zz-shop", "shop.example"), 1)
SQUATTER = aged(domain("aa-squatter", "shop.example"), 5)
ANYBODY = {"attach": EVERYTHING}
STRANGER = aged(domain("aa", "shop.example", namespace="team"), 2)


def test_a_new_database_gives_names_to_the_oldest_as_before_CFG_10() -> None:
    alice = aged(account("zz-alice", "zz-shop", "alice"), 2)
    thief = aged(account("aa-thief", "zz-shop", "alice", login="zz-alice"), 6)
    documents = [*edge(), SHOP, SQUATTER, alice, thief]
    before = build(documents, build([*edge(), SHOP, alice]))
    for compiled in (before, build(documents)):
        assert owner(compiled, "shop.example") == "default/zz-shop"
        assert receiver(compiled, "alice@shop.example") == "zz-alice"
        for kind, name in (("MailDomain", "aa-squatter"), ("MailAccount", "aa-thief")):
            accepted = compiled.diagnostics.of(kind, name).condition(ConditionType.ACCEPTED)
            assert accepted is not None
            assert accepted.reason is Reason.CONFLICTED
    assert build(documents).encoded == before.encoded


def test_a_new_login_is_the_oldest_accounts_CFG_10() -> None:
    one = aged(account("zz", "example-org", "a", login="root"), 1)
    other = aged(account("aa", "example-org", "b", login="root"), 2)
    compiled = build([*edge(), other, one])
    assert {a.ref.name for a in compiled.revision.accounts if a.login == "root"} == {"zz"}


def test_where_all_are_of_one_age_namespace_and_name_decide_CFG_10() -> None:
    """A new cluster, filled from Git in one second."""
    documents = [*edge(**ANYBODY), aged(SHOP, 3), aged(SQUATTER, 3), aged(STRANGER, 3)]
    assert owner(build(documents), "shop.example") == "default/aa-squatter"
    assert owner(build(reversed(documents)), "shop.example") == "default/aa-squatter"


def test_in_files_the_name_decides_whatever_age_they_claim_CFG_10() -> None:
    documents = [*edge(), SHOP, SQUATTER]
    assert owner(build(documents, files={}), "shop.example") == "default/aa-squatter"


def test_a_claim_goes_before_age_CFG_10() -> None:
    """The older object took the name later: an edit, or a domain that it attached to late."""
    late = aged(domain("late", "other.example"), 1)
    first = build([*edge(), late, SQUATTER])
    second = build([*edge(), aged(domain("late", "shop.example"), 1, "uid-late-1"), SQUATTER], first)
    assert owner(second, "shop.example") == "default/aa-squatter"


def test_an_owner_that_is_made_again_gets_its_name_back_from_an_older_squatter_CFG_10() -> None:
    squatter = aged(SQUATTER, 0)
    again = aged(SHOP, 9)
    first = build([*edge(), SHOP], now=NOW)
    second = build([*edge(), SHOP, squatter], first, now=NOW)
    assert owner(second, "shop.example") == "default/zz-shop"
    third = build([*edge(), squatter], second, now=NOW + 10)
    assert owner(third, "shop.example") == "default/aa-squatter", "a rename within a namespace takes no time"
    fourth = build([*edge(), squatter, again], third, now=NOW + 10 + KEPT_SECONDS - 1)
    assert owner(fourth, "shop.example") == "default/zz-shop"
    late = build([*edge(), squatter, again], third, now=NOW + 10 + KEPT_SECONDS)
    assert owner(late, "shop.example") == "default/aa-squatter"


def test_while_a_claim_is_kept_another_namespace_does_not_get_the_name_CFG_10() -> None:
    first = build([*edge(**ANYBODY), SHOP, STRANGER], build([*edge(**ANYBODY), SHOP]), now=NOW)
    assert owner(first, "shop.example") == "default/zz-shop"
    second = build([*edge(**ANYBODY), STRANGER], first, now=NOW)
    assert owner(second, "shop.example") is None
    assert second.again_at == NOW + KEPT_SECONDS
    assert words(second) == [
        "MailDomain team/aa: the domain shop.example belonged to an object of another namespace that is gone, "
        "and is kept for it until 2027-01-15T08:10:00Z; it is left out"
    ]
    third = build([*edge(**ANYBODY), STRANGER], second, now=NOW + KEPT_SECONDS - 1)
    assert owner(third, "shop.example") is None
    assert third.again_at == NOW + KEPT_SECONDS, "the time runs from when the object went, not from the last look"
    fourth = build([*edge(**ANYBODY), STRANGER], third, now=NOW + KEPT_SECONDS)
    assert owner(fourth, "shop.example") == "team/aa"
    assert fourth.again_at is None


def test_a_kept_claim_ends_at_once_when_the_grant_does_CFG_10() -> None:
    mine = aged(domain("mine", "shop.example", namespace="team"), 1)
    first = build([*edge(**ANYBODY), mine, SHOP], build([*edge(**ANYBODY), mine]), now=NOW)
    assert owner(first, "shop.example") == "team/mine"
    gone = build([*edge(**ANYBODY), SHOP], first, now=NOW)
    assert owner(gone, "shop.example") is None
    assert owner(build([*edge(), SHOP], gone, now=NOW), "shop.example") == "default/zz-shop"
    # Also while the object is still there.
    assert owner(build([*edge(), mine, SHOP], first, now=NOW), "shop.example") == "default/zz-shop"


def test_a_name_that_its_owner_gave_up_is_free_at_once_CFG_10() -> None:
    first = build([*edge(**ANYBODY), SHOP, STRANGER], build([*edge(**ANYBODY), SHOP]), now=NOW)
    edited = aged(domain("zz-shop", "other.example"), 1)
    second = build([*edge(**ANYBODY), edited, STRANGER], first, now=NOW)
    assert owner(second, "shop.example") == "team/aa"


def test_accounts_get_their_addresses_back_with_their_domain_CFG_10() -> None:
    alice = aged(account("zz-alice", "zz-shop", "alice"), 2)
    thief = aged(account("aa-thief", "aa-squatter", "alice"), 6)
    first = build([*edge(), SHOP, alice], now=NOW)
    second = build([*edge(), SQUATTER, alice, thief], first, now=NOW)
    assert receiver(second, "alice@shop.example") == "aa-thief"
    third = build([*edge(), aged(SHOP, 9), SQUATTER, alice, thief], second, now=NOW + 60)
    assert owner(third, "shop.example") == "default/zz-shop"
    assert receiver(third, "alice@shop.example") == "zz-alice"


def test_who_is_not_attached_neither_owns_a_name_nor_disturbs_its_owner_CFG_10() -> None:
    """A domain of ours, of somebody whom no gateway lets attach: its aliases that go round in a circle are nobody's."""
    waiting = aged(
        domain("aa", "shop.example", namespace="team", aliases=[{"localPart": "x", "to": ["x@shop.example"]}]), 0
    )
    nowhere = aged(domain("ab", "shop.example"), 0)
    nowhere["spec"] = nowhere["spec"] | {"gatewayRef": {"name": "nowhere"}}
    compiled = build([*edge(), waiting, nowhere, SHOP])
    assert owner(compiled, "shop.example") == "default/zz-shop"
    assert compiled.diagnostics.of("MailDomain", "zz-shop").conditions[0].reason is Reason.ACCEPTED
    assert not compiled.diagnostics.errors


def test_no_name_outside_those_that_the_namespace_was_given_is_owned_CFG_10() -> None:
    """Neither by age, nor by a claim from when it was given."""
    given = {"attach": [*open_to("MailDomain", domainNames=[".team.example"]), *own()]}
    mine = aged(domain("mine", "shop.example", namespace="team"), 0)
    held = build([*edge(**ANYBODY), mine, SHOP], now=NOW)
    assert owner(held, "shop.example") == "team/mine"
    for compiled in (build([*edge(**given), mine], now=NOW), build([*edge(**given), mine], held, now=NOW)):
        assert owner(compiled, "shop.example") is None
    assert owner(build([*edge(**given), mine, SHOP], held, now=NOW), "shop.example") == "default/zz-shop"


def own() -> list[Content]:
    """An `attach` that lets a domain of the gateway's own namespace have any name."""
    return [open_to("MailDomain", namespaces={"from": "Same"}, domainNames=["."])[0] | {"name": "own"}]
