"""Who a recipient is and who may send as whom: design 5, SIN-09, SIN-16, SUB-02, SUB-03, DSN-23."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.limits import EXPANSION_LIMIT
from mailrail.core.revision.revision import (
    Account,
    Alias,
    Domain,
    DomainDelivery,
    Gateway,
    ObjectRef,
    Recipients,
    ReportAddresses,
    Revision,
)
from mailrail.core.route import recipients as recipients_module
from mailrail.core.route.recipients import (
    ALIAS_BROKEN,
    ALIAS_TOO_LARGE,
    NO_SUCH_USER,
    NOT_QUALIFIED,
    RELAY_DENIED,
    ROUTED,
    SEND_ONLY,
    Destination,
    Directory,
    How,
    Resolution,
    passed_on,
)
from mailrail.core.smtp.address import Address, AddressError, folded, parse_address, parse_forward_path
from mailrail.core.smtp.parameters import Notify, RcptParameters
from mailrail.core.smtp.reply import Reply


def ref(kind: str, name: str) -> ObjectRef:
    return ObjectRef(kind, "mail", name)


ADA, BOB, ROOT = (ref("MailAccount", name) for name in ("ada", "bob", "root"))
RELAY = ref("MailTransport", "relay")


def account(who: ObjectRef, *addresses: str) -> Account:
    return Account(who, who.name, ref("MailDomain", "home"), addresses[0], addresses)


def domain(name: str, delivery: DomainDelivery = DomainDelivery.MAILBOX, **more: object) -> Domain:
    transport = RELAY if delivery is DomainDelivery.TRANSPORT else None
    return Domain(ref("MailDomain", name), name, delivery, transport, **more)  # type: ignore[arg-type]


REVISION = Revision(
    gateways=(Gateway(ref("MailGateway", "main"), "mx.home.example", (), ROOT, postmaster_mailbox="Post/Master"),),
    domains=(
        domain(
            "home.example",
            aliases=(
                Alias("info", ("ada@home.example",)),
                Alias("team", ("ada@home.example", "bob@home.example", "eve@far.example")),
                Alias("chain", ("info@home.example", "team@home.example")),
                Alias("away", ("eve@far.example",)),
                Alias("ghosts", ("nobody@home.example",)),
                Alias("mixed", ("nobody@home.example", "bob@home.example")),
                Alias("ada+list", ("bob@home.example",)),
            ),
        ),
        domain("dash.example", separators="-+"),
        domain("catch.example", catch_all="ada@home.example"),
        domain("throw.example", catch_all="eve@far.example"),
        domain("whole.example"),
        domain("claimed.example", aliases=(Alias("postmaster", ("bob@home.example",)),)),
        domain("send.example", DomainDelivery.NONE),
        domain("listed.example", DomainDelivery.TRANSPORT, listed=("sales",)),
        domain("any.example", DomainDelivery.TRANSPORT, recipients=Recipients.ANY),
        domain("verify.example", DomainDelivery.TRANSPORT, recipients=Recipients.VERIFY),
    ),
    accounts=(
        account(ADA, "ada@home.example", "ada.l@dash.example", "Ada@send.example", "ada@listed.example"),
        replace(
            account(BOB, "bob@home.example"),
            receive=("@whole.example", "in@home.example"),
            send_as=("@whole.example", "news@home.example"),
        ),
        account(ROOT, "root@home.example"),
    ),
)
DIRECTORY = Directory(REVISION, REVISION.gateways[0])


def resolve(address: str, *, authenticated: bool = False, captive: bool = False) -> Resolution | Reply:
    parsed = Address(address, "") if "@" not in address else parse_address(address)
    return DIRECTORY.resolve(parsed, authenticated=authenticated, captive=captive)


def ends(address: str, **more: bool) -> list[tuple[str, str | None]]:
    found = resolve(address, **more)
    assert isinstance(found, Resolution), found
    return [(str(end.address), end.account.name if end.account else None) for end in found.destinations]


@pytest.mark.parametrize(
    ("address", "how", "expected"),
    [
        ("ada@home.example", How.EXACT, [("ada@home.example", "ada")]),
        ("ADA@home.example", How.EXACT, [("ADA@home.example", "ada")]),
        ("Ada+Tag@home.example", How.SEPARATOR, [("Ada+Tag@home.example", "ada")]),
        ("ada+list@home.example", How.ALIAS, [("bob@home.example", "bob")]),
        ("info@home.example", How.ALIAS, [("ada@home.example", "ada")]),
        ("info+x@home.example", How.SEPARATOR, [("ada@home.example", "ada")]),
        (
            "team@home.example",
            How.ALIAS,
            [("ada@home.example", "ada"), ("bob@home.example", "bob"), ("eve@far.example", None)],
        ),
        (
            "chain@home.example",
            How.ALIAS,
            [("ada@home.example", "ada"), ("bob@home.example", "bob"), ("eve@far.example", None)],
        ),
        ("away@home.example", How.ALIAS, [("eve@far.example", None)]),
        ("mixed@home.example", How.ALIAS, [("bob@home.example", "bob")]),
        ("ada.l-x+y@dash.example", How.SEPARATOR, [("ada.l-x+y@dash.example", "ada")]),
        ("anyone@catch.example", How.CATCH_ALL, [("anyone@catch.example", "ada")]),
        ("anyone@throw.example", How.CATCH_ALL, [("eve@far.example", None)]),
        ("in@home.example", How.EXACT, [("in@home.example", "bob")]),
        ("anyone@whole.example", How.CATCH_ALL, [("anyone@whole.example", "bob")]),
        ("ada@listed.example", How.EXACT, [("ada@listed.example", None)]),
        ("Sales+x@listed.example", How.SEPARATOR, [("Sales+x@listed.example", None)]),
        ("anyone@any.example", How.ANY, [("anyone@any.example", None)]),
        ("postmaster@home.example", How.POSTMASTER, [("postmaster@home.example", "root")]),
        ("PostMaster@catch.example", How.POSTMASTER, [("PostMaster@catch.example", "root")]),
        ("postmaster@claimed.example", How.ALIAS, [("bob@home.example", "bob")]),
        ("postmaster@listed.example", How.POSTMASTER, [("root@home.example", "root")]),
        ("Postmaster", How.POSTMASTER, [("root@home.example", "root")]),
        ("postMASTER", How.POSTMASTER, [("root@home.example", "root")]),
    ],
)
def test_a_recipient_resolves_in_the_order_of_the_design_SIN_09(
    address: str, how: How, expected: list[tuple[str, str | None]]
) -> None:
    found = resolve(address)
    assert isinstance(found, Resolution)
    assert found.how is how
    assert ends(address) == expected


@pytest.mark.parametrize(
    "address", ["nobody@home.example", "+x@home.example", "ghosts@home.example", "x@listed.example"]
)
def test_who_does_not_exist_is_refused_even_to_our_own_users(address: str) -> None:
    assert resolve(address) is NO_SUCH_USER
    assert resolve(address, authenticated=True) is NO_SUCH_USER


@pytest.mark.parametrize(
    "address",
    [
        "eve@far.example",
        "eve%far.example@other.example",
        '"eve@far.example"@other.example',
        "a!b@far.example",
        "eve@[192.0.2.1]",
        "eve@sub.home.example",
        "eve@xhome.example",
    ],
)
def test_strangers_cannot_relay_SIN_16(address: str) -> None:
    assert resolve(address) is RELAY_DENIED
    assert ends(address, authenticated=True) == [(address, None)]


@pytest.mark.parametrize(
    "address",
    [
        "eve%far.example@any.example",
        '"eve@far.example"@any.example',
        "far.example!eve@any.example",
        "eve%far.example@verify.example",
        "sales+%far.example@listed.example",
    ],
)
def test_a_route_in_the_local_part_is_not_handed_to_a_next_hop_that_trusts_us_SIN_16(address: str) -> None:
    """Postfix's allow_untrusted_routing: a host behind us may understand it, and send on what comes from us."""
    assert resolve(address) is ROUTED
    assert isinstance(resolve(address, authenticated=True), Resolution)


