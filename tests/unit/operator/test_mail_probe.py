"""Which gateways give the mail probe a way in (decision 20)."""

from typing import Any

import pytest

from mailrail.core.resources import API_VERSION, canonical, read
from mailrail_operator.mail_probe import has_mx_listener
from mailrail_operator.model import Observed

PROXIED = {"proxyProtocol": {"trustedCIDRs": ["192.0.2.0/24"]}}
TLS = {"tls": {"certificateSecretRef": {"name": "tls"}}}


def gateway(*listeners: dict[str, Any]) -> Observed:
    spec = {
        "hostname": "mx1.example.org",
        "listeners": list(listeners),
        "postmaster": {"accountRef": {"name": "postmaster"}},
    }
    return observed("MailGateway", spec)


def observed(kind: str, spec: dict[str, Any]) -> Observed:
    metadata: dict[str, Any] = {"name": "a", "namespace": "mail", "uid": "u", "generation": 1}
    document = {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
    read(canonical(document), kind)  # the test speaks of what the API server takes
    return Observed.of(document)


MX: dict[str, Any] = {"name": "mx", "protocol": "MX", "port": 25}
SUBMISSION: dict[str, Any] = {"name": "submission", "protocol": "Submission", "port": 587, **TLS}


@pytest.mark.parametrize(
    ("listeners", "wanted"),
    [((MX,), True), ((SUBMISSION, MX), True), ((SUBMISSION,), False), ((MX | PROXIED,), False)],
)
def test_a_probe_is_sent_where_an_mx_listener_takes_mail_without_a_proxy(
    listeners: tuple[dict[str, Any], ...], wanted: bool
) -> None:
    assert has_mx_listener([gateway(*listeners)]) is wanted


def test_without_a_gateway_none_is_sent() -> None:
    assert not has_mx_listener([])
    assert not has_mx_listener([observed("MailTransport", {"direct": {}})])
