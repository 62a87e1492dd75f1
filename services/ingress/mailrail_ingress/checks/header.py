"""Checks of header fields: whose message it is, what it must have, and what goes (SIN-13, SUB-02..05)."""

import uuid
from collections.abc import Iterator
from typing import Final

from mailrail.core.authres.foreign import foreign_results
from mailrail.core.message.header import (
    AUTHOR_FIELDS_LIMIT,
    HIDDEN,
    Field,
    HeaderError,
    MailboxList,
    date,
    mailboxes,
    message_id,
    waives_tls,
)
from mailrail.core.revision.revision import Account
from mailrail.core.route.recipients import NOT_QUALIFIED
from mailrail.core.smtp.address import Address
from mailrail.core.smtp.reply import Reply
from mailrail.core.tlspolicy.decision import Requirement
from mailrail_ingress.checks.verdicts import CheckedMessage, Edit, Refuse
from mailrail_ingress.recipients import ends_here

RESULTS_LIMIT: Final = 100
"""Authentication-Results fields of a message. Each takes microseconds to read, and no mail has ten."""
TOO_MANY_RESULTS: Final = Refuse(
    Reply.of(550, "5.6.0", f"the message has more than {RESULTS_LIMIT} Authentication-Results fields")
)
BAD_AUTHOR: Final = Refuse(
    Reply.of(550, "5.6.0", "the From field is not a list of addresses; a name with a comma must be in quotes")
)
NO_AUTHOR: Final = Refuse(Reply.of(550, "5.6.0", "the message has no From field"))
SEVERAL_AUTHORS: Final = Refuse(
    Reply.of(550, "5.6.0", "the message has several From fields with different addresses; use one")
)
NOT_YOUR_AUTHOR: Final = Refuse(Reply.of(550, "5.7.1", "you may not send as an address of the From field"))
BAD_SENDER_FIELD: Final = Refuse(Reply.of(550, "5.6.0", "the Sender field is not an address"))
NOT_YOUR_SENDER_FIELD: Final = Refuse(Reply.of(550, "5.7.1", "you may not send as the address of the Sender field"))
NOT_QUALIFIED_IN: Final = {
    name: Refuse(Reply.of(NOT_QUALIFIED.code, "5.1.2", f"the {name} field has a domain that is not fully qualified"))
    for name in ("To", "Cc", "Reply-To", "Sender")
}
ADDRESS_FIELDS_SIZE: Final = 16 * 1024
"""Octets of the fields of addresses that are looked at for unqualified domains. Other clients wait meanwhile."""


_DEFAULT: Final = Requirement.DEFAULT
_WAIVED: Final = Requirement.NO


def read_tls_required(message: CheckedMessage) -> None:
    """`TLS-Required: No` is what the message demands of TLS (RTLS-07), unless it came with REQUIRETLS (RTLS-08). The
    field stays."""
    if message.requirement is _DEFAULT and waives_tls(message.header):
        message.requirement = _WAIVED


def remove_foreign_results(message: CheckedMessage) -> Refuse | Edit | None:
    """Authentication-Results fields go that we did not write and that are under a name of ours, or of a version that
    does not exist (AR-01). Each is read, so there is a limit to them."""
    fields = message.header.named(b"authentication-results", RESULTS_LIMIT + 1)
    if not fields:
        return None
    return TOO_MANY_RESULTS if len(fields) > RESULTS_LIMIT else _removal(foreign_results(fields, message.authserv_ids))


def remove_return_path(message: CheckedMessage) -> Edit | None:
    """A mailbox writes the Return-Path that counts (RFC 5321 4.4, SIN-24a)."""
    written = message.header.named(b"return-path")
    return _removal(written) if written and ends_here(message.recipients) else None


def judge_author(message: CheckedMessage) -> Refuse | Edit | None:
    """Each author is an address that the account may use (SUB-03), and there is one From field (RFC 5322 3.6).

    An empty one is replaced and a missing one is added, with the sender of the envelope. A repeated one goes.
    """
    account = message.account
    assert account is not None
    fields = message.header.named(b"from", AUTHOR_FIELDS_LIMIT + 1)
    if len(fields) > AUTHOR_FIELDS_LIMIT:
        return SEVERAL_AUTHORS
    written = [field for field in fields if field.value.strip()]
    if not written:
        author = _own_address(message, account)
        if author is None:
            return NO_AUTHOR
        return Edit(dict.fromkeys(fields, b""), f"From: {author}\r\n".encode())
    try:
        if len(written) > 1 and len({frozenset(_keys(field, account)) for field in written}) > 1:
            return SEVERAL_AUTHORS
        found = mailboxes(written[0], _domain(account))
        if not _may_send(message, account, found.addresses):
            return NOT_YOUR_AUTHOR
    except HeaderError:
        return BAD_AUTHOR
    if len(fields) == 1 and found.completed is None:
        return None  # as nearly always
    return Edit(dict.fromkeys(fields, b"") | {written[0]: _completed(message, written[0], found)})