_crumbs = [
    "eve",
    "@",
    "home.example",
    "far.example",
    ".",
    "%",
    "!",
    '"',
    "\\",
    ":",
    ",",
    "[",
    "]",
    "192.0.2.1",
    "IPv6:",
    "::1",
]


@given(
    st.lists(
        st.sampled_from([*_crumbs, "<", ">", " ", "+", "any.example", "throw.example", "@HOME.example"]), max_size=8
    )
)
def test_no_way_to_write_an_address_makes_us_relay_SIN_16(pieces: list[str]) -> None:
    try:
        address, _ = parse_forward_path(f"<{''.join(pieces)}>".encode())
    except AddressError:
        return
    found = DIRECTORY.resolve(address, authenticated=False)
    if isinstance(found, Reply):
        return
    assert address.domain != "any.example" or not set(address.local) & set("@%!")
    # Whatever is taken is for a domain that the configuration receives for, as DNS and the dot-atom both read it.
    assert address.domain in ("home.example", "any.example", "throw.example", "")


def test_the_percent_hack_stays_inside_our_domain_SIN_16() -> None:
    assert resolve("eve%far.example@home.example") is NO_SUCH_USER
    assert resolve("far.example!eve@home.example") is NO_SUCH_USER


def test_a_domain_that_we_only_send_for_is_foreign_to_ours_and_closed_to_strangers() -> None:
    assert resolve("ada@send.example") is SEND_ONLY
    found = resolve("ada@send.example", authenticated=True)
    assert isinstance(found, Resolution)
    assert found.destinations == (Destination(parse_address("ada@send.example"), ref("MailDomain", "send.example")),)


