"""Ingress gives tickets with which clients resume their TLS sessions, and takes its own alone (TLS-11)."""

import contextlib
import ssl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testkit.ca import Authority, trusting_anybody
from testkit.conditions import wait_until
from testkit.ingress import Ingress, Talk, setup

HOST = "127.0.0.1"
LISTENERS = ["mx", "submission", "submissions"]
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
CERTIFICATE = Authority().issue("mx.home.example").pem

Start = Callable[..., Ingress]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Start]:
    """Start an ingress, stopped at the end."""
    with contextlib.ExitStack() as stack:

        def begin(certificate: bytes = CERTIFICATE) -> Ingress:
            folder = Path(tempfile.mkdtemp(dir=tmp_path))
            return stack.enter_context(Ingress(folder, setup(certificate=certificate)))

        yield begin


class Client:
    """A client with a version of TLS, and the session that it has got."""

    def __init__(self, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> None:
        self.context = trusting_anybody()
        self.context.maximum_version = version
        self.session: ssl.SSLSession | None = None
        self.certificate: bytes | None = None

    def resumes(self, ingress: Ingress, listener: str) -> bool:
        """Connect, with the session if there is one, and keep the one that comes of it."""
        first = listener == "submissions"
        with Talk((HOST, ingress.ports[listener]), greeting=not first) as talk:
            if not first:
                assert talk.codes("EHLO c", "STARTTLS")[1] == "220 2.0.0"
            talk.socket = secured = self.context.wrap_socket(talk.socket, session=self.session)
            if first:
                assert talk.reply().startswith("220 ")
            assert talk.codes("EHLO c") == ["250"]
            self.session, self.certificate = secured.session, secured.getpeercert(binary_form=True)
            return bool(secured.session_reused)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("listener", LISTENERS)
def test_a_client_resumes_its_session_also_after_a_change_of_the_configuration_TLS_11a(
    run: Start, listener: str, version: ssl.TLSVersion
) -> None:
    ingress = run()
    client = Client(version)
    assert not client.resumes(ingress, listener)
    assert client.resumes(ingress, listener)
    changed = setup(certificate=CERTIFICATE, captive=True)  # of the mx alone, and the same certificate
    ingress.publish(changed)
    assert client.resumes(ingress, listener)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("listener", LISTENERS)
def test_a_ticket_ends_with_its_certificate_TLS_11b(run: Start, listener: str, version: ssl.TLSVersion) -> None:
    ingress = run()
    client = Client(version)
    client.resumes(ingress, listener)
    assert client.resumes(ingress, listener)
    before = client.certificate
    ingress.publish(setup(certificate=Authority().issue("mx.home.example").pem))

    def replaced() -> bool:
        stranger = Client()
        stranger.resumes(ingress, listener)
        return stranger.certificate != before

    wait_until(replaced, 30, "the other certificate is served")
    # A login that is bound to the certificate would fail if one end meant this one and the other end the last.
    assert not client.resumes(ingress, listener)
    assert client.certificate != before
    assert client.resumes(ingress, listener)


def test_a_session_of_another_replica_makes_a_full_handshake_and_no_failure_TLS_11c(run: Start) -> None:
    one, other = run(), run()
    client = Client()
    assert not client.resumes(one, "mx")
    assert client.resumes(one, "mx")
    assert not client.resumes(other, "mx")
    assert client.resumes(other, "mx")


def test_where_tls_comes_first_and_no_certificate_serves_clients_are_turned_away_until_one_does(run: Start) -> None:
    ingress = run(b"no certificate")
    for _ in range(3):
        with Talk((HOST, ingress.ports["submissions"]), greeting=False) as talk:
            assert talk.ended()
    ingress.publish(setup(certificate=CERTIFICATE))
    client = Client()
    client.resumes(ingress, "submissions")
    assert client.certificate is not None
