"""Next hops that are not ours: smtp-sink, Postfix as smarthost and destination, SASL servers, SOCKS5 proxies.

Each is a real program (or, where a proxy must relay to another port than 25, the scripted one of the testkit).
"""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from mailrail.pb.queue.v1 import admin_pb2, admin_pb2_grpc

from testkit.background import background
from testkit.ca import Authority
from testkit.conditions import wait_until
from testkit.dns import DnsServer
from testkit.next_hop import NextHop
from testkit.peers import require_peer
from testkit.peers.dovecot import Dovecot
from testkit.peers.load import smtp_sink, smtp_source
from testkit.peers.postfix import Postfix
from testkit.peers.socks_servers import SocksServer, dante, microsocks
from testkit.peers.swaks import swaks
from testkit.ports import loopback_address
from testkit.rail import Document, Rail, basics, by_transport, domain, route, rule, secret, transport
from testkit.smtp_peer import Close, PeerSession, SmtpPeer
from testkit.socks import SocksProxy

pytestmark = [pytest.mark.peer("swaks"), pytest.mark.timeout(300)]

AUTHORITY = Authority()
SMARTHOST_LOGIN, SMARTHOST_PASSWORD = "rail", "s3cret, with a space"


def send(rail: Rail, recipient: str, *options: str) -> None:
    said = swaks(*rail.mx, "--from", "bob@elsewhere.test", "--to", recipient, *options)
    assert said.accepted, said.text


def everything_to(name: str) -> Document:
    return route("all", ("MailGateway", "local"), rule("all", name))


@contextlib.contextmanager
def running(*documents: Document, options: tuple[str, ...] = (), trust: Authority | None = None) -> Iterator[Rail]:
    """A rail with these documents besides the basics; `hop-ca.pem` lies beside them when `trust` is given."""
    with Rail([*basics(), *documents], options=options, files={"hop-ca.pem": trust.pem} if trust else {}) as rail:
        yield rail


@pytest.mark.peer("smtp-source")
@pytest.mark.peer("smtp-sink")
def test_mail_from_smtp_source_goes_on_to_smtp_sink_with_and_without_reuse() -> None:
    with smtp_sink("-c") as sink:
        hop = transport("hop", smtp={"host": sink.address, "port": sink.port})
        with running(hop, everything_to("hop")) as rail:
            smtp_source(*rail.mx, messages=100, sessions=10)
            smtp_source(*rail.mx, messages=100, sessions=10, reuse=True)
            rail.wait_until_empty()
            wait_until(lambda: "mesg=200" in "".join(sink.program.lines), 60, sink.program.tail)


@pytest.mark.peer("postfix")
def test_a_postfix_smarthost_hands_on_what_we_give_it_over_tls_if_it_offers_that() -> None:
    with (
        Postfix("destination.test") as destination,
        Postfix(
            "smarthost.test",
            relay_to=(destination.address, destination.port),
            certificate=AUTHORITY.issue("smarthost.test"),
            refuse={"nobody@partner.test": "550 5.1.1 nobody here"},
        ) as smarthost,
        running(
            transport("smarthost", smtp={"host": smarthost.address, "port": smarthost.port}),
            everything_to("smarthost"),
        ) as rail,
    ):
        send(rail, "friend@partner.test", "--header", "Subject: through Postfix")
        wait_until(lambda: destination.count() == 1, 60, lambda: smarthost.logged() + destination.logged())
        message = destination.messages()[0]
        assert message["Subject"] == "through Postfix"
        assert message["Return-Path"] == "<bob@elsewhere.test>"
        received = " ".join(" ".join(message.get_all("Received", [])).split())
        assert "by smarthost.test (Postfix) with ESMTPS" in received  # opportunistic STARTTLS
        assert "by rail.example.org" in received


def _submission_server(destination: Postfix, dovecot: Dovecot, *, implicit_tls: bool, name: str) -> Postfix:
    return Postfix(
        name,
        relay_to=(destination.address, destination.port),
        sasl=dovecot.auth,
        certificate=AUTHORITY.issue(name, "127.0.0.1"),
        implicit_tls=implicit_tls,
    )


