"""Why TLS kept a message from a host, of an answer in which it did: for metrics and for who is told."""

from typing import Final

from mailrail.core.smtp.answer import Answer, Trouble
from mailrail.core.tlspolicy.decision import Cause
from mailrail.core.tlsrpt.result_type import TLSA_MISMATCH

_OF_TLS: Final = frozenset({Trouble.TLS, Trouble.TLS_DEMAND, Trouble.TLS_FLOOR, Trouble.TLS_POLICY})


def cause_of(answer: Answer) -> Cause | None:
    """None: something else is why."""
    if answer.cause:
        return Cause(answer.cause)
    if answer.trouble is Trouble.REQUIRETLS:
        return Cause.NO_REQUIRETLS
    if answer.trouble not in _OF_TLS:
        return None
    if answer.fault is not None and answer.fault.reason == TLSA_MISMATCH:
        return Cause.TLSA
    return Cause.CERTIFICATE if answer.fault is not None and answer.fault.of_certificate else Cause.NO_TLS
