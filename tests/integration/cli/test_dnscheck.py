"""`mailrail dnscheck` against a real DNS server, policy host and MX host: each record right, missing and wrong."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from ipaddress import ip_network
from typing import Any

import pytest
from typer.testing import CliRunner

from mailrail.cli import dnscheck
from mailrail.cli.app import app
from mailrail.cli.connection import PLACE
from mailrail.core.dnscheck.served import tlsa_value
from mailrail.core.mtasts.own import own_policy, own_record
from mailrail.core.mtasts.policy import Mode
from mailrail.core.revision.revision import (
    DkimKey,
    Domain,
    DomainDelivery,
    Gateway,
    MtaSts,
    ObjectRef,
    Revision,
    Role,
    SecretRef,
    encode,
)
from mailrail.pb.config.v1 import config_pb2, config_pb2_grpc

from testkit.ca import Authority
from testkit.chains import issue
from testkit.dns import DnsServer, Failure
from testkit.policy_hosts import PolicyHosts
from testkit.ports import loopback_address
from testkit.smtp_peer import SmtpPeer

DOMAIN = "example.org"
HOST = "mx.example.org"
LEAF = issue("mx", HOST)
OTHER = issue("mx", HOST)
POLICY = "version: STSv1\r\nmode: enforce\r\nmx: mx.example.org\r\nmax_age: 604800\r\n"
GATEWAY = Gateway(ObjectRef("MailGateway", "mail", "mx"), HOST, (), ObjectRef("MailAccount", "mail", "postmaster"))
KEY = DkimKey(
    "s1",
    "ed25519-sha256",
    SecretRef("mail", "dkim", "private.pem", "d", "k"),
    record="v=DKIM1; k=ed25519; p=QUJD",
)
OURS = Domain(
    ObjectRef("MailDomain", "mail", "org"),
    DOMAIN,
    DomainDelivery.MAILBOX,
    dkim=(KEY,),
    gateway=GATEWAY.ref,
    mta_sts=MtaSts(Mode.ENFORCE, 604_800),
)


class World:
    """A domain that has every record, and the servers that they lead to."""

    def __init__(self, dns: DnsServer, hosts: PolicyHosts, mx: SmtpPeer) -> None:
        self.dns, self.hosts, self.mx = dns, hosts, mx
        self.tlsa = f"_{mx.port}._tcp.{HOST}"
        dns.secure_zone(DOMAIN)
        dns.add(DOMAIN, "MX", f"10 {HOST}.")
        dns.add(DOMAIN, "TXT", '"v=spf1 ip4:192.0.2.1 -all"')
        dns.add(f"s1._domainkey.{DOMAIN}", "TXT", '"v=DKIM1; k=ed25519; p=QUJD"')
        dns.add(f"_dmarc.{DOMAIN}", "TXT", '"v=DMARC1; p=reject"')
        dns.add(f"_mta-sts.{DOMAIN}", "TXT", '"v=STSv1; id=1;"')
        dns.add(f"mta-sts.{DOMAIN}", "A", hosts.address)
        dns.add(f"_smtp._tls.{DOMAIN}", "TXT", '"v=TLSRPTv1; rua=mailto:a@example.org"')
        dns.add("1.2.0.192.in-addr.arpa", "PTR", "out.example.org.")
        dns.add("out.example.org", "A", "192.0.2.1")
        dns.add(HOST, "A", mx.host)
        dns.add(self.tlsa, "TLSA", tlsa_value(LEAF.der))
        hosts.publish(DOMAIN, POLICY)

    async def check(self, *arguments: str, trusted: bool = True) -> Any:
        """The command's result."""
        trust = ["--trust-ad"] if trusted else []
        words = ["dnscheck", DOMAIN, "--resolver", self.dns.endpoint, *trust, "--egress", "192.0.2.1", *arguments]
        return await asyncio.to_thread(CliRunner().invoke, app, words)

    async def rows(self, *arguments: str, trusted: bool = True) -> dict[str, dict[str, Any]]:
        """What the command says of each record, by purpose and type."""
        done = await self.check("--selector", "s1", *arguments, "--json", trusted=trusted)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        found: dict[str, dict[str, Any]] = {}
        for row in json.loads(done.stdout)["records"]:
            found[f"{row['purpose']} {row['type']}"] = row | {"exit": done.exit_code}
        return found


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(type(PLACE), "is_known", lambda _: False)
    authority = Authority()
    async with AsyncExitStack() as stack:
        dns, hosts = stack.enter_context(DnsServer()), stack.enter_context(PolicyHosts(authority))
        mx = await stack.enter_async_context(SmtpPeer(host=loopback_address(), tls=LEAF.server_context()))
        servers = dnscheck.CheckedServers(mx.port, hosts.port, (ip_network("127.0.0.0/8"),), authority.client_context())
        monkeypatch.setattr(dnscheck, "WORLD", servers)
        yield World(dns, hosts, mx)


