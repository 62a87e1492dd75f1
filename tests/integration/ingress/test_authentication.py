"""Who sent a stranger's message: ingress asks a real DNS server, and a proxy tells it the addresses of its clients."""

import contextlib
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from typing import Any

import pytest

from mailrail.core.limits import INLINE_LIMIT
from mailrail.core.message_authentication.content import hash_content
from mailrail.core.message_authentication.verdict import AuthenticationRules, ClientIdentity, MessageVerdict
from mailrail.core.revision.revision import AuthenticationMode, SenderRules, SuffixMode
from mailrail.core.smtp.address import parse_address
from mailrail.pb.queue.v1 import types_pb2
from mailrail_ingress.checks.authentication import DnsAuthenticator
from mailrail_ingress.settings import IngressSettings

from testkit.conditions import eventually
from testkit.dns import DnsServer, Failure
from testkit.ingress import Ingress, Setup, Stored, Talk, code, setup
from testkit.ports import free_port
from testkit.signed_mail import ed25519_key, published, signed_naively

HOST = "127.0.0.1"
CLIENT = "192.0.2.1"
ELSEWHERE = "198.51.100.9"
"""An address that no domain names."""
MESSAGE = b"From: Ann <ann@good.example>\r\nTo: ada@home.example\r\nSubject: lunch\r\n\r\nAt one?\r\n"
ENFORCED = SenderRules()
MONITORED = SenderRules(AuthenticationMode.MONITOR)
YES, FORGED = types_pb2.SENDER_AUTHENTICATION_YES, types_pb2.SENDER_AUTHENTICATION_FORGED
UNSAID = types_pb2.SENDER_AUTHENTICATION_UNSPECIFIED
NOW = 1_767_225_600.0


@contextlib.contextmanager
def zone() -> Iterator[DnsServer]:
    """The domains of senders exist (SIN-23a)."""
    with DnsServer() as server:
        for name in ("good", "soft", "watching", "plain", "nobody", "lists"):
            server.add(f"{name}.example", "MX", "10 mx.example.")
        yield server


@pytest.fixture(scope="module")
def dns() -> Iterator[DnsServer]:
    """good.example rejects, soft.example quarantines, watching.example watches; plain.example has SPF alone."""
    with zone() as server:
        for name, policy in (("good", "reject"), ("soft", "quarantine"), ("watching", "none"), ("home", "reject")):
            server.add(f"{name}.example", "TXT", f'"v=spf1 ip4:{CLIENT} -all"')
            server.add(f"_dmarc.{name}.example", "TXT", f'"v=DMARC1; p={policy}"')
            server.add(f"sel._domainkey.{name}.example", "TXT", f'"{published(ed25519_key())}"')
        server.add("plain.example", "TXT", f'"v=spf1 ip4:{CLIENT} -all"')
        server.add("lists.example", "TXT", f'"v=spf1 ip4:{ELSEWHERE} -all"')
        server.add("_dmarc.unit.corp.example", "TXT", '"v=DMARC1; p=reject"')
        server.add("mail.good.example", "A", CLIENT)
        server.add(ip_address(CLIENT).reverse_pointer, "PTR", "mail.good.example.")
        yield server


def proxied(authentication: SenderRules = ENFORCED, **more: Any) -> Setup:
    return setup(authentication=authentication, proxy_protocol=True, proxy_trusted_cidrs=("127.0.0.0/8",), **more)


@pytest.fixture(scope="module")
def ingress(dns: DnsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingress]:
    metrics = f"{HOST}:{free_port(HOST)}"
    folder = tmp_path_factory.mktemp("ingress")
    with Ingress(folder, proxied(), resolver=dns.endpoint, metrics_listen=metrics, dns_timeout="2") as running:
        running.metrics = metrics  # type: ignore[attr-defined]
        yield running


@contextlib.contextmanager
def client_of(ingress: Ingress, address: str = CLIENT, listener: str = "mx") -> Iterator[Talk]:
    """A client that a proxy conveys."""
    with Talk((HOST, ingress.ports[listener]), greeting=False) as talk:
        talk.send(f"PROXY TCP{ip_address(address).version} {address} 203.0.113.1 5000 25\r\n".encode())
        assert talk.reply().startswith("220")
        assert talk.codes("EHLO mail.good.example") == ["250"]
        yield talk


