"""The testkit's CA issues what it says: valid, expired and premature certificates, trusted by whom trusts it alone."""

import ssl

import pytest

from testkit.ca import Authority, Certificate


def handshake(server: Certificate, client: ssl.SSLContext, name: str) -> None:
    """A TLS handshake in memory; raises ssl.SSLError where the client refuses."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=name)
    theirs = server.server_context().wrap_bio(to_server, to_client, server_side=True)
    for _ in range(10):
        done = 0
        for side in (ours, theirs):
            try:
                side.do_handshake()
                done += 1
            except ssl.SSLWantReadError:
                pass
        if done == 2:
            return
    raise AssertionError("the handshake did not finish")


def test_a_valid_certificate_convinces_who_trusts_the_authority_and_nobody_else() -> None:
    authority, stranger = Authority(), Authority()
    certificate = authority.issue("mx.example.org", "127.9.8.7")
    handshake(certificate, authority.client_context(), "mx.example.org")
    handshake(certificate, authority.client_context(), "127.9.8.7")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"self-signed certificate|unable to get local issuer"):
        handshake(certificate, stranger.client_context(), "mx.example.org")


def test_wrong_names_and_wrong_times_are_refused() -> None:
    authority = Authority()
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(authority.issue("other.example.org"), authority.client_context(), "mx.example.org")
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(authority.issue_expired("mx.example.org"), authority.client_context(), "mx.example.org")
    with pytest.raises(ssl.SSLCertVerificationError, match="not yet valid"):
        handshake(authority.issue_premature("mx.example.org"), authority.client_context(), "mx.example.org")