@pytest.mark.peer("postfix")
@pytest.mark.peer("dovecot")
@pytest.mark.parametrize(
    ("member", "mechanism"),
    [
        ("submission", "SCRAM-SHA-256"),
        ("submission", "SCRAM-SHA-1"),
        ("submission", "CRAM-MD5"),
        ("submission", "PLAIN"),
        ("submission", "LOGIN"),
        ("submissions", "SCRAM-SHA-256"),
        ("submissions", "PLAIN"),
    ],
)
def test_a_submission_server_takes_our_mail_with_the_strongest_mechanism_it_has(member: str, mechanism: str) -> None:
    name = "submission.test"
    weaker = {
        "SCRAM-SHA-256": ("scram-sha-256", "scram-sha-1", "plain", "login"),
        "SCRAM-SHA-1": ("scram-sha-1", "cram-md5", "plain"),
        "CRAM-MD5": ("cram-md5", "plain", "login"),
        "PLAIN": ("plain", "login"),
        "LOGIN": ("login",),
    }[mechanism]
    with (
        DnsServer() as dns,
        Postfix("destination.test") as destination,
        Dovecot({SMARTHOST_LOGIN: SMARTHOST_PASSWORD}, mechanisms=weaker) as dovecot,
        _submission_server(destination, dovecot, implicit_tls=member == "submissions", name=name) as server,
    ):
        dns.add(name, "A", server.address)
        spec = {
            "host": name,
            "port": server.port,
            "auth": {"secretRef": {"name": "hop-login"}},
            "tls": {"caFile": "hop-ca.pem"},
        }
        with running(
            transport("hop", **{member: spec}),
            secret("hop-login", username=SMARTHOST_LOGIN, password=SMARTHOST_PASSWORD),
            everything_to("hop"),
            options=("--resolver", dns.endpoint),
            trust=AUTHORITY,
        ) as rail:
            send(rail, "friend@partner.test")
            wait_until(lambda: destination.count() == 1, 60, lambda: server.logged() + dovecot.logged())
            assert f"sasl_method={mechanism}, sasl_username={SMARTHOST_LOGIN}" in server.logged()


@pytest.mark.peer("postfix")
@pytest.mark.peer("dovecot")
def test_credentials_never_go_to_a_server_whose_certificate_is_not_good_for_its_name() -> None:
    with (
        DnsServer() as dns,
        Postfix("destination.test") as destination,
        Dovecot({SMARTHOST_LOGIN: SMARTHOST_PASSWORD}) as dovecot,
        _submission_server(destination, dovecot, implicit_tls=False, name="other.test") as server,
    ):
        dns.add("submission.test", "A", server.address)
        spec = {
            "host": "submission.test",
            "port": server.port,
            "auth": {"secretRef": {"name": "hop-login"}},
            "tls": {"caFile": "hop-ca.pem"},
        }
        with running(
            transport("hop", submission=spec),
            secret("hop-login", username=SMARTHOST_LOGIN, password=SMARTHOST_PASSWORD),
            everything_to("hop"),
            options=("--resolver", dns.endpoint),
            trust=AUTHORITY,
        ) as rail:
            send(rail, "friend@partner.test")
            # Design 4: bad TLS of our own smarthost is a counted attempt, never a bounce.
            waiting = rail.wait_for_recipient("friend@partner.test", lambda one: "last" in one)
            assert waiting["last"]["reply"]["code"] == 0 or waiting["last"]["reply"]["code"] // 100 == 4
            assert "sasl_method" not in server.logged()
            assert destination.count() == 0
            assert rail.queued() == 1


def _port_25() -> str:
    """An address of ours where port 25 can be bound; skips where that takes rights that we lack."""
    address = loopback_address()
    with contextlib.closing(socket.socket()) as probe:
        try:
            probe.bind((address, 25))
        except OSError as error:
            pytest.skip(f"cannot listen on {address}:25 ({error}); run as root")
    return address


@contextlib.contextmanager
def _mx(dns: DnsServer, name: str) -> Iterator[NextHop]:
    """A domain whose MX is a collector on port 25."""
    with NextHop(hostname=f"mx.{name}", address=_port_25(), port=25) as sink:
        dns.add(name, "MX", f"10 mx.{name}.")
        dns.add(f"mx.{name}", "A", sink.address)
        yield sink


def _socks(proxy: SocksServer | SocksProxy, *, auth: bool) -> list[Document]:
    spec: dict[str, Any] = {
        "address": f"{proxy.address}:{proxy.port}",
        "remoteIPs": [proxy.address],
        "remoteHostname": "exit.proxy.test",
    }
    if auth:
        spec["auth"] = {"secretRef": {"name": "proxy-login"}}
    credentials = secret("proxy-login", username=SMARTHOST_LOGIN, password=SMARTHOST_PASSWORD)
    return [transport("proxied", socks=spec), everything_to("proxied"), *([credentials] if auth else [])]


