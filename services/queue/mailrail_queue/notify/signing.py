"""Signatures of mail that is our own: notifications, and reports (DKIM-10a, DMRC-21).

Its author is an address at the host name of a gateway or at a domain of ours. The keys are those of that name or of the
nearest domain above it, so that DMARC counts the signature as aligned, and mail without a sender needs no SPF. The
service that makes reports opens what strangers send and holds no key: the queue signs when it stores.
"""

from collections.abc import Mapping
from typing import Final

from mailrail.core.dkim.sign import SigningError, sign_message
from mailrail.core.dkim.signers import Signers
from mailrail.core.message.header import Header, HeaderError, mailboxes
from mailrail.core.revision.revision import Revision
from mailrail.kit import log
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.metrics import count_signature

PURPOSES: Final = {
    types_pb2.PURPOSE_NOTIFICATION: "notification",
    types_pb2.PURPOSE_DMARC_REPORT: "dmarc_report",
    types_pb2.PURPOSE_TLS_REPORT: "tls_report",
}
"""What is signed here, as metrics name it. All else was signed by ingress, or is not ours."""


class OwnMailSigner:
    """Signs with the keys of the revision in force."""

    def __init__(self) -> None:
        self._signers: Signers | None = None
        self._log = log.get_logger()

    def configure(self, revision: Revision, secrets: Mapping[str, bytes]) -> None:
        """Put the keys of a revision in force. `secrets`: opened values by their paths."""
        self._signers = Signers(revision, secrets, self._report, self._signers)

    def sign(self, purpose: "types_pb2.Purpose.ValueType", content: bytes, now: float) -> bytes:
        """The DKIM-Signature fields for the top of a whole message; none if no domain at or above that of its author
        has a key: then it goes unsigned, which is counted, for no notification is withheld. `now`: Unix time."""
        kind = PURPOSES.get(purpose)
        if kind is None:
            return b""
        fields = self._sign(content, now) if self._signers else b""
        count_signature(kind, "signed" if fields else "unsigned")
        return fields

    def _sign(self, content: bytes, now: float) -> bytes:
        assert self._signers is not None
        author = Header(content).first(b"from")
        try:
            found = next(mailboxes(author).addresses, None) if author is not None else None
            if found is None or not (keys := self._signers.aligned(found.domain)):
                return b""
            return sign_message(content, keys, now)
        except (HeaderError, SigningError) as error:
            self._log.error("mail of our own cannot be signed", error=str(error))
            return b""

    def _report(self, domain: str, selector: str, why: str) -> None:
        self._log.error("a DKIM key cannot sign; mail goes without it", domain=domain, selector=selector, error=why)