async def test_a_domain_that_has_every_record_is_right_and_its_certificate_is_that_of_its_tlsa_record(
    world: World,
) -> None:
    rows = await world.rows()
    assert {kind: row["state"] for kind, row in rows.items()} == dict.fromkeys(
        [
            "SPF TXT",
            "DKIM TXT",
            "DMARC TXT",
            "MX MX",
            "MTA-STS TXT",
            "MTA-STS HTTPS",
            "TLSRPT TXT",
            "PTR PTR",
            "DANE TLSA",
        ],
        "Match",
    )
    assert {row["exit"] for row in rows.values()} == {0}
    assert world.mx.commands[:2] != []
    assert not world.mx.messages


Change = Callable[[World], None]


@pytest.mark.parametrize(
    ("what", "change", "state"),
    [
        ("SPF TXT", lambda w: w.dns.remove(DOMAIN, "TXT"), "Missing"),
        ("SPF TXT", lambda w: w.dns.set(DOMAIN, "TXT", '"v=spf1 ip4:192.0.2.9 -all"'), "Mismatch"),
        ("DKIM TXT", lambda w: w.dns.remove(f"s1._domainkey.{DOMAIN}"), "Missing"),
        ("DKIM TXT", lambda w: w.dns.set(f"s1._domainkey.{DOMAIN}", "TXT", '"v=DKIM1; p="'), "Mismatch"),
        ("DMARC TXT", lambda w: w.dns.remove(f"_dmarc.{DOMAIN}"), "Missing"),
        ("DMARC TXT", lambda w: w.dns.set(f"_dmarc.{DOMAIN}", "TXT", '"v=DMARC1; p=maybe"'), "Mismatch"),
        ("MX MX", lambda w: w.dns.remove(DOMAIN, "MX"), "Missing"),
        ("MTA-STS TXT", lambda w: w.dns.remove(f"_mta-sts.{DOMAIN}"), "Missing"),
        ("MTA-STS TXT", lambda w: w.dns.set(f"_mta-sts.{DOMAIN}", "TXT", '"v=STSv1; id=a-b"'), "Mismatch"),
        ("MTA-STS A", lambda w: w.dns.remove(f"mta-sts.{DOMAIN}"), "Missing"),
        ("MTA-STS HTTPS", lambda w: w.hosts.publish(DOMAIN, "", status="404 Not Found"), "Mismatch"),
        ("MTA-STS HTTPS", lambda w: w.hosts.publish(DOMAIN, POLICY.replace(HOST, "mx.elsewhere.example")), "Mismatch"),
        ("TLSRPT TXT", lambda w: w.dns.remove(f"_smtp._tls.{DOMAIN}"), "Missing"),
        ("TLSRPT TXT", lambda w: w.dns.set(f"_smtp._tls.{DOMAIN}", "TXT", '"v=TLSRPTv1; ruf=x"'), "Mismatch"),
        ("PTR PTR", lambda w: w.dns.remove("1.2.0.192.in-addr.arpa"), "Missing"),
        ("PTR PTR", lambda w: w.dns.set("out.example.org", "A", "192.0.2.77"), "Mismatch"),
        ("DANE TLSA", lambda w: w.dns.set(w.tlsa, "TLSA", tlsa_value(OTHER.der)), "Mismatch"),
        ("DANE TLSA", lambda w: w.mx.secure_with(OTHER.server_context()), "Mismatch"),
        ("MX A", lambda w: w.dns.remove(HOST), "Missing"),
    ],
)
async def test_a_record_that_is_missing_or_wrong_is_told_with_exit_status_1(
    world: World, what: str, change: Change, state: str
) -> None:
    change(world)
    row = (await world.rows())[what]
    assert (row["state"], row["exit"]) == (state, 1), row
    assert row["message"]


async def test_a_domain_without_dane_lacks_nothing_and_is_told_the_record_of_its_certificate(world: World) -> None:
    world.dns.remove(world.tlsa)
    row = (await world.rows())["DANE TLSA"]
    assert (row["state"], row["optional"], row["exit"]) == ("Missing", True, 0)
    assert row["value"] == tlsa_value(LEAF.der)


async def test_records_that_dnssec_does_not_prove_count_for_nobody(world: World) -> None:
    world.dns._secure_zones.clear()
    row = (await world.rows())["DANE TLSA"]
    assert row["state"] == "Mismatch"
    assert "DNSSEC does not prove it" in row["message"]
    untrusted = (await world.rows(trusted=False))["DANE TLSA"]
    assert (untrusted["state"], untrusted["exit"]) == ("Match", 0)
    assert "--trust-ad" in untrusted["message"]


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("DMARC TXT", lambda w: w.dns.fail(f"_dmarc.{DOMAIN}", Failure.SERVFAIL)),
        ("DANE TLSA", lambda w: w.dns.fail(w.tlsa, Failure.SERVFAIL)),
    ],
)
async def test_what_could_not_be_asked_accuses_nobody_and_is_exit_status_3(
    world: World, what: str, change: Change
) -> None:
    change(world)
    row = (await world.rows())[what]
    assert (row["state"], row["exit"]) == ("Unknown", 3)


