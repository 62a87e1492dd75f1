"""What was found about who sent a message, as the queue stores it with the envelope."""

from typing import Final

from mailrail.core.dmarc.disposition import DmarcAction
from mailrail.core.message_authentication.findings import AuthenticationFindings
from mailrail.pb.queue.v1 import types_pb2

_ACTIONS: Final = {
    DmarcAction.ACCEPT: types_pb2.AUTHENTICATION_ACTION_ACCEPTED,
    DmarcAction.QUARANTINE: types_pb2.AUTHENTICATION_ACTION_QUARANTINED,
    DmarcAction.REJECT: types_pb2.AUTHENTICATION_ACTION_REFUSED,
    DmarcAction.DEFER: types_pb2.AUTHENTICATION_ACTION_DEFERRED,
}


def findings_pb(found: AuthenticationFindings) -> types_pb2.MessageAuthentication:
    """For `Envelope.authentication`."""
    return types_pb2.MessageAuthentication(
        results=[
            types_pb2.AuthenticationResult(
                method=each.method,
                identity=each.identity,
                result=each.result,
                domain=each.domain,
                selector=each.selector,
                reason=each.reason,
            )
            for each in found.results
        ],
        signatures_left_out=found.signatures_left_out,
        action=_ACTIONS[found.action],
        author_domains=found.author_domains,
        policy_domain=found.policy_domain,
        policy=found.policy,
        applied=found.applied,
        overrides=[types_pb2.AuthenticationOverride(type=each.type, comment=each.comment) for each in found.overrides],
    )