def test_submission_wants_qualified_domains_SUB_02a() -> None:
    assert resolve("eve@far", authenticated=True) is NOT_QUALIFIED
    assert resolve("eve@far") is RELAY_DENIED


def test_a_recipient_that_only_the_next_hop_knows_is_marked() -> None:
    found = resolve("x@verify.example")
    assert isinstance(found, Resolution)
    assert found.destinations[0].verify
    assert DIRECTORY.transport(found.destinations[0].domain) == RELAY
    assert DIRECTORY.transport(None) is None


def test_unclaimed_postmaster_mail_goes_into_the_postmaster_mailbox() -> None:
    for address in ("postmaster@home.example", "Postmaster", "postmaster@any.example"):
        found = resolve(address)
        assert isinstance(found, Resolution)
        assert found.destinations[0].mailbox == "Post/Master"
    direct = resolve("root@home.example")
    assert isinstance(direct, Resolution)
    assert direct.destinations[0].mailbox == "Inbox"


def test_captive_mode_takes_anybody() -> None:
    assert ends("eve@far.example", captive=True) == [("eve@far.example", None)]
    assert ends("nobody@home.example", captive=True) == [("nobody@home.example", "root")]
    assert ends("x@listed.example", captive=True) == [("x@listed.example", None)]
    assert ends("ada@send.example", captive=True) == [("ada@send.example", None)]


def test_a_long_chain_ends_and_a_cycle_that_slipped_through_does_too() -> None:
    chain = tuple(Alias(f"a{n}", (f"a{n + 1}@loop.example",)) for n in range(30))
    cycle = (Alias("x", ("y@loop.example",)), Alias("y", ("x@loop.example", "ada@home.example")))
    revision = Revision(
        gateways=REVISION.gateways,
        domains=(
            *REVISION.domains,
            domain("loop.example", aliases=(*chain, Alias("a30", ("ada@home.example",)), *cycle)),
        ),
        accounts=REVISION.accounts,
    )
    directory = Directory(revision, revision.gateways[0])
    for local in ("a0", "x"):
        found = directory.resolve(Address(local, "loop.example"), authenticated=False)
        assert isinstance(found, Resolution)
        assert [str(end.address) for end in found.destinations] == ["ada@home.example"]


@pytest.mark.parametrize("kept", ["josé", "jose\u0301"])
@pytest.mark.parametrize("written", ["josé", "jose\u0301", "JOSÉ", "JOSE\u0301", "Jose\u0301+tag"])
def test_a_letter_with_an_accent_is_the_same_in_either_spelling_RFC_6532_3_1(kept: str, written: str) -> None:
    directory = large(Alias(folded(kept), ("ada@home.example",)), Alias("other", (f"{kept}@big.example",)))
    for address in (f"{written}@big.example", "other@big.example"):
        found = directory.resolve(parse_address(address), authenticated=False)
        assert isinstance(found, Resolution)
        assert [str(end.address) for end in found.destinations] == ["ada@home.example"]
    assert parse_address(f"{kept}@x.example").key == parse_address("josé@x.example").key


def large(*aliases: Alias, name: str = "big.example") -> Directory:
    revision = Revision(
        gateways=REVISION.gateways,
        domains=(
            *REVISION.domains,
            domain(name, aliases=aliases),
            domain("catch.big.example", catch_all=f"all@{name}"),
        ),
        accounts=REVISION.accounts,
    )
    return Directory(revision, revision.gateways[0])


@pytest.mark.parametrize("groups", [1, 12])
def test_an_alias_that_stands_for_too_many_is_refused_whole_and_never_shortened(groups: int) -> None:
    """The list was cut at the limit, answered 250, and the rest got nothing."""
    each = EXPANSION_LIMIT // groups + 1
    members = [Alias(f"g{g}", tuple(f"u{n}@g{g}.example" for n in range(each))) for g in range(groups)]
    directory = large(*members, Alias("all", tuple(f"g{g}@big.example" for g in range(groups))))
    for address in ("all@big.example", "all+tag@big.example", "anybody@catch.big.example"):
        for authenticated in (False, True):
            found = directory.resolve(parse_address(address), authenticated=authenticated)
            assert found is ALIAS_TOO_LARGE
    assert not ALIAS_TOO_LARGE.permanent


