"""We judge as pyspf does, on records that chance puts together."""

import base64
import random
from collections.abc import Mapping, Sequence
from ipaddress import ip_address

import pytest

from mailrail.core.lookups import answered
from mailrail.core.smtp.address import Address
from mailrail.core.spf.evaluation import SpfReceiver, check_host
from mailrail.core.spf.identity import mail_from_identity

from testkit.dns_table import DnsTable
from testkit.peers.pyspf import results_of_pyspf

CLIENTS = ("192.0.2.1", "192.0.2.77", "2001:db8::1", "::ffff:192.0.2.1")
FIXED = {
    ("yes.example.net", "TXT", "v=spf1 +all"),
    ("no.example.net", "TXT", "v=spf1 -all"),
    ("soft.example.net", "TXT", "v=spf1 ~all"),
    ("none.example.net", "TXT", "no record"),
    ("bad.example.net", "TXT", "v=spf1 nonsense"),
    ("why.example.net", "TXT", "because"),
    ("h1.example.net", "A", "192.0.2.1"),
    ("h1.example.net", "AAAA", "2001:db8::1"),
    ("h2.example.net", "A", "192.0.2.2"),
    ("h6.example.net", "AAAA", "2001:db8::6"),
    ("m.example.net", "MX", "10 h2.example.net"),
    ("m.example.net", "MX", "20 h1.example.net"),
    ("null.example.net", "MX", "0 ."),
    ("1.2.0.192.in-addr.arpa", "PTR", "h1.example.net"),
    ("1.2.0.192.in-addr.arpa", "PTR", "h2.example.net"),
    (f"{'1.' + '0.' * 23}8.b.d.0.1.0.0.2.ip6.arpa", "PTR", "h1.example.net"),
    ("192.0.2.1.in-addr.ok.example.net", "A", "127.0.0.2"),
    ("ann.ok.example.net", "A", "127.0.0.2"),
    ("bob.x-y.ok.example.net", "A", "127.0.0.2"),
    ("mail.example.com.ok.example.net", "A", "127.0.0.2"),
    ("h1.example.net.ok.example.net", "A", "127.0.0.2"),
}
FAILING = ("fail.example.net", "66.2.0.192.in-addr.arpa")
TERMS = (
    "ip4:192.0.2.1", "ip4:192.0.2.0/26", "ip4:192.0.2.1/32", "ip4:0.0.0.0/0", "ip6:2001:db8::/33", "ip6:::/0",
    "ip6:2001:db8::1", "ip4:192.0.2.1/33", "ip4:192.0.2.01", "ip4:192.0.2", "ip4:", "ip4", "ip6:192.0.2.1",
    "ip6:2001:db8::1/129", "ip6:::ffff:192.0.2.1", "ip4:192.0.2.1/", "ip4:192.0.2.1/08", "ip6:1:2:3", "ip4/24", "a",
    "a/24", "a//64", "a/24//64", "a:h1.example.net", "a:h2.example.net/24", "a:h6.example.net//96",
    "a:gone.example.net", "a:fail.example.net", "a:", "a:com", "a/33", "a//129", "a/024", "a:h1.example.net.",
    "a:%{h}", "A:H1.Example.NET", "mx", "mx:m.example.net", "mx:m.example.net/31", "mx:null.example.net",
    "mx:fail.example.net", "mx:gone.example.net", "mx:", "ptr", "ptr:example.net", "ptr:h1.example.net", "ptr:net",
    "ptr:", "ptr/24", "PTR:EXAMPLE.NET", "include:yes.example.net", "include:no.example.net",
    "include:soft.example.net", "include:none.example.net", "include:bad.example.net", "include:fail.example.net",
    "include:gone.example.net", "include", "include:", "include:x/24", "exists:%{i}.%{v}.ok.example.net",
    "exists:%{l}.ok.example.net", "exists:%{l1r-}.x-y.ok.example.net", "exists:%{h}.ok.example.net",
    "exists:%{p}.ok.example.net", "exists:%{d2}", "exists:%{ir}.gone.example.net", "exists:",
    "exists:%{x}.example.net", "exists:%{c}.example.net", "exists:%{l", "exists:%%a.b%_c.net",
    "exists:h6.example.net", "exists:h1.example.net/24", "exists:fail.example.net", "all", "-all", "~all", "?all",
    "all:x", "all.", "-", "+", "??all", "redirect=yes.example.net", "redirect=no.example.net",
    "redirect=none.example.net", "redirect=", "redirect=bad.example.net", "redirect=fail.example.net",
    "redirect:yes.example.net", "exp=why.example.net", "exp=", "exp=gone.example.net", "x1=y", "x2=%{l}", "x3=%", "x4=",
    "1x=y", "x.y-z_a=:/", "=x", "x/y=z", "nonsense", "nonsense:x", "\x0bx", "all\t",
)  # fmt: skip
DIFFERENT = {
    "v=spf1 -exists": "neutral",  # RFC 7208 5.7: a domain-spec has to follow
    "v=spf1 exists:%{d0}.example.net": "neutral",  # RFC 7208 7.3: the digit must not be zero
    "v=spf1 x=y x=z -all": "permerror",  # RFC 7208 6: unknown modifiers are ignored, however often
    "v=spf1 ptr ip4:192.0.2.99": "temperror",  # RFC 7208 5.5: no answer to PTR is no match
}
"""Records that pyspf judges otherwise, and how. What a later pyspf judges as we do, goes."""
QUALIFIERS = ("", "", "", "+", "-", "~", "?")
SENDERS = ("ann@{}", "bob-x@{}")
HELO = "mail.example.com"
CASES = 3000


