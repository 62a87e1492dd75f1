"""What becomes of a message that TLS kept from every host, as a table that people read; see core/tlspolicy/table.py."""

from dataclasses import dataclass
from typing import Final

from mailrail.core.delivery.outcome import HopKind, Outcome
from mailrail.core.outbound.host_failover import HostFailover
from mailrail.core.outbound.tls_answers import tls_refused
from mailrail.core.smtp.answer import Answer, Stage, Trouble
from mailrail.core.tlspolicy.decision import NO_REQUIRETLS, NO_TLS, NOT_SECURE, TRY_LATER, Cause, Refusal

_UNREACHABLE: Final = Answer(Stage.CONNECT, None, Trouble.UNREACHABLE, "no answer")
_STS_TLS: Final = Refusal(Cause.CERTIFICATE, TRY_LATER, "the certificate is not valid")
_STS_MX: Final = Refusal(Cause.STS_MX, TRY_LATER, "the policy does not list the host")
_STS_MX_REQUIRED: Final = Refusal(Cause.STS_MX, NO_REQUIRETLS, "the policy does not list the host")
_DANE: Final = Refusal(Cause.TLSA, TRY_LATER, "the certificate does not match")
_FLOOR: Final = Refusal(Cause.NO_PROOF, NOT_SECURE, "no proof that the gateway allows")
_UNPROVEN: Final = Refusal(Cause.MX_UNPROVEN, NO_REQUIRETLS, "the MX name is not proven")
_NO_KEYWORD: Final = Refusal(Cause.NO_REQUIRETLS, NO_REQUIRETLS, "REQUIRETLS is not offered inside TLS")
_BAD_TLS: Final = Refusal(Cause.NO_TLS, NO_TLS, "no TLS, or none that verifies")
_OTHER: Final = None


@dataclass(frozen=True, slots=True)
class TlsEnding:
    """One row."""

    hosts: str
    refusals: tuple[Refusal | None, ...]
    """Of each host why TLS refused it; None: it did not answer."""
    notification: bool = False
    """Of a message with REQUIRETLS."""

    def result(self) -> str:
        """What becomes of the message, in words."""
        failover = HostFailover(1, hop=HopKind.FOREIGN)
        for refusal in self.refusals:
            failover.record_session_failure(_UNREACHABLE if refusal is None else tls_refused(refusal))
        if self.notification and failover.wants_tls:
            return "all hosts once more, without any header of the original, as mail that says nothing of TLS"
        settled = failover.conclude()[0]
        if settled.answer is _UNREACHABLE:
            return "as for other mail: replies and faults decide"
        failed = settled.verdict.outcome is Outcome.FAILED
        return f"{'fails' if failed else 'tried later'}, {settled.verdict.status}"


ENDINGS: Final = (
    TlsEnding("a policy in mode `enforce` is not met by any", (_STS_TLS, _STS_MX)),
    TlsEnding("DANE fails at all", (_DANE, _DANE)),
    TlsEnding("a floor of ours with `otherwise: Fail` is not met by any", (_FLOOR, _FLOOR)),
    TlsEnding("likewise, and one could not be asked", (_FLOOR, _OTHER)),
    TlsEnding("REQUIRETLS: the MX name of none is proven", (_UNPROVEN, _UNPROVEN)),
    TlsEnding("REQUIRETLS: none has TLS that verifies", (_BAD_TLS, _BAD_TLS)),
    TlsEnding("REQUIRETLS: none offers it inside TLS", (_NO_KEYWORD, _NO_KEYWORD)),
    TlsEnding("REQUIRETLS: one has bad TLS, one does not offer it", (_BAD_TLS, _NO_KEYWORD)),
    TlsEnding("REQUIRETLS: one does not offer it, one does not answer", (_NO_KEYWORD, _OTHER)),
    TlsEnding("REQUIRETLS: a policy in mode `enforce` is not met by any", (_STS_MX_REQUIRED, _BAD_TLS)),
    TlsEnding("a notification of a message with REQUIRETLS: none offers it", (_NO_KEYWORD,), notification=True),
    TlsEnding("likewise, and one does not answer", (_NO_KEYWORD, _OTHER), notification=True),
)
"""What becomes of mail when no host took it (RTLS-15, RTLS-16, RTLS-17, RTLS-21, STS-13, STS-14)."""
