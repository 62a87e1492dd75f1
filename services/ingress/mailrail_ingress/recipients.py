"""Whom a message goes to: the recipients of a transaction with what they stand for, each destination once."""

from collections.abc import Iterable
from dataclasses import dataclass

from mailrail.core.revision.revision import ObjectRef
from mailrail.core.route.recipients import Destination, Resolution, passed_on
from mailrail.core.smtp.address import Address
from mailrail.core.smtp.parameters import RcptParameters
from mailrail_ingress.ports import ExpandedRecipient


@dataclass(slots=True)
class AcceptedRecipient:
    """A recipient that was accepted, with what it stands for."""

    address: Address
    parameters: RcptParameters
    resolution: Resolution


def ends_here(accepted: Iterable[AcceptedRecipient]) -> bool:
    """Whether a built-in mailbox is among the destinations."""
    return any(destination.account is not None for one in accepted for destination in one.resolution.destinations)


def recipients_of(accepted: list[AcceptedRecipient]) -> list[ExpandedRecipient]:
    """Every destination once; the first mention decides about its DSN parameters."""
    if len(accepted) == 1 and len(accepted[0].resolution.destinations) == 1:
        return [_recipient(accepted[0], accepted[0].resolution.destinations[0], accepted[0].parameters, expanded=False)]
    found: dict[tuple[str, ObjectRef | None, str], ExpandedRecipient] = {}
    for one in accepted:
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
    """Every recipient that an alias stands for was named before: one of those carries its `expanded` DSN (DSN-23).

    What was asked for that one's delivery stays. One with an ORCPT of its own, or that tells of another alias, has no
    room for it.
    """
    for recipient in shared:
        if not recipient.expanded and recipient.orcpt is None:
            recipient.expanded = True
            recipient.rcpt_to = str(one.address)
            recipient.orcpt = one.parameters.orcpt
            return


def _recipient(
    one: AcceptedRecipient, destination: Destination, parameters: RcptParameters, *, expanded: bool
) -> ExpandedRecipient:
    rcpt_to = str(one.address)
    return ExpandedRecipient(
        rcpt_to if destination.address is one.address else str(destination.address),
        rcpt_to,
        parameters.notify,
        parameters.orcpt,
        expanded,
        destination.domain,
        destination.account,
        destination.mailbox,
        destination.reports,
    )
