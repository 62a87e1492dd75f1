"""What a server session says: replies that never vary, encoded once, and what EHLO lists (RFC 5321 4.2, RFC 2034)."""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from mailrail.core.smtp.events import ListenerOptions
from mailrail.core.smtp.reply import Reply

PLAINTEXT_MECHANISMS: Final = frozenset({"PLAIN", "LOGIN"})
"""Mechanisms that hand over the password: only inside TLS (AUTH-01)."""


def say(code: int, enhanced: str | None, text: str) -> bytes:
    """A reply of one line, encoded. All but 3yz, the greeting and the answers to EHLO and HELO say an enhanced code
    (SIN-21); all are ASCII (EXT-12a)."""
    return Reply.of(code, enhanced, text).encode()


OK = say(250, "2.0.0", "ok")
SENDER_OK = say(250, "2.1.0", "sender ok")
RECIPIENT_OK = say(250, "2.1.5", "recipient ok")
CONTENT_OK = say(250, "2.6.0", "message accepted")
GO_AHEAD = say(354, None, "end data with <CRLF>.<CRLF>")
TLS_GO_AHEAD = say(220, "2.0.0", "ready to start TLS")
GOODBYE = say(221, "2.0.0", "goodbye")
HELP = say(214, "2.0.0", "see RFC 5321")
VERIFY = say(252, "2.0.0", "cannot verify a user, but mail to it can be tried")
AUTHENTICATED = say(235, "2.7.0", "authenticated")

UNKNOWN = say(500, "5.5.1", "unknown command")
NOT_HTTP = say(500, "5.5.1", "this is not a web server")
LINE_TOO_LONG = say(500, "5.5.2", "line too long")
AUTH_LINE_TOO_LONG = say(500, "5.5.6", "authentication line too long")
BARE_LINE_END = say(500, "5.5.2", "bare CR or LF; lines must end with CRLF")
NO_ARGUMENT = say(501, "5.5.4", "this command does not take an argument")
ARGUMENT = say(501, "5.5.4", "this command needs an argument")
BAD_HELLO = say(501, "5.5.4", "give the name or address literal of your host")
BAD_MAIL = say(501, "5.5.4", "syntax is MAIL FROM:<address>")
BAD_RCPT = say(501, "5.5.4", "syntax is RCPT TO:<address>")
BAD_BDAT = say(501, "5.5.4", "syntax is BDAT octets [LAST]")
BAD_BASE64 = say(501, "5.5.2", "not base64")
CANCELLED = say(501, "5.7.0", "authentication cancelled")
OFF = say(502, "5.5.1", "command not implemented")
HELLO_FIRST = say(503, "5.5.1", "send EHLO first")
NESTED_MAIL = say(503, "5.5.1", "a transaction is already open")
MAIL_FIRST = say(503, "5.5.1", "send MAIL first")
CHUNKS_BEGUN = say(503, "5.5.1", "the message is being sent with BDAT")
BINARY_NEEDS_BDAT = say(503, "5.5.1", "BODY=BINARYMIME needs BDAT")
NO_RECIPIENT = say(554, "5.5.1", "no valid recipients")
TLS_ALREADY = say(503, "5.5.1", "TLS is already active")
TLS_UNAVAILABLE = say(454, "4.7.0", "TLS is not available now")
TLS_NEEDED = say(530, "5.7.0", "send STARTTLS first")
REQUIRETLS_NEEDS_TLS = say(530, "5.7.10", "REQUIRETLS is taken inside TLS alone; begin TLS first")
AUTH_NEEDED = say(530, "5.7.0", "authentication required")
AUTH_ALREADY = say(503, "5.5.1", "already authenticated")
AUTH_IN_TRANSACTION = say(503, "5.5.1", "AUTH is not permitted during a transaction")
AUTH_NEEDS_TLS = say(538, "5.7.11", "this mechanism needs TLS")
AUTH_UNKNOWN = say(504, "5.5.4", "mechanism not offered")
TOO_MANY_RECIPIENTS = say(452, "4.5.3", "too many recipients; send the others in another transaction")
TOO_MANY_ERRORS = say(421, "4.7.0", "too many errors")
TIMED_OUT = say(421, "4.4.2", "timeout, closing connection")
DISPLACED = say(421, "4.3.2", "too many connections, and this one is idle; try again later")
SHUTTING_DOWN = say(421, "4.3.2", "shutting down; try again shortly")
BARE_CONTENT = say(550, "5.6.0", "the message has a bare CR or LF; lines must end with CRLF")
CHUNK_OK = say(250, "2.0.0", "chunk received")


def too_big(limit: int) -> Reply:
    """What is said of a message above `limit` octets (EXT-01)."""
    return Reply.of(552, "5.3.4", f"the message exceeds the limit of {limit} octets")


# --- what EHLO lists ----------------------------------------------------------------------------------------------


def offered_mechanisms(options: ListenerOptions, *, tls: bool) -> tuple[str, ...]:
    """The AUTH mechanisms that may be used now, in order."""
    if tls:
        return options.mechanisms
    return tuple(name for name in options.mechanisms if name not in PLAINTEXT_MECHANISMS and not name.endswith("-PLUS"))


def _offer(options: ListenerOptions, tls: bool, logged_in: bool, now: int) -> list[str]:
    """The extensions that a client may use now (RFC 5321 4.1.1.1); a new list after TLS and after a login (AUTH-07)."""
    offer = ["PIPELINING", f"SIZE {options.size_limit}"]
    if options.starttls and options.starttls_ready and not tls:
        offer.append("STARTTLS")
    mechanisms = offered_mechanisms(options, tls=tls)
    if mechanisms and not logged_in:
        offer.append("AUTH " + " ".join(mechanisms))
    offer += ["ENHANCEDSTATUSCODES", "8BITMIME", "CHUNKING", "BINARYMIME", "SMTPUTF8", "DSN"]
    if tls and options.offer_requiretls:
        # Whatever the routes are (RTLS-02): a message whose route cannot honour it comes back. In clear text an
        # attacker could have put it there, or taken it out (RTLS-01).
        offer.append("REQUIRETLS")
    offer.append(f"LIMITS RCPTMAX={options.recipient_limit}")  # OPT-07
    if options.submission:
        until = datetime.fromtimestamp(now, UTC) + timedelta(seconds=options.longest_hold)
        offer.append(f"FUTURERELEASE {options.longest_hold} {until:%Y-%m-%dT%H:%M:%SZ}")
    return offer


@lru_cache(maxsize=64)
def greeting(hostname: str) -> bytes:
    """The first words of a server."""
    return f"220 {hostname} ESMTP Mailrail\r\n".encode()


@lru_cache(maxsize=64)
def hello_reply(options: ListenerOptions, tls: bool, logged_in: bool, now: int) -> bytes:
    """The reply to EHLO; `now` in Unix seconds, rounded, since FUTURERELEASE tells a date."""
    return Reply(250, (options.hostname, *_offer(options, tls, logged_in, now))).encode()