def send(talk: Talk, message: bytes, *to: str, sender: str = "ann@good.example") -> str:
    """The whole reply to the content."""
    wanted = to or ("ada@home.example",)
    for answer in talk.codes(f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{each}>" for each in wanted)):
        assert answer.startswith("250")
    assert talk.codes("DATA") == ["354"]
    talk.send(message + b".\r\n")
    return talk.reply()


def from_(author: str, message: bytes = MESSAGE) -> bytes:
    return message.replace(b"ann@good.example", author.encode())


def stored(ingress: Ingress, reply: str) -> Stored:
    assert reply.startswith("250 2.6.0 accepted as "), reply
    wanted = bytes.fromhex(reply.split()[-1])
    return next(message for message in ingress.queue.stored if message.id == wanted)


def results(message: Stored) -> str:
    """The first field, unfolded."""
    field = message.content.replace(b"\r\n\t", b" ").replace(b"\r\n ", b" ").partition(b"\r\n")[0].decode()
    assert field.startswith("Authentication-Results: mx.home.example;"), field
    return field


def counted(ingress: Ingress, series: str, **labels: str) -> float:
    with urllib.request.urlopen(f"http://{ingress.metrics}/metrics", timeout=60) as answer:  # type: ignore[attr-defined]
        lines = answer.read().decode().splitlines()
    wanted = [f'{name}="{value}"' for name, value in labels.items()]
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith(f"{series}{{") and all(label in line for label in wanted)
    )


# --- what follows from what was found ---


def test_the_results_stand_above_all_fields_that_we_add_AR_02(ingress: Ingress) -> None:
    message = signed_naively(MESSAGE, {"d": "good.example"}, ed25519_key())
    with client_of(ingress) as talk:
        kept = stored(ingress, send(talk, message))
    said = results(kept)
    for each in ("spf=pass", "dkim=pass", "dmarc=pass", "iprev=pass"):
        assert each in said
    assert kept.content.index(b"Authentication-Results:") < kept.content.index(b"Received:")
    assert kept.content.endswith(message)
    assert kept.envelope.sender_authentication == YES
    assert kept.envelope.authentication.action == types_pb2.AUTHENTICATION_ACTION_ACCEPTED
    assert [each.mailbox for each in kept.recipients] == ["Inbox"]


def test_what_its_authors_domain_rejects_is_refused_after_the_content_SPF_14b_DMRC_15b_DMRC_17b(
    ingress: Ingress,
) -> None:
    before = len(ingress.queue.stored)
    refused = counted(ingress, "mailrail_ingress_authenticated_messages_total", action="reject")
    with client_of(ingress, ELSEWHERE) as talk:
        said = send(talk, MESSAGE)
        assert code(said) == "550 5.7.1"
        assert "good.example" in said
        assert talk.codes("NOOP") == ["250 2.0.0"]
    assert len(ingress.queue.stored) == before
    assert counted(ingress, "mailrail_ingress_authenticated_messages_total", action="reject") == refused + 1
    assert counted(ingress, "mailrail_ingress_authentication_results_total", method="dmarc", result="fail") >= 1
    event = ingress.events("message refused")[-1]
    assert (event["check"], event["dmarc"], event["spf"]) == ("authentication", "fail", "fail")


def test_mail_that_pretends_to_be_ours_is_judged_by_our_own_record(ingress: Ingress) -> None:
    with client_of(ingress, ELSEWHERE) as talk:
        assert code(send(talk, from_("ada@home.example"), sender="x@nobody.example")) == "550 5.7.1"


def test_what_is_quarantined_goes_into_junk_and_elsewhere_as_it_is(ingress: Ingress) -> None:
    with client_of(ingress, ELSEWHERE) as talk:
        kept = stored(ingress, send(talk, from_("ann@soft.example"), "team@home.example", sender="x@nobody.example"))
    found = {each.address: each.mailbox for each in kept.recipients}
    assert (found["ada@home.example"], found["bob@far.example"]) == ("Junk", "Inbox")
    assert "dmarc=fail" in results(kept)