def test_an_alias_is_expanded_once_however_often_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger may name a large one in every RCPT, and each time took milliseconds from everybody."""
    many = tuple(f"u{n}@far.example" for n in range(1000))
    directory = large(
        Alias("all", (*many, "ghost@big.example")), Alias("huge", tuple(f"a{n}@b.example" for n in range(20_000)))
    )
    steps: list[Address] = []
    genuine = Directory._step

    def counted(self: Directory, address: Address) -> object:
        steps.append(address)
        return genuine(self, address)

    monkeypatch.setattr(Directory, "_step", counted)
    for local, looked_at in (("all", 1001), ("huge", EXPANSION_LIMIT)):
        answers = []
        for _ in range(100):
            answers.append(directory.resolve(Address(local, "big.example"), authenticated=False))
        assert len(steps) == looked_at + 100
        assert all(answer == answers[0] for answer in answers)
        steps.clear()


def test_what_is_remembered_of_aliases_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipients_module, "REMEMBERED_LIMIT", 10)
    aliases = [Alias(f"a{n}", tuple(f"u{i}@far.example" for i in range(4))) for n in range(50)]
    directory = large(*aliases)
    for _ in range(2):
        for alias in aliases:
            found = directory.resolve(Address(alias.local, "big.example"), authenticated=False)
            assert isinstance(found, Resolution)
            assert len(found.destinations) == 4
            assert len(directory._followed) <= 2


def test_an_alias_at_the_limit_is_whole() -> None:
    directory = large(Alias("all", tuple(f"u{n}@far.example" for n in range(EXPANSION_LIMIT))))
    found = directory.resolve(parse_address("all@big.example"), authenticated=False)
    assert isinstance(found, Resolution)
    assert len(found.destinations) == EXPANSION_LIMIT


@pytest.mark.parametrize(("length", "refused"), [(51, False), (9_000, False), (EXPANSION_LIMIT + 1, True)])
def test_a_chain_of_aliases_leads_to_its_end_or_is_refused_and_never_ends_in_between(
    length: int, refused: bool
) -> None:
    """Its fifty-first link was left out, and what it led to with it."""
    chain = [Alias(f"a{n}", (f"a{n + 1}@big.example",)) for n in range(length)]
    directory = large(
        *chain, Alias(f"a{length}", ("ada@home.example",)), Alias("all", ("a0@big.example", "x@y.example"))
    )
    found = directory.resolve(parse_address("all@big.example"), authenticated=False)
    if refused:
        assert found is ALIAS_TOO_LARGE
    else:
        assert isinstance(found, Resolution)
        assert [str(end.address) for end in found.destinations] == ["ada@home.example", "x@y.example"]


def test_an_alias_with_an_address_that_is_none_makes_its_own_mail_wait_and_no_other() -> None:
    directory = large(
        Alias("a", ("a\x85b@far.example", "ada@home.example")), Alias("b", ("a@big.example", "x@y.example"))
    )
    for local in ("a", "b"):
        assert directory.resolve(Address(local, "big.example"), authenticated=False) is ALIAS_BROKEN
    assert isinstance(directory.resolve(parse_address("ada@home.example"), authenticated=False), Resolution)


def test_addresses_of_ours_that_do_not_exist_are_named_beside_those_that_do() -> None:
    found = resolve("mixed@home.example")
    assert isinstance(found, Resolution)
    assert [str(address) for address in found.missing] == ["nobody@home.example"]
    whole = resolve("team@home.example")
    assert isinstance(whole, Resolution)
    assert whole.missing == ()


@pytest.mark.parametrize(
    ("who", "address", "allowed"),
    [
        (ADA, "ada@home.example", True),
        (ADA, "ADA@home.example", True),
        (ADA, "ada+tag@home.example", True),
        (ADA, "ada@send.example", True),
        (ADA, "ada.l-tag@dash.example", True),
        (ADA, "bob@home.example", False),
        (ADA, "info@home.example", False),
        (ADA, "ada@far.example", False),
        (ADA, "ada-tag@home.example", False),
        (BOB, "news@home.example", True),
        (BOB, "in@home.example", False),
        (BOB, "anything@whole.example", True),
        (BOB, "anything@sub.whole.example", False),
        (ref("MailAccount", "gone"), "ada@home.example", False),
    ],
)
def test_who_may_send_as_whom_SUB_03(who: ObjectRef, address: str, allowed: bool) -> None:
    assert DIRECTORY.may_send(who, parse_address(address)) is allowed


@pytest.mark.parametrize(
    ("address", "notify", "copies", "expanded"),
    [
        ("info@home.example", (Notify.SUCCESS, Notify.DELAY), (Notify.SUCCESS, Notify.DELAY), False),
        ("team@home.example", (), (), False),
        ("team@home.example", (Notify.NEVER,), (Notify.NEVER,), False),
        ("team@home.example", (Notify.FAILURE,), (Notify.FAILURE,), False),
        ("team@home.example", (Notify.SUCCESS, Notify.FAILURE), (Notify.FAILURE,), True),
        ("team@home.example", (Notify.SUCCESS,), (Notify.NEVER,), True),
    ],
)
def test_what_is_asked_of_a_list_is_not_asked_of_its_members_DSN_23(
    address: str, notify: tuple[Notify, ...], copies: tuple[Notify, ...], expanded: bool
) -> None:
    found = resolve(address)
    assert isinstance(found, Resolution)
    parameters, due = passed_on(RcptParameters(notify, "rfc822;x"), found)
    assert (parameters.notify, parameters.orcpt, due) == (copies, "rfc822;x", expanded)


def test_a_lookup_costs_the_same_with_ten_thousand_accounts() -> None:
    accounts = tuple(account(ref("MailAccount", f"u{n}"), f"u{n}@home.example") for n in range(10_000))
    directory = Directory(
        Revision(gateways=REVISION.gateways, domains=REVISION.domains, accounts=(*REVISION.accounts, *accounts)),
        REVISION.gateways[0],
    )
    found = directory.resolve(parse_address("u9999@home.example"), authenticated=False)
    assert isinstance(found, Resolution)
    assert found.destinations[0].account == ref("MailAccount", "u9999")


# --- addresses for reports ---


REPORTS = ReportAddresses("dmarc-reports", "tls")
_REPORTING = ("home", "send", "any", "verify", "listed")
REPORTED = replace(
    REVISION,
    domains=(
        *(
            replace(d, reports=REPORTS)
            if d.name.partition(".")[0] in ("home", "send", "any", "verify", "listed")
            else d
            for d in REVISION.domains
        ),
        domain("own.example", aliases=(Alias("tls", ("bob@home.example",)),), reports=REPORTS),
        domain("alias.example", aliases=(Alias("rua", ("tls@home.example", "bob@home.example")),)),
    ),
    accounts=(*REVISION.accounts, account(ref("MailAccount", "own"), "dmarc-reports@own.example")),
)


def in_reported(address: str, *, captive: bool = False) -> Resolution | Reply:
    return Directory(REPORTED, REPORTED.gateways[0]).resolve(
        parse_address(address), authenticated=False, captive=captive
    )


@pytest.mark.parametrize("name", ["home", "send", "any", "verify", "listed", "own"])
@pytest.mark.parametrize("local", ["dmarc-reports", "tls", "TLS"])
def test_a_report_address_is_the_postmasters_mailbox_for_them_whatever_the_domain_does(name: str, local: str) -> None:
    found = in_reported(f"{local}@{name}.example")
    assert isinstance(found, Resolution)
    (end,) = found.destinations
    assert (found.how, str(end.address)) == (How.REPORTS, f"{local}@{name}.example")
    assert (end.account, end.mailbox, end.reports, end.verify) == (ROOT, "Post/Master/reports", True, False)
    assert end.domain is not None


def test_only_the_address_itself_takes_reports_and_not_what_stands_before_a_separator() -> None:
    assert in_reported("tls+x@home.example") is NO_SUCH_USER
    assert in_reported("tls+x@send.example") is SEND_ONLY
    assert in_reported("reports@send.example") is SEND_ONLY
    assert in_reported("tls@whole.example") == resolve("tls@whole.example")


def test_an_alias_may_lead_to_a_report_address() -> None:
    found = in_reported("rua@alias.example")
    assert isinstance(found, Resolution)
    assert [(end.account, end.mailbox, end.reports) for end in found.destinations] == [
        (ROOT, "Post/Master/reports", True),
        (BOB, "Inbox", False),
    ]


def test_without_a_postmaster_there_is_no_report_address() -> None:
    lost = replace(REPORTED, accounts=REVISION.accounts[:2])
    found = Directory(lost, lost.gateways[0]).resolve(parse_address("tls@send.example"), authenticated=False)
    assert found is SEND_ONLY
