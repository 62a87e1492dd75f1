"""What a check of content is told, and what it may answer."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from mailrail.core.dkim.sign import MessageSigner
from mailrail.core.dkim.signers import Signers
from mailrail.core.message.content_reader import ContentFault
from mailrail.core.message.header import Field, Header
from mailrail.core.message_authentication.content import ContentHasher
from mailrail.core.message_authentication.verdict import AuthenticationRules, ClientIdentity, MessageVerdict
from mailrail.core.revision.revision import Account
from mailrail.core.route.recipients import Directory
from mailrail.core.smtp.address import Address
from mailrail.core.smtp.reply import Reply
from mailrail.core.tlspolicy.decision import Requirement
from mailrail_ingress.ports import Authenticator
from mailrail_ingress.recipients import AcceptedRecipient

_NO_HEADER: Final = Header(b"")


@dataclass(slots=True)
class SenderEvidence:
    """By what it is judged who sent a message."""

    authenticator: Authenticator
    client: ClientIdentity
    rules: AuthenticationRules
    by_list: bool
    """A list of public suffixes takes the place of the tree walk."""
    hasher: ContentHasher | None = None
    """Of its content, from the header on."""


@dataclass(slots=True)
class CheckedMessage:
    """A message, as far as it has come, and what is known of its transaction."""

    id: bytes
    sender: Address | None
    recipients: Sequence[AcceptedRecipient]
    account: Account | None
    """Who submits it; None: a stranger."""
    directory: Directory
    hostname: str
    """Of the gateway."""
    authserv_ids: Collection[str]
    """Under which all gateways write Authentication-Results; see `core.authres.foreign.authserv_ids`."""
    now: float
    """Unix time."""
    binary: bool = False
    """BODY=BINARYMIME: its body is not made of lines."""
    fault: ContentFault | None = None
    """What the reader of its content found."""
    header: Header = _NO_HEADER
    message_id: str | None = None
    """Of the header, or of the field that is added."""
    subject: str | None = None
    """Of the header, for people."""
    edited: bool = False
    """A check has changed the header."""
    signers: Signers | None = None
    """Who signs what accounts submit."""
    signer: MessageSigner | None = None
    """Who signs this message; None: nobody."""
    requirement: Requirement = Requirement.DEFAULT
    """What it demands of TLS on its way: from MAIL, or from its header."""
    evidence: SenderEvidence | None = None
    """None: nobody asks who sent it."""
    verdict: MessageVerdict | None = None
    """What was found about that."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """The message is not taken."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class Edit:
    """The message is taken, changed."""

    changes: Mapping[Field, bytes] = field(default_factory=dict)
    """Fields of the header and what takes their place; no octets: nothing does."""
    added: bytes = b""
    """Fields: below the header, or above it where the check is at the end of the content."""


@dataclass(frozen=True, slots=True)
class Pending:
    """The check waits for something. `start` is called once, and calls what it is given once, with the verdict."""

    start: "Callable[[Callable[[Refuse | Edit | None], None]], None]"


Verdict = Refuse | Edit | Pending | None
"""None: the check accepts the message."""
