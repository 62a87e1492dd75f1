"""What is answered to a request for a policy: pure, from the head of the request and the policies (RFC 9110, 9112).

One request a connection, without a body, so nothing that follows the head is ever read, and no second request can hide
in it. Whoever asks for a policy compares the name in the certificate, so the host alone says whose policy it is.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from mailrail.core.mtasts.policy import Policy
from mailrail.core.mtasts.record import POLICY_LABEL, POLICY_PATH

HEAD_LIMIT: Final = 8192
"""Octets of the head of a request."""
_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) ([!-~]{1,4096}) HTTP/1\.[01]")
_ORIGIN = re.compile(r"https?://[^/?#]*", re.IGNORECASE)
_HOST = re.compile(r"([a-z0-9_.-]{1,254})(?::[0-9]{1,5})?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PolicyAnswer:
    """The octets of an answer, and what it is counted as (metrics.REQUESTS)."""

    result: str
    octets: bytes


def answer(head: bytes, policies: Mapping[str, Policy] | None) -> PolicyAnswer:
    """The answer to a request; `head` ends before the empty line. `policies`: by domain; None: none are known yet."""
    lines = head.split(b"\r\n")
    asked = _REQUEST_LINE.fullmatch(lines[0])
    if asked is None:
        return _text("bad_request", HTTPStatus.BAD_REQUEST, "this is no request of HTTP/1.1\n")
    method, target = asked[1], asked[2].decode("ascii")
    body = method != b"HEAD"
    host = _host(lines[1:])
    if host is None:
        return _text("bad_request", HTTPStatus.BAD_REQUEST, "one field Host must name the policy host\n", body=body)
    if _ORIGIN.sub("", target, count=1).partition("?")[0] != POLICY_PATH:
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
    if len(found) != 1:
        return None
    match = _HOST.fullmatch(found[0].decode("latin-1").strip(" \t"))
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