@pytest.mark.parametrize("server", ["dante", "microsocks", "microsocks with credentials"])
def test_a_socks_proxy_carries_our_mail_to_the_mx(server: str) -> None:
    require_peer(server.partition(" ")[0])
    auth = server.endswith("credentials")
    with contextlib.ExitStack() as stack:
        dns = stack.enter_context(DnsServer())
        sink = stack.enter_context(_mx(dns, "partner.test"))
        if server == "dante":
            proxy = stack.enter_context(dante())
        elif auth:
            proxy = stack.enter_context(microsocks(username=SMARTHOST_LOGIN, password=SMARTHOST_PASSWORD))
        else:
            proxy = stack.enter_context(microsocks())
        rail = stack.enter_context(running(*_socks(proxy, auth=auth), options=("--resolver", dns.endpoint)))
        send(rail, "friend@partner.test")
        receipt = sink.wait_for_recipient("friend@partner.test")
        assert receipt.hello == "exit.proxy.test"  # the transport's name, not the gateway's
        assert receipt.client == proxy.address


def test_a_proxy_that_refuses_our_credentials_is_tried_again_and_bounces_nothing() -> None:
    with DnsServer() as dns, SocksProxy(username=SMARTHOST_LOGIN, password="changed since") as proxy:
        dns.add("partner.test", "MX", "10 mx.partner.test.")
        dns.add("mx.partner.test", "A", loopback_address())
        with running(*_socks(proxy, auth=True), options=("--resolver", dns.endpoint)) as rail:
            send(rail, "friend@partner.test")
            rail.wait_for_recipient("friend@partner.test", lambda one: one["attempts"] >= 1)
            wait_until(lambda: proxy.failed_logins >= 1, 60, "the proxy was asked")
            assert rail.queued() == 1


def test_without_a_transport_mail_goes_to_the_mx_of_its_domain_by_preference() -> None:
    with DnsServer() as dns, _mx(dns, "partner.test") as sink:
        dead = loopback_address()
        dns.add("partner.test", "MX", "5 dead.partner.test.")  # preferred, and nobody listens there
        dns.add("dead.partner.test", "A", dead)
        with running(options=("--resolver", dns.endpoint)) as rail:
            send(rail, "friend@partner.test")
            receipt = sink.wait_for_recipient("friend@partner.test")
            assert receipt.hello == "rail.example.org"


@pytest.mark.peer("postfix")
def test_a_domain_delivered_by_a_transport_goes_there_whatever_routes_say() -> None:
    with (
        Postfix("store.test") as store,
        NextHop() as elsewhere,
        running(
            domain("stored", "stored.example.org", by_transport("store", "Any")),
            transport("store", smtp={"host": store.address, "port": store.port}),
            transport("elsewhere", smtp={"host": elsewhere.address, "port": elsewhere.port}),
            everything_to("elsewhere"),
        ) as rail,
    ):
        send(rail, "anyone@stored.example.org")
        wait_until(lambda: store.count() == 1, 60, store.logged)
        assert len(elsewhere) == 0


@pytest.mark.peer("smtp-source")
def test_a_next_hop_that_takes_ten_messages_a_connection_gets_60_within_seconds_and_without_a_refusal() -> None:
    def mail(session: PeerSession, line: str) -> Close | None:
        begun = sum(said.startswith("MAIL") for said in session.lines)
        return Close("421 4.7.0 too many messages in this connection") if begun > 10 else None

    peer = SmtpPeer(host=loopback_address(), replies={"MAIL": mail}, keep_content=False)
    background().call(peer.__aenter__())
    try:
        hop = transport("hop", smtp={"host": peer.host, "port": peer.port}, limits={"maxConnections": 1})
        with running(hop, everything_to("hop")) as rail:
            smtp_source(*rail.mx, messages=60, sessions=6, recipient="friend@partner.test", numbered=True)
            rail.wait_until_empty(within=30)  # a first retry would be minutes later
            assert len(peer.messages) == 60
            with rail.channel("queue") as channel:
                api = admin_pb2_grpc.QueueAdminServiceStub(channel)
                history = api.ListHistory(admin_pb2.ListHistoryRequest(page_size=100), timeout=60).recipients
                sites = api.ListSites(admin_pb2.ListSitesRequest(page_size=10), timeout=60).sites
            assert [one.attempts for one in history] == [1] * 60
            assert not any(site.HasField("backoff_until") or site.last_error for site in sites)
    finally:
        background().call(peer.__aexit__())
