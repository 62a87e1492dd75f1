"""What is answered to a request for a policy: pure, from the head of the request and the policies (RFC 9110, 9112).

One request a connection, without a body, so nothing that follows the head is ever read, and no second request can hide
in it. Whoever asks for a policy compares the name in the certificate, so the host alone says whose policy it is.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from mailrail.core.mtasts.policy import Policy
from mailrail.core.mtasts.record import POLICY_LABEL, POLICY_PATH

HEAD_LIMIT: Final = 8192
"""Octets of the head of a request."""
_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) ([!-~]{1,4096}) HTTP/1\.[01]")
_TARGET = re.compile(r"(?:https?://([^/?#]*))?([^?]*)(?:\?.*)?", re.IGNORECASE)  # origin-form and absolute-form
_HOST = re.compile(r"([a-z0-9_.-]{1,254})(?::[0-9]{1,5})?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PolicyAnswer:
    """The octets of an answer, and what it is counted as (metrics.REQUESTS)."""

    result: str
    octets: bytes


def answer(head: bytes, policies: Mapping[str, Policy] | None, now: float) -> PolicyAnswer:
    """The answer to a request; `head` ends before the empty line. `policies`: by domain; None: none are known yet.
    `now`: seconds since the epoch."""
    made = _answer(head, policies)
    # RFC 9110 6.6.1: who has a clock says the time.
    dated = f"\r\nDate: {formatdate(now, usegmt=True)}\r\n".encode()
    return PolicyAnswer(made.result, made.octets.replace(b"\r\n", dated, 1))


def _answer(head: bytes, policies: Mapping[str, Policy] | None) -> PolicyAnswer:
    lines = head.split(b"\r\n")
    asked = _REQUEST_LINE.fullmatch(lines[0])
    if asked is None:
        return _text("bad_request", HTTPStatus.BAD_REQUEST, "this is no request of HTTP/1.1\n")
    method, target = asked[1], _TARGET.fullmatch(asked[2].decode("ascii"))
    body = method != b"HEAD"
    host = _host(lines[1:])
    if host is not None and target is not None and target[1] is not None:
        host = _name(target[1])  # RFC 9112 3.2.2: then the field does not count, but must be there
    if host is None:
        return _text("bad_request", HTTPStatus.BAD_REQUEST, "one field Host must name the policy host\n", body=body)
    if target is None or target[2] != POLICY_PATH:
        return _text("unknown_path", HTTPStatus.NOT_FOUND, f"only {POLICY_PATH} is served here\n", body=body)
    if method not in (b"GET", b"HEAD"):
        said = "a policy can only be read\n"
        return _text("bad_method", HTTPStatus.METHOD_NOT_ALLOWED, said, "Allow: GET, HEAD", body=body)
    if policies is None:
        said = "there is no configuration yet\n"
        return _text("not_ready", HTTPStatus.SERVICE_UNAVAILABLE, said, "Retry-After: 5", body=body)
    label, _, domain = host.partition(".")
    policy = policies.get(domain) if label == POLICY_LABEL else None
    if policy is None:
        return _text("unknown_host", HTTPStatus.NOT_FOUND, "there is no MTA-STS policy under this name\n", body=body)
    # STS-23a: text/plain with CRLF. What a cache between us and a sender kept would be an old policy.
    return _text("served", HTTPStatus.OK, str(policy), "Cache-Control: no-store", body=body)


def _host(fields: list[bytes]) -> str | None:
    """The name in the one field Host, in small letters, without port and final dot."""
    found = [value for name, _, value in (field.partition(b":") for field in fields) if name.lower() == b"host"]
    return _name(found[0].decode("latin-1").strip(" \t")) if len(found) == 1 else None


def _name(host: str) -> str | None:
    match = _HOST.fullmatch(host)
    return match[1].lower().removesuffix(".") if match is not None else None


def _text(result: str, status: HTTPStatus, said: str, *fields: str, body: bool = True) -> PolicyAnswer:
    octets = said.encode()
    head = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        "Content-Type: text/plain",
        f"Content-Length: {len(octets)}",
        "Connection: close",
        "X-Content-Type-Options: nosniff",
        *fields,
    ]
    return PolicyAnswer(result, "".join(f"{line}\r\n" for line in (*head, "")).encode() + (octets if body else b""))