def record(chance: random.Random) -> str:
    """A record of a few terms."""
    terms = []
    for term in chance.sample(TERMS, chance.randint(1, 5)):
        terms.append(term if "=" in term else chance.choice(QUALIFIERS) + term)
    return chance.choice(("v=spf1 ", "V=SPF1  ")) + " ".join(terms) + chance.choice(("", " "))


def compared(records: Mapping[str, str], asked: Sequence[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """The result of pyspf, and ours, for each client, sender and HELO name."""
    table = DnsTable()
    zone: dict[str, dict[str, list[object]]] = {}
    for name in FAILING:
        table.fail(name)
        zone[name] = {"FAIL": []}
    rows = [*sorted(FIXED), *((domain, "TXT", text) for domain, text in records.items())]
    for name, kind, value in rows:
        table.add(name, kind, value)
        zone.setdefault(name, {}).setdefault(kind, []).append(as_pyspf_wants(kind, value))
    ours = []
    for client, sender, helo in asked:
        local, _, domain = sender.partition("@")
        checking = check_host(
            mail_from_identity(Address(local, domain), helo), ip_address(client), helo, SpfReceiver(void_limit=1000)
        )
        ours.append(answered(checking, table).result.value)
    return list(zip(results_of_pyspf(zone, asked), ours, strict=True))


def as_pyspf_wants(kind: str, value: str) -> object:
    match kind:
        case "TXT":
            return base64.b64encode(value.encode("latin-1")).decode()
        case "MX":
            preference, host = value.split()
            return [int(preference), host.removesuffix(".")]
        case "AAAA":
            return list(ip_address(value).packed)
        case _:
            return value


@pytest.mark.peer("pyspf")
def test_we_judge_records_as_pyspf_does() -> None:
    chance = random.Random(7208)
    records = {f"d{number}.example.net": record(chance) for number in range(CASES)}
    asked = [(chance.choice(CLIENTS), chance.choice(SENDERS).format(domain), HELO) for domain in records]
    pairs = compared(records, asked)
    different = [
        (client, sender, records[sender.partition("@")[2]], theirs, ours)
        for (client, sender, _), (theirs, ours) in zip(asked, pairs, strict=True)
        if theirs != ours
    ]
    assert different == []
    assert {ours for _, ours in pairs} == {"pass", "fail", "softfail", "neutral", "temperror", "permerror"}


@pytest.mark.peer("pyspf")
@pytest.mark.parametrize(("text", "theirs"), DIFFERENT.items())
def test_where_pyspf_judges_otherwise_it_still_does(text: str, theirs: str) -> None:
    ((found, ours),) = compared({"d.example.net": text}, [("192.0.2.66", "ann@d.example.net", HELO)])
    assert (found, found != ours) == (theirs, True)
