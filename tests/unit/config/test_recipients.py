"""Cycles of aliases: found when they are there, and only then, whatever the length of the chain."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mailrail.core.config.recipients import AddressBook, End, Node
from mailrail.core.revision.revision import Alias, Domain, DomainDelivery, ObjectRef, Recipients

REF = ObjectRef("MailDomain", "default", "d")
LOCALS = ("a", "b", "c", "d")
NAMES = ("x.example", "y.example")


def domain(
    name: str,
    aliases: dict[str, tuple[str, ...]] | None = None,
    *,
    catch_all: str | None = None,
    delivery: DomainDelivery = DomainDelivery.MAILBOX,
    recipients: Recipients = Recipients.LISTED,
    listed: tuple[str, ...] = (),
    separators: str = "+",
) -> Domain:
    made = tuple(Alias(local, targets) for local, targets in sorted((aliases or {}).items()))
    return Domain(
        REF,
        name,
        delivery,
        aliases=made,
        catch_all=catch_all,
        recipients=recipients,
        listed=listed,
        separators=separators,
    )


def test_resolution_asks_account_alias_separator_list_and_catch_all_in_that_order() -> None:
    found = AddressBook(
        [
            domain("x.example", {"sales": ("a@x.example",), "both": ("a@x.example",)}, catch_all="a@x.example"),
            domain("t.example", delivery=DomainDelivery.TRANSPORT, listed=("known",)),
            domain("any.example", delivery=DomainDelivery.TRANSPORT, recipients=Recipients.ANY),
            domain("out.example", delivery=DomainDelivery.NONE),
            domain("mine.example"),
        ],
        frozenset(("alice@x.example", "both@x.example", "@mine.example")),
    )
    expected = {
        "Alice@x.example": End.ACCOUNT,
        "both@x.example": End.ACCOUNT,
        "alice+tag@x.example": End.ACCOUNT,
        "SALES@x.example": Node("x.example", "sales"),
        "sales+a+b@x.example": Node("x.example", "sales"),
        "postmaster@x.example": End.POSTMASTER,
        "nobody@x.example": Node("x.example", None),
        "+a@x.example": Node("x.example", None),
        "known@t.example": End.BEHIND,
        "other@t.example": End.NOBODY,
        "other@any.example": End.BEHIND,
        "x@out.example": End.FOREIGN,
        "x@far.example": End.FOREIGN,
        "whoever@mine.example": End.ACCOUNT,
    }
    assert {address: found.lookup(address) for address in expected} == expected


def test_a_very_long_chain_is_followed_without_recursion() -> None:
    chain: dict[str, tuple[str, ...]] = {f"n{n}": (f"n{n + 1}@x.example",) for n in range(20_000)}
    assert AddressBook([domain("x.example", chain)], frozenset()).cycle() == ()
    chain["n20000"] = ("n0@x.example",)
    assert len(AddressBook([domain("x.example", chain)], frozenset()).cycle()) == 20_001


addresses = st.builds(lambda local, name: f"{local}@{name}", st.sampled_from(LOCALS), st.sampled_from(NAMES))
tables = st.dictionaries(st.sampled_from(LOCALS), st.lists(addresses, min_size=1, max_size=3).map(tuple), max_size=4)


@settings(max_examples=400)
@given(tables, tables, st.none() | addresses, st.none() | addresses, st.frozensets(addresses, max_size=2))
def test_a_cycle_is_found_exactly_if_following_never_ends(
    one: dict[str, tuple[str, ...]],
    other: dict[str, tuple[str, ...]],
    catch_one: str | None,
    catch_other: str | None,
    accounts: frozenset[str],
) -> None:
    directory = AddressBook(
        [domain(NAMES[0], one, catch_all=catch_one), domain(NAMES[1], other, catch_all=catch_other)], accounts
    )

    def endless(address: str, depth: int) -> bool:
        step = directory.lookup(address)
        if isinstance(step, End):
            return False
        if depth > 2 * len(LOCALS) + 2:
            return True
        targets = directory.targets(step)
        if step.local is None and directory.lookup(targets[0]) == step:
            return False  # a catch-all whose own target does not exist leads nowhere
        return any(endless(target, depth + 1) for target in targets)

    found = directory.cycle()
    starts = [f"{local}@{name}" for local in (*LOCALS, "nobody") for name in NAMES]
    assert bool(found) == any(endless(start, 0) for start in starts if isinstance(directory.lookup(start), Node))
    for here, there in zip(found, (*found[1:], *found[:1]), strict=True):
        assert there in [directory.lookup(target) for target in directory.targets(here)]
