"""How one message is put to one server: the lines of MAIL and RCPT, the form of its content, and what cannot be done.

The same message goes out differently to different servers: with BODY=8BITMIME here, re-encoded there (EXT-08,
SOUT-18a); with DSN parameters where the hop knows them, none invented and none sent elsewhere (DSN-04, DSN-05);
SMTPUTF8 only where an address or the header needs it (EXT-11); REQUIRETLS where core/tlspolicy says that it must be
sent, and nothing to who does not offer it (RTLS-18); SIZE where it is offered, and no transaction at all where the
declared limit is smaller (RFC 1870 6.1). What a server cannot take is refused per recipient, so that other hosts can be
tried first (reference H43).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from mailrail.core.smtp.address import AddressError, parse_address
from mailrail.core.smtp.answer import Answer, Stage, Trouble
from mailrail.core.smtp.capabilities import Capabilities
from mailrail.core.smtp.parameters import BodyType
from mailrail.core.smtp.stuffing import has_bare_line_ends

BDAT_ABOVE = 65536
"""Octets above which content goes by BDAT where CHUNKING is offered: no dot-stuffing of large bodies. Small content
goes by DATA, whose 354 is where a server refuses early."""

_SIGNATURE = re.compile(rb"(?:\A|\n)dkim-signature[ \t]*:", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f<>]")


@dataclass(slots=True)
class EnvelopeRecipient:
    """One recipient with its DSN parameters (RFC 3461), as received."""

    address: str
    notify: tuple[str, ...] = ()
    orcpt: str | None = None


@dataclass(slots=True)
class Envelope:
    """What MAIL says. Texts are in wire form: xtext stays xtext."""

    sender: str
    """Without angle brackets; empty = null reverse-path."""
    body: BodyType | None = None
    smtputf8: bool = False
    ret: str | None = None
    envid: str | None = None
    auth: str | None = None


@dataclass(slots=True)
class ContentFacts:
    """What matters about the content. For content that streams, the flags of the envelope stand in."""

    size: int
    """Octets as they will be sent, before dot-stuffing; an estimate for what is re-encoded on the way."""
    eight_bit: bool
    binary: bool
    """NUL, or a CR or LF alone: not fit for DATA as it is (SOUT-12a)."""
    header_eight_bit: bool


class Form(StrEnum):
    """What is done to the content."""

    AS_IS = "as-is"
    EIGHT_BIT = "8bit"  # binary parts become base64, text may keep its octets
    SEVEN_BIT = "7bit"  # 8-bit parts become quoted-printable or base64


_AS_IS = Form.AS_IS  # reading a member off its enum costs more than what is asked of it for each message


def inspect(
    prefix: bytes, body: bytes = b"", *, declared: BodyType | None = None, whole_lines: bool = False
) -> ContentFacts:
    """The facts about content that is at hand. `whole_lines`: somebody saw that its lines are (`LineFacts.whole`)."""
    binary = declared is BodyType.BINARY_MIME
    if whole_lines and prefix.isascii() and body.isascii():
        return ContentFacts(len(prefix) + len(body), False, binary, False)
    content = prefix + body
    binary = binary or (not whole_lines and (b"\0" in content or has_bare_line_ends(content)))
    if content.isascii():
        return ContentFacts(len(content), False, binary, False)
    return ContentFacts(len(content), True, binary, not content[: header_end(content)].isascii())


def header_end(content: bytes) -> int:
    """Octets of the header, without the empty line that ends it."""
    end = content.find(b"\r\n\r\n")
    return len(content) if end < 0 else end


def carries_signature(header: bytes) -> bool:
    """Whether a header has a DKIM-Signature, which re-encoding would break (SOUT-18b)."""
    return _SIGNATURE.search(header) is not None


def form_for(content: ContentFacts, capabilities: Capabilities) -> Form:
    """What this server can take of this content without loss (EXT-08)."""
    if content.binary:
        if capabilities.binary_mime:
            return Form.AS_IS
        return Form.EIGHT_BIT if capabilities.eight_bit_mime else Form.SEVEN_BIT
    if content.eight_bit and not capabilities.eight_bit_mime:
        return Form.SEVEN_BIT
    return _AS_IS


@dataclass(slots=True)
class EnvelopePlan:
    """One transaction to be. `indexes[i]` says which recipient `rcpt_lines[i]` is for."""

    mail_line: bytes
    rcpt_lines: tuple[bytes, ...]
    indexes: tuple[int, ...]
    bdat: bool
    dsn: bool
    """DSN parameters were handed to a hop that knows them."""
    refused: tuple[tuple[int, Answer], ...] = ()
    """Recipients that this server cannot take, and why. They may all be here: then there is no transaction."""


def plan(
    envelope: Envelope,
    recipients: Sequence[tuple[int, EnvelopeRecipient]],
    content: ContentFacts,
    capabilities: Capabilities,
    *,
    form: Form,
    authenticated: bool = False,
    require_tls: bool = False,
) -> EnvelopePlan:
    """The lines for these recipients, given as (index, recipient), at most `capabilities.max_recipients` of them.

    `content.size` is the size of what is sent, after re-encoding. `authenticated`: AUTH= may be passed on (RFC 4954 5).
    `require_tls`: the message goes with REQUIRETLS, and only to a server that offers it (`TlsDecision.require_tls`).
    """
    limit = capabilities.size
    if limit is not None and content.size > limit:
        detail = f"the message has {content.size} octets and the server takes {limit}"
        return _none(recipients, Answer(Stage.PLAN, None, Trouble.TOO_LARGE, detail))
    if require_tls and not capabilities.require_tls:  # RTLS-14, RTLS-18
        detail = "the message requires TLS and the server does not offer REQUIRETLS"
        return _none(recipients, Answer(Stage.PLAN, None, Trouble.REQUIRETLS, detail))
    sender = envelope.sender
    header_utf8 = envelope.smtputf8 and content.header_eight_bit
    sender_utf8 = not sender.isascii()
    if sender_utf8 and not capabilities.smtputf8:
        detail = "the sender's address has UTF-8 and the server does not offer SMTPUTF8"
        return _none(recipients, Answer(Stage.PLAN, None, Trouble.NEEDS_SMTPUTF8, detail))
    harmful_sender = _harmful(sender)
    indexes: list[int] = []
    refused: list[tuple[int, Answer]] = []
    utf8 = header_utf8 or sender_utf8
    taken: list[EnvelopeRecipient] = []
    for index, recipient in recipients:
        if not recipient.address.isascii():
            if not capabilities.smtputf8:
                detail = "the recipient's address has UTF-8 and the server does not offer SMTPUTF8"
                refused.append((index, Answer(Stage.PLAN, None, Trouble.NEEDS_SMTPUTF8, detail)))
                continue
            utf8 = True
        elif header_utf8 and not capabilities.smtputf8:
            # After the address: an address that cannot be used is the reason that another header would not mend.
            detail = "the header has UTF-8 and the server does not offer SMTPUTF8"
            refused.append((index, Answer(Stage.PLAN, None, Trouble.UTF8_HEADER, detail)))
            continue
        if harmful_sender or _harmful(recipient.address):
            detail = "an address with control characters cannot be sent"
            refused.append((index, Answer(Stage.PLAN, None, Trouble.UNCONVERTIBLE, detail)))
            continue
        indexes.append(index)
        taken.append(recipient)
    lines = [_rcpt(recipient, dsn=capabilities.dsn, utf8=utf8) for recipient in taken]
    if not lines:
        return EnvelopePlan(b"", (), (), False, False, tuple(refused))
    binary = content.binary and form is _AS_IS
    return EnvelopePlan(
        _mail(envelope, content, capabilities, form, utf8, authenticated, require_tls),
        tuple(lines),
        tuple(indexes),
        binary or (capabilities.chunking and content.size > BDAT_ABOVE),
        capabilities.dsn,
        tuple(refused),
    )


def _harmful(address: str) -> bool:
    """Whether an address could end its path or become a command. Inside a quoted local part `<` and `>` are letters
    like any other (RFC 5321 4.1.2)."""
    if _CONTROL.search(address) is None:
        return False
    try:
        parse_address(address)
    except AddressError:
        return True
    return False


def _none(recipients: Sequence[tuple[int, EnvelopeRecipient]], answer: Answer) -> EnvelopePlan:
    return EnvelopePlan(b"", (), (), False, False, tuple((index, answer) for index, _ in recipients))


def _mail(
    envelope: Envelope,
    content: ContentFacts,
    capabilities: Capabilities,
    form: Form,
    utf8: bool,
    authenticated: bool,
    require_tls: bool,
) -> bytes:
    line = f"MAIL FROM:<{envelope.sender}>"
    if capabilities.size_offered:
        line += f" SIZE={content.size}"
    if form is _AS_IS and content.binary:
        line += " BODY=BINARYMIME"
    elif capabilities.eight_bit_mime:
        if content.eight_bit and form is not Form.SEVEN_BIT:
            line += " BODY=8BITMIME"
        elif envelope.body is not None:
            line += " BODY=8BITMIME" if envelope.body is BodyType.EIGHT_BIT_MIME else ""
            line += " BODY=7BIT" if envelope.body is BodyType.SEVEN_BIT else ""
    if utf8:
        line += " SMTPUTF8"
    if require_tls:
        line += " REQUIRETLS"  # of a notification too (RTLS-19b)
    if capabilities.dsn:
        if envelope.ret is not None:
            line += f" RET={envelope.ret}"
        if envelope.envid is not None:
            line += f" ENVID={_harmless(envelope.envid)}"
    if authenticated and envelope.auth is not None and capabilities.auth:
        line += f" AUTH={_harmless(envelope.auth)}"
    return f"{line}\r\n".encode()


def _rcpt(recipient: EnvelopeRecipient, *, dsn: bool, utf8: bool) -> bytes:
    line = f"RCPT TO:<{recipient.address}>"
    if dsn:
        if recipient.notify:
            line += f" NOTIFY={','.join(recipient.notify)}"
        if recipient.orcpt is not None:
            orcpt = _harmless(recipient.orcpt)
            if not utf8 and not orcpt.isascii():
                # RFC 6533 3: the form for hops without SMTPUTF8 (DSN-27).
                orcpt = "".join(c if c.isascii() else f"\\x{{{ord(c):X}}}" for c in orcpt)
            line += f" ORCPT={orcpt}"
    return f"{line}\r\n".encode()


def _harmless(parameter: str) -> str:
    # Ingress checked these when they came in; a line end that slipped through some other way must not become a command.
    return re.sub(r"[\x00-\x20\x7f]", "", parameter)