def test_a_failure_that_its_domain_only_watches_changes_nothing(ingress: Ingress) -> None:
    with client_of(ingress, ELSEWHERE) as talk:
        kept = stored(ingress, send(talk, from_("ann@watching.example"), sender="x@nobody.example"))
    assert "dmarc=fail" in results(kept)
    assert [each.mailbox for each in kept.recipients] == ["Inbox"]


def test_without_a_dmarc_record_a_failure_of_spf_refuses_SPF_14b(ingress: Ingress) -> None:
    with client_of(ingress, ELSEWHERE) as talk:
        assert code(send(talk, from_("ann@plain.example"), sender="ann@plain.example")) == "550 5.7.23"


def test_a_sender_that_spf_disproves_is_forged_DSN_26b(ingress: Ingress) -> None:
    with client_of(ingress, ELSEWHERE) as talk:
        kept = stored(ingress, send(talk, from_("ann@watching.example"), sender="ann@watching.example"))
    assert kept.envelope.sender_authentication == FORGED


def test_a_signature_over_a_large_body_is_verified_as_it_streams_and_a_changed_one_is_not(ingress: Ingress) -> None:
    long = MESSAGE + b"line after line, until it goes to the queue in parts\r\n" * (2 * INLINE_LIMIT // 54)
    message = signed_naively(long, {"d": "good.example"}, ed25519_key())
    with client_of(ingress, ELSEWHERE) as talk:
        kept = stored(ingress, send(talk, message))
        assert kept.chunks
        assert "dkim=pass" in results(kept)
        assert code(send(talk, message.replace(b"in parts\r\n", b"in pieces\r\n", 1))) == "550 5.7.1"


def test_whoever_logs_in_is_not_checked_SPF_17(ingress: Ingress) -> None:
    with client_of(ingress, ELSEWHERE, "submission") as talk:
        talk.start_tls()
        assert talk.log_in() == "235 2.7.0"
        kept = stored(ingress, send(talk, from_("ada@home.example"), sender="ada@home.example"))
    assert b"Authentication-Results" not in kept.content


def test_what_this_machine_sends_is_not_checked_SPF_17(ingress: Ingress) -> None:
    with client_of(ingress, "127.0.0.1") as talk:
        assert b"Authentication-Results" not in stored(ingress, send(talk, MESSAGE)).content


def test_where_a_relay_tells_the_real_client_that_one_is_checked_SPF_17(ingress: Ingress) -> None:
    with client_of(ingress) as talk:
        assert "spf=pass" in results(stored(ingress, send(talk, MESSAGE)))
    with client_of(ingress, ELSEWHERE) as talk:
        assert code(send(talk, MESSAGE)) == "550 5.7.1"


# --- what a gateway or domain says ---


@contextlib.contextmanager
def ruled(ingress: Ingress, rules: SenderRules, of_home: AuthenticationMode | None = None) -> Iterator[None]:
    """The gateway has these rules, and home.example perhaps a mode of its own."""
    before = ingress.setup
    revision = before.revision
    gateways = tuple(replace(each, authentication=rules) for each in revision.gateways)
    domains = tuple(
        replace(each, authentication=of_home) if each.name == "home.example" else each for each in revision.domains
    )
    ingress.publish(Setup(replace(revision, gateways=gateways, domains=domains), before.secrets))
    try:
        yield
    finally:
        ingress.publish(before)


def test_monitoring_writes_what_it_found_and_changes_nothing(ingress: Ingress) -> None:
    with ruled(ingress, MONITORED), client_of(ingress, ELSEWHERE) as talk:
        for author in ("ann@good.example", "ann@soft.example", "ann@plain.example"):
            kept = stored(ingress, send(talk, from_(author), sender=author))
            assert "spf=fail" in results(kept)
            assert kept.envelope.sender_authentication == UNSAID
            assert [each.mailbox for each in kept.recipients] == ["Inbox"]


def test_disabled_asks_nothing_and_writes_nothing(ingress: Ingress, dns: DnsServer) -> None:
    with ruled(ingress, SenderRules(AuthenticationMode.DISABLED)), client_of(ingress, ELSEWHERE) as talk:
        kept = stored(ingress, send(talk, from_("ann@unasked.example"), sender=""))
    assert b"Authentication-Results" not in kept.content
    assert not dns.asked("_dmarc.unasked.example")


def test_a_domain_may_have_another_mode_and_the_strictest_counts(ingress: Ingress) -> None:
    with ruled(ingress, MONITORED, AuthenticationMode.ENFORCE), client_of(ingress, ELSEWHERE) as talk:
        assert code(send(talk, MESSAGE)) == "550 5.7.1"
        assert code(send(talk, MESSAGE, "postmaster", "ada@home.example")) == "550 5.7.1"


@pytest.mark.parametrize("forwarder", ["198.51.100.0/24", "lists.example"])
def test_what_a_trusted_forwarder_brings_is_not_refused(ingress: Ingress, forwarder: str) -> None:
    with ruled(ingress, SenderRules(trusted_forwarders=(forwarder,))), client_of(ingress, ELSEWHERE) as talk:
        assert "dmarc=fail" in results(stored(ingress, send(talk, MESSAGE, sender="bounces@lists.example")))


def test_a_list_of_public_suffixes_takes_the_place_of_the_walk_where_it_is_chosen_DMRC_20b(ingress: Ingress) -> None:
    author = from_("ann@team.unit.corp.example")
    with client_of(ingress, ELSEWHERE) as talk:
        assert code(send(talk, author, sender="x@nobody.example")) == "550 5.7.1"
    with ruled(ingress, SenderRules(suffixes=SuffixMode.LIST)), client_of(ingress, ELSEWHERE) as talk:
        assert "dmarc=none" in results(stored(ingress, send(talk, author, sender="x@nobody.example")))


# --- the DNS in trouble ---


def ask(authenticator: DnsAuthenticator, client: str = CLIENT) -> list[MessageVerdict | None]:
    """A list that has the answer in it, once it is there."""
    heard: list[MessageVerdict | None] = []
    identity = ClientIdentity(ip_address(client), "mail.good.example", parse_address("ann@good.example"))
    rules = AuthenticationRules("mx.home.example")
    authenticator.authenticate(identity, hash_content(MESSAGE, NOW), rules, heard.append, by_list=False)
    return heard


@pytest.mark.parametrize(
    ("failure", "result"),
    [
        (Failure.SERVFAIL, "temperror"),
        (Failure.SILENT, "temperror"),
        (Failure.GARBAGE, "temperror"),
        (Failure.REFUSED, "permerror"),
        (Failure.NOTIMP, "permerror"),
    ],
)
async def test_a_dns_in_trouble_refuses_nothing_DMRC_13b(failure: Failure, result: str) -> None:
    with zone() as broken:
        for name in ("_dmarc.good.example", "good.example", ip_address(CLIENT).reverse_pointer):
            broken.fail(name, failure)
        heard = ask(DnsAuthenticator(IngressSettings(resolver=broken.endpoint, dns_timeout=0.5)))
        await eventually(lambda: heard)
    verdict = heard[0]
    assert verdict is not None
    assert verdict.reply is None
    assert (verdict.dmarc.result, verdict.spf.result) == (result, "temperror")


async def test_past_its_limit_one_client_hears_so_at_once_and_others_are_checked() -> None:
    with zone() as slow:
        slow.fail("_dmarc.good.example", Failure.SILENT)
        settings = IngressSettings(resolver=slow.endpoint, dns_timeout=60.0, authentications=10)
        authenticator = DnsAuthenticator(settings)
        first, second, other = ask(authenticator), ask(authenticator), ask(authenticator, ELSEWHERE)
        assert (first, second, other) == ([], [None], [])


async def test_past_the_limit_of_all_everybody_hears_so_at_once() -> None:
    with zone() as slow:
        slow.fail("_dmarc.good.example", Failure.SILENT)
        authenticator = DnsAuthenticator(IngressSettings(resolver=slow.endpoint, dns_timeout=60.0, authentications=1))
        assert (ask(authenticator), ask(authenticator, ELSEWHERE)) == ([], [None])


async def test_a_client_whose_message_was_answered_may_send_the_next_at_once() -> None:
    with zone() as dns:
        authenticator = DnsAuthenticator(IngressSettings(resolver=dns.endpoint, authentications=10))
        for _ in range(3):
            heard = ask(authenticator)
            await eventually(partial(len, heard))
            assert heard[0] is not None
