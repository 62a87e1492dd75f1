"""What is known of a message from MAIL to the answer after its content."""

from mailrail.core.smtp.address import Address
from mailrail.core.smtp.parameters import MailParameters
from mailrail_ingress.checks.content import ContentChecks
from mailrail_ingress.content import IncomingContent
from mailrail_ingress.recipients import AcceptedRecipient


class MailTransaction:
    """From MAIL to the answer after the content."""

    __slots__ = (
        "checks",
        "content",
        "copies",
        "ended",
        "id",
        "name",
        "parameters",
        "probe",
        "recipients",
        "sender",
    )

    def __init__(self, sender: Address | None, parameters: MailParameters, *, probe: bool = False) -> None:
        """`probe`: of our own operator; it counts in no metric of mail (decision 20)."""
        self.sender = sender
        self.probe = probe
        self.parameters = parameters
        self.recipients: list[AcceptedRecipient] = []
        self.copies = 0
        self.id = b""
        self.name = ""  # the id in hexadecimal
        self.content: IncomingContent | None = None
        self.checks: ContentChecks | None = None
        self.ended = 0.0
