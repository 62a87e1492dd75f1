"""The real peers start, do what they are there for, and are gone afterwards: the scenarios rest on it."""

import base64
import contextlib
import http.server
import re
import smtplib
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from testkit.ca import Authority
from testkit.conditions import wait_until
from testkit.peers import PEERS, missing
from testkit.peers.dovecot import Dovecot
from testkit.peers.load import smtp_sink, smtp_source
from testkit.peers.postfix import Postfix
from testkit.peers.prometheus import Prometheus
from testkit.peers.socks_servers import SocksServer, dante, microsocks
from testkit.peers.swaks import AUTH_FAILED, swaks

MESSAGE = "From: a@example.org\r\nTo: b@example.net\r\nSubject: hello\r\n\r\nbody\r\n"


@pytest.mark.peer("postfix")
def test_a_smarthost_hands_on_what_a_destination_keeps_and_a_refused_recipient_is_refused() -> None:
    with (
        Postfix("destination.test", refuse={"nobody@example.net": "550 5.1.1 nobody here"}) as destination,
        Postfix("smarthost.test", relay_to=(destination.address, destination.port)) as smarthost,
    ):
        with smtplib.SMTP(smarthost.address, smarthost.port) as client:
            client.sendmail("a@example.org", ["b@example.net"], MESSAGE)
        with (
            smtplib.SMTP(destination.address, destination.port) as client,
            pytest.raises(smtplib.SMTPRecipientsRefused, match="nobody here"),
        ):
            client.sendmail("a@example.org", ["nobody@example.net"], MESSAGE)
        wait_until(lambda: destination.count() == 1, 60, destination.logged)
        message = destination.messages()[0]
        assert message["Subject"] == "hello"
        received = [re.search(r"by (\S+) \(Postfix\)", line) for line in message.get_all("Received", [])]
        assert [found and found[1] for found in received] == ["destination.test", "smarthost.test"]
        folder = destination.folder
    assert not folder.exists()


@pytest.mark.peer("postfix")
@pytest.mark.peer("dovecot")
@pytest.mark.peer("swaks")
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_a_submission_server_takes_mail_only_over_tls_from_who_proves_to_be_someone(mechanism: str) -> None:
    authority = Authority()
    with (
        Postfix("destination.test") as destination,
        Dovecot({"rail": "s3cret"}) as dovecot,
        Postfix(
            "submission.test",
            relay_to=(destination.address, destination.port),
            sasl=dovecot.auth,
            certificate=authority.issue("submission.test"),
        ) as server,
    ):
        where = (server.address, server.port)
        login = ("--auth", mechanism, "--auth-user", "rail", "--to", "b@example.net", "--from", "a@example.org")
        plain = swaks(*where, "--to", "b@example.net", "--from", "a@example.org")
        assert "530 5.7.0 Must issue a STARTTLS command first" in plain.replies
        assert swaks(*where, *login, "--auth-password", "wrong", "--tls").status == AUTH_FAILED
        right = swaks(*where, *login, "--auth-password", "s3cret", "--tls")
        assert right.accepted, right.text
        assert "SCRAM-SHA-256" in right.text
        wait_until(lambda: destination.count() == 1, 60, destination.logged)


@pytest.mark.peer("dovecot")
@pytest.mark.peer("smtp-sink")
def test_dovecots_own_submission_server_serves_both_ports() -> None:
    authority = Authority()
    with (
        smtp_sink() as sink,
        Dovecot(
            {"rail": "s3cret"}, certificate=authority.issue("dovecot.test"), relay_to=(sink.address, sink.port)
        ) as dovecot,
    ):
        tls = authority.client_context()
        tls.check_hostname = False
        with smtplib.SMTP(*dovecot.submission) as client:
            client.starttls(context=tls)
            client.ehlo()
            assert "SCRAM-SHA-256" in client.esmtp_features["auth"]
            client.login("rail", "s3cret")
            client.sendmail("a@example.org", ["b@example.net"], MESSAGE)
        with smtplib.SMTP_SSL(*dovecot.submissions, context=tls) as client:
            client.ehlo()
            code, _ = client.docmd("AUTH", "PLAIN " + base64.b64encode(b"\0rail\0wrong").decode())
            assert code == 535


def _through(proxy: SocksServer, host: str, port: int, credentials: tuple[str, str] | None) -> bytes:
    """What the target says first, or what the proxy refuses with: written out, to be independent of any client."""
    with contextlib.closing(socket.create_connection((proxy.address, proxy.port), timeout=10)) as sock:
        stream = sock.makefile("rb")
        sock.sendall(b"\x05\x01\x02" if credentials else b"\x05\x01\x00")
        version, method = stream.read(2)
        assert version == 5
        if method == 0xFF:
            return b"no acceptable method"
        if credentials:
            name, password = (part.encode() for part in credentials)
            sock.sendall(bytes((1, len(name))) + name + bytes((len(password),)) + password)
            if stream.read(2)[1] != 0:
                return b"wrong credentials"
        sock.sendall(b"\x05\x01\x00\x01" + socket.inet_aton(host) + struct.pack("!H", port))
        reply = stream.read(10)
        if reply[1] != 0:
            return b"refused"
        return stream.readline()


@pytest.mark.peer("dante")
@pytest.mark.peer("smtp-sink")
def test_dante_relays_on_loopback_and_nowhere_else() -> None:
    with smtp_sink() as sink, dante() as proxy:
        assert _through(proxy, sink.address, sink.port, None).startswith(b"220 ")
        assert _through(proxy, "192.0.2.1", 25, None) == b"refused"


@pytest.mark.peer("microsocks")
@pytest.mark.peer("smtp-sink")
def test_microsocks_demands_credentials_if_it_was_given_any() -> None:
    with smtp_sink() as sink, microsocks() as free, microsocks(username="rail", password="s3cret") as guarded:
        assert _through(free, sink.address, sink.port, None).startswith(b"220 ")
        assert _through(guarded, sink.address, sink.port, ("rail", "s3cret")).startswith(b"220 ")
        assert _through(guarded, sink.address, sink.port, ("rail", "wrong")) == b"wrong credentials"
        assert _through(guarded, sink.address, sink.port, None) == b"no acceptable method"


@pytest.mark.peer("smtp-source")
@pytest.mark.peer("smtp-sink")
def test_source_and_sink_move_mail_with_and_without_reuse() -> None:
    with smtp_sink("-c") as sink:
        smtp_source(sink.address, sink.port, messages=50, sessions=5)
        smtp_source(sink.address, sink.port, messages=50, sessions=5, reuse=True)


@contextlib.contextmanager
def _exporter() -> Iterator[str]:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(b"mailrail_test_total 42\n")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.peer("prometheus")
def test_prometheus_scrapes_and_answers() -> None:
    with _exporter() as target, Prometheus({"test": target}, every=0.2) as prometheus:
        prometheus.wait_until_scraped()
        wait_until(lambda: prometheus.value("mailrail_test_total") == 42, 60)


def test_a_missing_peer_skips_for_people_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    from testkit import peers

    monkeypatch.setitem(PEERS, "nothing", peers.Peer(("no-such-program",), "no-package"))
    assert missing("nothing") == "needs no-such-program: apt-get install no-package"
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install no-package"):
        peers.require_peer("nothing")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install no-package"):
        peers.require_peer("nothing")
