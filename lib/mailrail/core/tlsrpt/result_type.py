"""What went wrong with TLS, in the words of a TLS report (RFC 8460 4.3)."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class ResultType(StrEnum):
    """The result types of RFC 8460 4.3; no others may be reported (TRPT-07)."""

    STARTTLS_NOT_SUPPORTED = "starttls-not-supported"
    CERTIFICATE_HOST_MISMATCH = "certificate-host-mismatch"
    CERTIFICATE_EXPIRED = "certificate-expired"
    CERTIFICATE_NOT_TRUSTED = "certificate-not-trusted"
    VALIDATION_FAILURE = "validation-failure"
    TLSA_INVALID = "tlsa-invalid"
    DNSSEC_INVALID = "dnssec-invalid"
    DANE_REQUIRED = "dane-required"
    STS_POLICY_FETCH_ERROR = "sts-policy-fetch-error"
    STS_POLICY_INVALID = "sts-policy-invalid"
    STS_WEBPKI_INVALID = "sts-webpki-invalid"


@dataclass(frozen=True, slots=True)
class TlsFault:
    """Why TLS with a server does not count as what was asked of it."""

    type: ResultType
    reason: str
    """The failure-reason-code of a report: lower-case letters, digits and hyphens. The types validation-failure and
    certificate-not-trusted say too little without it (TRPT-08)."""
    detail: str
    """In words, for the log and for people; printable, and bounded whatever the server sent."""

    @property
    def of_certificate(self) -> bool:
        """The certificate is at fault: encrypted, without authentication, the connection would have come about."""
        return self.type in _OF_CERTIFICATE or self.reason == NOT_YET_VALID

    @property
    def of_demand(self) -> bool:
        """The server did all that was asked of it, and what it has is less than we demand: with others it is well."""
        return self.of_certificate or self.reason in (TLSA_MISMATCH, NOT_OFFERED)


NOT_YET_VALID: Final = "certificate-not-yet-valid"
"""The reason of a certificate that is valid only later, which RFC 8460 has no type for."""
TLSA_MISMATCH: Final = "tlsa-mismatch"
"""The reason of certificates that no TLSA record names, which RFC 8460 has no type for either."""
NOT_OFFERED: Final = "not-offered"
"""The reason of a server that does not offer STARTTLS."""
_OF_CERTIFICATE: Final = frozenset(
    {
        ResultType.CERTIFICATE_HOST_MISMATCH,
        ResultType.CERTIFICATE_EXPIRED,
        ResultType.CERTIFICATE_NOT_TRUSTED,
    }
)
