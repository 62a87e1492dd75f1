"""Delivery into the built-in mailbox, by the transaction that ends the delivery (FIN-01)."""

from collections.abc import Callable, Sequence
from typing import Final

from mailrail.core.message.header import Header
from mailrail.core.message.loop import was_delivered
from mailrail.core.revision.revision import ObjectRef
from mailrail.pb.queue.v1 import types_pb2
from mailrail_queue.delivery.ports import Arrival, AttemptRecipient
from mailrail_queue.mailbox.store import Entry, MessageHead, heads, put
from mailrail_queue.routing.addresses import INBOX, Addresses
from mailrail_queue.routing.router import Router, reference_text
from mailrail_queue.store.connection import Connection
from mailrail_queue.store.rows import envelope_of

CAPTURED: Final = "Captured"
"""Where captive local mode puts what it did not send (design 10)."""


class NoSuchAccount(LookupError):
    """The account of a mailbox is gone and no other account has the address: the mail waits (FIN-04)."""


class MailboxDelivery:
    """Delivery into the built-in mailbox, as the message path calls it (`ports.Mailboxes`)."""

    def __init__(self, router: Callable[[], Router]) -> None:
        self._router = router
        self._addresses: tuple[int, Addresses] | None = None

    def addresses(self) -> Addresses:
        """The addresses of the revision in force."""
        router = self._router()
        if self._addresses is None or self._addresses[0] != router.number:
            self._addresses = (router.number, Addresses(router.revision))
        return self._addresses[1]

    def refusal(self, recipient: AttemptRecipient, head: bytes = b"") -> types_pb2.Reply | None:
        """Why no mailbox takes it now, as the reply of an attempt; None: one does.

        Mail whose account or address was taken away waits for it to come back (FIN-04). A notification of ours to
        an address that never was anybody's is refused for good. So is a message that is in a loop, as far as its `head`
        shows it: larger ones end by the number of their Received fields (SIN-15).
        """
        if b"elivered-" in head and was_delivered(Header(head), recipient.address, self._hostnames()):
            return types_pb2.Reply(
                code=554, enhanced="5.4.6", lines=["the message was delivered here before: it is in a loop"]
            )
        try:
            self.place(recipient)
        except NoSuchAccount as error:
            rcpt = types_pb2.EnvelopeRecipient.FromString(recipient.envelope_recipient)
            if rcpt.HasField("mailbox_account") or not recipient.null_sender or not recipient.facts.ours:
                return types_pb2.Reply(code=451, enhanced="4.3.5", lines=[str(error)])
            return types_pb2.Reply(code=550, enhanced="5.1.1", lines=[str(error)])
        return None

    def _hostnames(self) -> list[str]:
        return [gateway.hostname for gateway in self._router().revision.gateways]

    def place(self, recipient: AttemptRecipient) -> tuple[str, str]:
        """The account and path that take it. Raises NoSuchAccount.

        The account was found when the mail was accepted. If it is gone, the account with
        the address takes the mail.
        """
        addresses = self.addresses()
        rcpt = types_pb2.EnvelopeRecipient.FromString(recipient.envelope_recipient)
        if rcpt.HasField("mailbox_account"):
            account = ObjectRef("MailAccount", rcpt.mailbox_account.namespace, rcpt.mailbox_account.name)
            if account in addresses.accounts:
                return reference_text(account), rcpt.mailbox or INBOX
        for found in addresses.resolve(recipient.address):
            if found.account is not None and found.account in addresses.accounts:
                return reference_text(found.account), rcpt.mailbox or found.mailbox
        raise NoSuchAccount(f"no account has the address {recipient.address} now")

    def _captor(self, recipient: AttemptRecipient) -> str:
        """Captured mail goes to the account that submitted it, otherwise to the postmaster (design 10)."""
        account = recipient.facts.account
        if account is not None and self.addresses().account(account) is not None:
            return account
        gateway = self._router().gateway(recipient.facts.gateway)
        if gateway is None:
            raise NoSuchAccount("there is no gateway whose postmaster could take captured mail")
        return reference_text(gateway.postmaster)

    async def deliver(self, connection: Connection, arrivals: Sequence[Arrival]) -> None:
        """Put each into its mailbox, once. Raises NoSuchAccount; ask `refusal` before."""
        found = await heads(connection, {a.recipient.message_id for a in arrivals})
        entries = []
        for arrival in arrivals:
            recipient = arrival.recipient
            head = found.get(recipient.message_id)
            if head is None:
                continue
            captured = arrival.attempt.outcome == types_pb2.OUTCOME_CAPTURED
            account, path = (self._captor(recipient), CAPTURED) if captured else self.place(recipient)
            note = captured_note(arrival.attempt) if captured else ""
            entries.append(entry_of(recipient, head, account, path, delivered=not captured, note=note))
        await put(connection, entries, found)


def entry_of(
    recipient: AttemptRecipient, head: MessageHead, account: str, path: str, *, delivered: bool, note: str
) -> Entry:
    """The entry of a recipient's message in a mailbox of `account`; `delivered` and `note` as in Entry."""
    return Entry(
        account,
        path,
        recipient.message_id,
        recipient.id,
        recipient.address,
        head.mail_from,
        delivered=delivered,
        dsn=envelope_of(head.envelope).purpose == types_pb2.PURPOSE_NOTIFICATION,
        note=note,
    )


def captured_note(attempt: types_pb2.Attempt) -> str:
    """The transport and the rule that captured mail would have used (design 10)."""
    transport = attempt.transport if attempt.HasField("transport") else None
    by = f"{transport.namespace}/{transport.name}" if transport is not None else "direct delivery"
    return f"captured; {by} would have sent it: {attempt.reason}" if attempt.reason else f"captured; {by}"
