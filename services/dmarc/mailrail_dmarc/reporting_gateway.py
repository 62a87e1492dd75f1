"""Who sends reports, and in which envelope, under the revision in force."""

import time
from dataclasses import dataclass

from mailrail.core.reports.mail import ReportMail
from mailrail.core.revision.revision import Domain, Gateway, ObjectRef, Revision
from mailrail.core.route.recipients import Directory
from mailrail.core.smtp.address import AddressError, domain_to_ascii, parse_address
from mailrail.core.smtp.reply import Reply
from mailrail.pb.queue.v1 import enqueue_pb2, types_pb2
from mailrail_dmarc.aggregate import ReportSubmitter
from mailrail_dmarc.queue_client import OutgoingMail
from mailrail_dmarc.settings import DmarcSettings


class NoSuchRecipient(Exception):
    """An address of a domain of ours does not exist; the text is the reply."""


@dataclass(slots=True)
class ReportingGateway:
    """The gateway that reports: the first, by name. Its host name is the domain of From and MAIL FROM."""

    revision: Revision
    number: int
    gateway: Gateway
    domain: str
    """A-labels in lower case."""
    signer: Domain | None
    """The domain whose keys sign: the host name's, or the nearest above it that has some. None: nobody signs."""
    _directory: Directory | None = None

    def submitter(self, settings: DmarcSettings) -> ReportSubmitter:
        """As reports name it."""
        return ReportSubmitter(
            self.domain,
            settings.organization or self.domain,
            parse_address(f"postmaster@{self.domain}"),
            settings.extra_contact,
        )

    def envelope(self, mail: ReportMail, message_id: str, subject: str) -> OutgoingMail:
        """The report as the queue takes it. Raises NoSuchRecipient."""
        header = enqueue_pb2.Commit()
        envelope = header.envelope
        envelope.mail_from = f"postmaster@{self.domain}"  # DAGG-10: of the same domain as From
        envelope.body_type = types_pb2.BODY_TYPE_SEVEN_BIT
        envelope.smtputf8 = mail.smtputf8
        envelope.origin = types_pb2.ORIGIN_SYSTEM
        envelope.purpose = types_pb2.PURPOSE_DMARC_REPORT
        envelope.sender_authentication = types_pb2.SENDER_AUTHENTICATION_YES
        envelope.gateway.CopyFrom(_object(self.gateway.ref))
        envelope.account.CopyFrom(_object(self.gateway.postmaster))
        envelope.received.FromNanoseconds(time.time_ns())
        envelope.message_id = message_id
        envelope.subject = subject[:200]
        envelope.eight_bit = not mail.content.isascii()
        envelope.config_revision = self.number
        if self._directory is None:  # most processes send nothing for most revisions, and it may be large
            self._directory = Directory(self.revision, self.gateway)
        found = self._directory.resolve(mail.recipient, authenticated=True)
        if isinstance(found, Reply):
            raise NoSuchRecipient(f"{mail.recipient} does not exist here")
        for end in found.destinations:
            to = header.recipients.add(address=str(end.address), rcpt_to=str(mail.recipient), notify=["FAILURE"])
            if end.domain is not None:
                to.domain.CopyFrom(_object(end.domain))
            if end.account is not None:
                to.mailbox_account.CopyFrom(_object(end.account))
                to.mailbox = end.mailbox
        return OutgoingMail(header, mail.content)


def reporting_gateway(revision: Revision, number: int) -> ReportingGateway | None:
    """Who sends reports under a revision; None: it has no gateway."""
    gateway = min(revision.gateways, key=lambda each: each.ref, default=None)
    if gateway is None:
        return None
    try:
        name = domain_to_ascii(gateway.hostname)
    except AddressError:
        return None
    return ReportingGateway(revision, number, gateway, name, _signer(revision, name))


def _signer(revision: Revision, name: str) -> Domain | None:
    """As the queue chooses keys for mail of our own: so that the signature is aligned (DAGG-10)."""
    ours = {domain.name: domain for domain in revision.domains}
    labels = name.split(".")
    found = (ours.get(".".join(labels[at:])) for at in range(len(labels)))
    return next((domain for domain in found if domain is not None and any(key.signs for key in domain.dkim)), None)


def _object(ref: ObjectRef) -> types_pb2.ObjectRef:
    return types_pb2.ObjectRef(kind=ref.kind, namespace=ref.namespace, name=ref.name)