@pytest.mark.parametrize(
    ("replies", "said"),
    [
        ({"STARTTLS": "454 4.7.0 not now"}, "454 4.7.0 not now"),
        ({"GREETING": "554 no"}, "554 no"),
        ({"EHLO": "250-mx\n" + "\n".join(["250-X"] * 200) + "\n250 X"}, "lines"),
    ],
)
async def test_a_host_that_shows_no_certificate_is_told_in_its_own_words(
    world: World, replies: dict[str, Any], said: str
) -> None:
    async with SmtpPeer(host=loopback_address(), port=world.mx.port, tls=LEAF.server_context(), replies=replies) as bad:
        world.dns.set(HOST, "A", bad.host)
        row = (await world.rows())["DANE TLSA"]
    assert row["state"] == "Unknown"
    assert said in row["message"]


async def test_names_of_strangers_lead_to_the_internet_alone_SOUT_19(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dnscheck, "WORLD", dnscheck.CheckedServers(world.mx.port, world.hosts.port))
    rows = await world.rows()
    assert "no address of the Internet" in rows["DANE TLSA"]["message"]
    assert "no address of the Internet" in rows["MTA-STS HTTPS"]["message"]
    assert not world.mx.sessions


class Config:
    """The config service, as far as the command asks."""

    def __init__(self, revision: Revision, policy_runs: int) -> None:
        self._found = config_pb2.GetRevisionResponse(body=encode(revision))
        self._found.info.revision = 7
        policy = config_pb2.Consumer(role=Role.POLICY, revision=policy_runs, live=True)
        self._consumers = config_pb2.ListConsumersResponse(consumers=[policy])

    async def GetRevision(self, *_: Any, timeout: float) -> config_pb2.GetRevisionResponse:
        return self._found

    async def ListConsumers(self, *_: Any, timeout: float) -> config_pb2.ListConsumersResponse:
        return self._consumers


def with_config(monkeypatch: pytest.MonkeyPatch, policy_runs: int = 7) -> None:
    made = Config(Revision(gateways=(GATEWAY,), domains=(OURS,)), policy_runs)
    monkeypatch.setattr(type(PLACE), "is_known", lambda _: True)
    monkeypatch.setattr(dnscheck, "ask", lambda _, question: asyncio.run(question(None)))
    monkeypatch.setattr(config_pb2_grpc, "ConfigServiceStub", lambda _: made)


async def test_of_a_domain_of_ours_it_is_known_what_must_be_there_ready_to_copy(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_config(monkeypatch)
    policy = own_policy(OURS, HOST)
    assert policy is not None
    world.dns.set(DOMAIN, "MX", "10 old.example.org.")
    world.dns.remove(f"_dmarc.{DOMAIN}")
    done = await world.check()
    assert done.exit_code == 1, done.stderr
    _, _, published = done.stdout.partition("To publish:\n")
    assert published.splitlines() == [
        '_dmarc.example.org. IN TXT "v=DMARC1; p=none; rua=mailto:postmaster@example.org"',
        "example.org. IN MX 10 mx.example.org.",
        f'_mta-sts.example.org. IN TXT "{own_record(policy)}"',
    ]


async def test_the_record_of_a_policy_that_is_not_served_yet_is_not_told_STS_23b(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_config(monkeypatch, policy_runs=6)
    world.dns.remove(f"_mta-sts.{DOMAIN}")
    done = await world.check()
    assert done.exit_code == 0, done.stdout + done.stderr
    assert "not served yet" in done.stdout
    assert "To publish" not in done.stdout


async def test_a_policy_host_that_serves_another_policy_than_ours_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_config(monkeypatch)
    policy = own_policy(OURS, HOST)
    assert policy is not None
    world.dns.set(f"_mta-sts.{DOMAIN}", "TXT", f'"{own_record(policy)}"')
    assert (await world.rows())["MTA-STS HTTPS"]["state"] == "Match"
    world.hosts.publish(DOMAIN, POLICY.replace("enforce", "testing"))
    assert (await world.rows())["MTA-STS HTTPS"]["state"] == "Mismatch"


async def test_with_foreign_a_domain_of_ours_is_looked_at_as_others_do(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_config(monkeypatch)
    world.dns.set(DOMAIN, "MX", f"10 {HOST}.", "20 old.example.org.")
    world.dns.add("old.example.org", "A", world.mx.host)
    done = await world.check("--foreign")
    assert "not known as ours" in done.stderr
    assert "To publish" not in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("no domain",),
        (DOMAIN, "--trust-ad"),
        (DOMAIN, "--resolver", "nowhere"),
        (DOMAIN, "--egress", "here"),
        (DOMAIN, "--selector", "a b"),
    ],
)
def test_what_cannot_be_checked_is_a_wrong_command(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(PLACE), "is_known", lambda _: False)
    done = CliRunner().invoke(app, ["dnscheck", *arguments])
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("mailrail: ")