def author_domains(message: CheckedMessage) -> tuple[str, ...]:
    """The domains of the authors that `judge_author` let pass, in lower-case A-labels."""
    account = message.account
    assert account is not None
    written = [field for field in message.header.named(b"from", AUTHOR_FIELDS_LIMIT + 1) if field.value.strip()]
    if not written:
        author = _own_address(message, account)
        return (author.rpartition("@")[2].lower(),) if author is not None else ()
    try:
        found = mailboxes(written[0], _domain(account)).addresses
        return tuple(dict.fromkeys(address.key.rpartition("@")[2] for address in found))
    except HeaderError:
        return ()


def judge_sender_field(message: CheckedMessage) -> Refuse | Edit | None:
    """Readers show the Sender field beside From, so it is an address of the account as well (SUB-03)."""
    account = message.account
    assert account is not None
    changes: dict[Field, bytes] = {}
    for field in message.header.named(b"sender", AUTHOR_FIELDS_LIMIT + 1):
        if not field.value.strip():
            continue
        try:
            found = mailboxes(field, _domain(account))
            if not _may_send(message, account, found.addresses):
                return NOT_YOUR_SENDER_FIELD
        except HeaderError:
            return BAD_SENDER_FIELD
        changes |= _completion(message, field, found)
    return Edit(changes) if changes else None


def remove_hidden_fields(message: CheckedMessage) -> Edit | None:
    """Who else gets the message is not for its recipients (SUB-05a); Return-Path is for the mailbox to write."""
    return _removal([field for name in HIDDEN for field in message.header.named(name)])


def add_date(message: CheckedMessage) -> Edit | None:
    """Date, where it lacks (SUB-04)."""
    return None if message.header.has(b"date") else Edit(added=f"Date: {date(message.now)}\r\n".encode())


def add_message_id(message: CheckedMessage) -> Edit | None:
    """Record the Message-ID; an account's message gets one where it lacks (SUB-04)."""
    message.message_id = message_id(message.header)
    if message.account is None or message.message_id is not None or message.header.has(b"message-id"):
        return None
    message.message_id = f"<{uuid.UUID(bytes=message.id)}@{message.hostname}>"
    return Edit(added=f"Message-ID: {message.message_id}\r\n".encode())


def qualify_addresses(message: CheckedMessage) -> Refuse | Edit | None:
    """What we alter has full addresses (SUB-02b, RFC 6409 4.2): a local part alone gets the account's domain, a domain
    without a dot is refused. A field that is not a list of addresses stays as it is."""
    account = message.account
    assert account is not None
    if not message.edited:
        return None
    fields = [(name, field) for name in NOT_QUALIFIED_IN for field in message.header.named(name.lower().encode())]
    if sum(len(field.value) for _, field in fields) > ADDRESS_FIELDS_SIZE:
        return None
    changes: dict[Field, bytes] = {}
    for name, field in fields:
        try:
            found = mailboxes(field, _domain(account))
            if any(_is_unqualified(message, address) for address in found.addresses):
                return NOT_QUALIFIED_IN[name]
        except HeaderError:
            continue
        changes |= _completion(message, field, found)
    return Edit(changes) if changes else None


def _removal(fields: list[Field]) -> Edit | None:
    return Edit(dict.fromkeys(fields, b"")) if fields else None


def _completion(message: CheckedMessage, field: Field, found: MailboxList) -> dict[Field, bytes]:
    return {} if found.completed is None else {field: _completed(message, field, found)}


def _completed(message: CheckedMessage, field: Field, found: MailboxList) -> bytes:
    return message.header.with_value(field, field.value if found.completed is None else found.completed)


def _keys(field: Field, account: Account) -> Iterator[str]:
    return (address.key for address in mailboxes(field, _domain(account)).addresses)


def _may_send(message: CheckedMessage, account: Account, addresses: Iterator[Address]) -> bool:
    # The first address that is not the account's is the last that is looked at.
    return all(message.directory.may_send(account.ref, address) for address in addresses)


def _is_unqualified(message: CheckedMessage, address: Address) -> bool:
    return not address.is_literal and "." not in address.domain and not message.directory.is_ours(address.domain)


def _domain(account: Account) -> str:
    """The domain of the account's first address; logins and addresses always have one."""
    return next((a.rpartition("@")[2] for a in (*account.sendable, *account.receive)), account.login.rpartition("@")[2])


def _own_address(message: CheckedMessage, account: Account) -> str | None:
    """Whom a message without an author is from: its sender, which the account may use; else its first address."""
    if message.sender is not None:
        return str(message.sender)
    return next((address for address in account.sendable if not address.startswith("@")), None)
