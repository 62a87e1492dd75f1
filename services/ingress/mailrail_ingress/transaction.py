"""What is known of a message from MAIL to the answer after its content."""

from mailrail.core.smtp.address import Address
from mailrail.core.smtp.parameters import MailParameters
from mailrail.core.uncommitted import UncommittedBody
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
        "uncommitted",
    )

    def __init__(
        self,
        sender: Address | None,
        parameters: MailParameters,
        uncommitted: UncommittedBody | None = None,
        *,
        probe: bool = False,
    ) -> None:
        """`uncommitted`: what SIZE declared of a large body, which counts already (ACC-07). `probe`: of our own
        operator; it counts in no metric of mail (decision 20)."""
        self.sender = sender
        self.probe = probe
        self.parameters = parameters
        self.uncommitted = uncommitted
        self.recipients: list[AcceptedRecipient] = []
        self.copies = 0
        self.id = b""
        self.name = ""  # the id in hexadecimal
        self.content: IncomingContent | None = None
        self.checks: ContentChecks | None = None
        self.ended = 0.0
