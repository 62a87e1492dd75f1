"""What is known of a message from MAIL to the answer after its content, and whom it goes to."""

from dataclasses import dataclass

from mailrail.core.message.content_reader import ContentReader
from mailrail.core.revision.revision import ObjectRef
from mailrail.core.route.recipients import (
    Destination,
    Resolution,
    passed_on,
)
from mailrail.core.smtp.address import Address
from mailrail.core.smtp.parameters import MailParameters, RcptParameters
from mailrail.core.smtp.reply import Reply
from mailrail_ingress.ports import (
    ExpandedRecipient,
    Upload,
)


@dataclass(slots=True)
class AcceptedRecipient:
    """A recipient that was accepted, with what it stands for."""

    address: Address
    parameters: RcptParameters
    resolution: Resolution


class MailTransaction:
    """From MAIL to the answer after the content."""

    __slots__ = (
        "charged",
        "copies",
        "ended",
        "given",
        "id",
        "message_id",
        "name",
        "parameters",
        "parts",
        "reader",
        "refusal",
        "sender",
        "stored",
        "subject",
        "upload",
        "uploaded",
        "uploader",
    )

    def __init__(self, sender: Address | None, parameters: MailParameters) -> None:
        self.sender = sender
        self.parameters = parameters
        self.given: list[AcceptedRecipient] = []
        self.copies = 0
        self.id = b""
        self.name = ""  # the id in hexadecimal
        self.reader: ContentReader | None = None
        self.parts: list[bytes] = []
        self.stored = 0  # octets in `parts`
        self.charged = 0  # octets that the budget knows of
        self.upload: Upload | None = None
        self.uploaded = 0  # octets that the queue was given
        self.uploader = ""  # whose they are (ACC-07)
        self.refusal: Reply | None = None
        self.message_id: str | None = None
        self.subject: str | None = None
        self.ended = 0.0

    def drop(self) -> None:
        """Nothing of it will be committed."""
        self.parts.clear()
        self.stored = 0
        if self.reader is not None:
            self.reader.drop()
        if self.upload is not None:
            self.upload.abort()
            self.upload = None


def ends_here(given: list[AcceptedRecipient]) -> bool:
    """Whether a built-in mailbox is among the destinations."""
    return any(destination.account is not None for one in given for destination in one.resolution.destinations)


def recipients_of(given: list[AcceptedRecipient]) -> list[ExpandedRecipient]:
    """Every destination once; the first mention decides about its DSN parameters."""
    if len(given) == 1 and len(given[0].resolution.destinations) == 1:
        return [_recipient(given[0], given[0].resolution.destinations[0], given[0].parameters, expanded=False)]
    found: dict[tuple[str, ObjectRef | None, str], ExpandedRecipient] = {}
    for one in given:
        parameters, expanded = passed_on(one.parameters, one.resolution)
        shared: list[ExpandedRecipient] = []
        for destination in one.resolution.destinations:
            key = (destination.address.key, destination.account, destination.mailbox)
            if key in found:
                shared.append(found[key])
                continue
            found[key] = _recipient(one, destination, parameters, expanded=expanded)
            expanded = False  # one DSN tells of the expansion, not one a copy (DSN-23)
        if expanded:
            _tell_of(one, shared)
    return list(found.values())


def _tell_of(one: AcceptedRecipient, shared: list[ExpandedRecipient]) -> None:
    """All that an alias stands for was given before: one of those carries its `expanded` DSN (DSN-23).

    What was asked for that one's delivery stays. One with an ORCPT of its own, or that tells of another alias, has no
    room for it.
    """
    for recipient in shared:
        if not recipient.expanded and recipient.orcpt is None:
            recipient.expanded = True
            recipient.given = str(one.address)
            recipient.orcpt = one.parameters.orcpt
            return


def _recipient(
    one: AcceptedRecipient, destination: Destination, parameters: RcptParameters, *, expanded: bool
) -> ExpandedRecipient:
    given = str(one.address)
    return ExpandedRecipient(
        address=given if destination.address is one.address else str(destination.address),
        given=given,
        notify=parameters.notify,
        orcpt=parameters.orcpt,
        expanded=expanded,
        domain=destination.domain,
        account=destination.account,
        mailbox=destination.mailbox,
    )
