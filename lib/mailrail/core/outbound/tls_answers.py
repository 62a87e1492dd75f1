"""What TLS that does not do means for a message, as the answer of a host: `HostFailover` weighs it with all others."""

from typing import Final

from mailrail.core.smtp.answer import Answer, Stage, Trouble
from mailrail.core.smtp.reply import EnhancedCode
from mailrail.core.tlspolicy.decision import NO_REQUIRETLS, NO_TLS, Refusal, TlsDecision


def tls_refused(refusal: Refusal) -> Answer:
    """The answer of a host that TLS refuses before MAIL."""
    return Answer(Stage.PLAN, None, _trouble_of(refusal.status), refusal.words, cause=refusal.cause)


def tls_failed(decision: TlsDecision, answer: Answer) -> Answer:
    """What a host without TLS that does means for a message that needs it: at once final where the message requires
    TLS or our word is to fail (RTLS-13b, RTLS-16b), and no trouble of the site where other mail may do with less."""
    if answer.trouble is not Trouble.TLS or not decision.particular:
        return answer
    return Answer(answer.stage, None, _trouble_of(decision.on_failure), answer.detail, fault=answer.fault)


def tls_is_gone() -> Answer:
    """The answer of a host that had TLS on the connection before and has none now."""
    # Otherwise an attacker who can end connections could choose one on which STARTTLS is not offered.
    detail = "the host offered TLS on the last connection and does not offer it now"
    return Answer(Stage.PLAN, None, Trouble.TLS, detail)


def _trouble_of(status: EnhancedCode) -> Trouble:
    if status.category == 4:
        return Trouble.TLS_POLICY
    return _REQUIRED.get(status, Trouble.TLS_FLOOR)


_REQUIRED: Final = {NO_REQUIRETLS: Trouble.REQUIRETLS, NO_TLS: Trouble.TLS_DEMAND}
"""Of a message that requires TLS."""
