"""gRPC of the built-in mailbox: messages in and out, no decisions."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from mailrail.kit.rpc import caller_roles
from mailrail.pb.queue.v1 import mailbox_pb2, mailbox_pb2_grpc, types_pb2
from mailrail_queue.admin.filters import BadRequest, NotFound, PageTokens, page_size
from mailrail_queue.app import NotConfigured
from mailrail_queue.mailbox import store as mailbox
from mailrail_queue.mailbox.store import FLAGS, PATH_LIMIT, SEEN, ContentIncomplete, Listed
from mailrail_queue.routing.addresses import Addresses
from mailrail_queue.routing.router import account_pb
from mailrail_queue.rpc.answering import Context, Rows, answering
from mailrail_queue.store.rows import envelope_of

_KEYWORD_LIMIT = 64
_MOST_IDS = 10_000
_REPORTS_ALONE = "dmarc lists, reads and flags the mail in the mailboxes for reports, and nothing else"


class MailboxServicer(mailbox_pb2_grpc.MailboxServiceServicer):
    """Reading the built-in mailboxes."""

    def __init__(self, rows: Rows, addresses: Callable[[], Addresses]) -> None:
        self._rows = rows
        self._addresses = addresses

    def _account(self, name: str) -> str:
        """The stored name of an account. Of one that is gone the mail is still there, so its name is taken as it is."""
        with contextlib.suppress(NotConfigured):
            found = self._addresses().account(name)
            if found is not None:
                return f"{found.ref.namespace}/{found.ref.name}"
        return name

    def _open_to(self, context: Context, account: str, path: str) -> bool:
        """Whether the caller may look into a mailbox. Who opens strangers' archives sees no other mail (COR-1)."""
        if "dmarc" not in caller_roles(context):
            return True
        with contextlib.suppress(NotConfigured):
            return (account, path) in self._addresses().reports_mailboxes()
        return False

    async def ListMailboxes(
        self, request: mailbox_pb2.ListMailboxesRequest, context: Context
    ) -> mailbox_pb2.ListMailboxesResponse:
        async with answering(context, request), self._rows.use() as connection:
            answer = mailbox_pb2.ListMailboxesResponse()
            account = self._account(request.account) if request.account else ""
            for owner, path, messages, unseen in await mailbox.mailboxes(connection, account):
                if not self._open_to(context, owner, path):
                    continue
                answer.mailboxes.add(account=account_pb(owner), path=path, messages=messages, unseen=unseen)
            return answer

    async def ListMessages(
        self, request: mailbox_pb2.ListMessagesRequest, context: Context
    ) -> mailbox_pb2.ListMessagesResponse:
        async with answering(context, request), self._rows.use() as connection:
            if len(request.path) > PATH_LIMIT:
                raise BadRequest(f"a mailbox path has at most {PATH_LIMIT} characters")
            size = page_size(request.page_size)
            account = self._account(request.account) if request.account else ""
            if request.without_flag:
                _check_flag(request.without_flag)
            if not self._open_to(context, account, request.path):
                raise BadRequest(_REPORTS_ALONE)
            tokens = PageTokens("mailbox", f"{account}\0{request.path}\0{request.without_flag}".encode())
            before = _before(tokens.read(request.page_token))
            found = await mailbox.list_messages(
                connection, account, request.path, before, size + 1, request.without_flag
            )
            answer = mailbox_pb2.ListMessagesResponse(messages=[_message(m) for m in found[:size]])
            if len(found) > size:
                answer.next_page_token = tokens.make(str(found[size - 1].id))
            return answer

    async def ReadMessage(
        self, request: mailbox_pb2.ReadMessageRequest, context: Context
    ) -> AsyncIterator[mailbox_pb2.ReadMessageResponse]:
        async with answering(context, request):
            async with self._rows.use() as connection:
                found = await mailbox.find_message(connection, request.id)
                if found is None or not self._open_to(context, found.account, found.path):
                    raise NotFound(f"no message {request.id}")
                if request.mark_seen and SEEN not in found.flags:
                    await mailbox.set_flags(connection, [found.id], [SEEN], [])
                    found.flags.append(SEEN)
            yield mailbox_pb2.ReadMessageResponse(message=_message(found), data=found.prefix)
            whole = False
            # Mail that was captured, and copies for a postmaster, are shown as they came.
            content = mailbox.delivered_content if found.prefix else mailbox.content_for
            async for part in content(self._rows.use, found.message_id):
                whole = True
                yield mailbox_pb2.ReadMessageResponse(data=part)
            if not whole:
                raise ContentIncomplete("the stored message is missing")

    async def SetFlags(self, request: mailbox_pb2.SetFlagsRequest, context: Context) -> mailbox_pb2.SetFlagsResponse:
        async with answering(context, request), self._rows.change() as connection:
            for flag in (*request.add, *request.remove):
                _check_flag(flag)
            ids = _ids(request.ids)
            for place in await mailbox.places(connection, ids):
                if not self._open_to(context, *place):
                    raise BadRequest(_REPORTS_ALONE)
            changed = await mailbox.set_flags(connection, ids, list(request.add), list(request.remove))
            return mailbox_pb2.SetFlagsResponse(changed=changed)

    async def DeleteMessages(
        self, request: mailbox_pb2.DeleteMessagesRequest, context: Context
    ) -> mailbox_pb2.DeleteMessagesResponse:
        async with answering(context, request), self._rows.change() as connection:
            if not self._open_to(context, "", ""):
                raise BadRequest(_REPORTS_ALONE)
            return mailbox_pb2.DeleteMessagesResponse(deleted=await mailbox.delete(connection, _ids(request.ids)))


def _ids(given: Any) -> list[int]:
    if not given:
        raise BadRequest("name the messages by their ids")
    if len(given) > _MOST_IDS:
        raise BadRequest(f"at most {_MOST_IDS} messages a call")
    if any(i >= 2**63 for i in given):
        raise BadRequest("there is no such id")
    return list(given)


def _check_flag(flag: str) -> None:
    """System flags by name, keywords as atoms (RFC 9051 2.3.2). Raises BadRequest."""
    if flag in FLAGS:
        return
    atom = flag.isascii() and flag.isprintable() and not set(flag) & set(' (){%*"\\]')
    if not flag or len(flag) > _KEYWORD_LIMIT or not atom:
        raise BadRequest(f"{flag!r} is not a flag: {', '.join(sorted(FLAGS))}, or a keyword of letters and digits")


def _before(place: str | None) -> int:
    if place is None:
        return 2**63 - 1
    if not (place.isascii() and place.isdigit() and len(place) < 19):
        raise BadRequest("the page token is not valid")
    return int(place)


def _message(found: Listed) -> mailbox_pb2.MailboxMessage:
    envelope = envelope_of(found.envelope)
    answer = mailbox_pb2.MailboxMessage(
        id=found.id,
        account=account_pb(found.account),
        path=found.path,
        flags=found.flags,
        size=found.size,
        to=found.header_to,
        subject=found.subject,
        message_id=found.header_message_id,
        in_reply_to=found.in_reply_to,
        references=found.references,
        recipient=found.recipient,
        reverse_path=found.reverse_path,
        dsn=found.dsn,
        note=found.note,
        tls_requirement=envelope.tls_requirement,
        purpose=envelope.purpose if envelope.origin == types_pb2.ORIGIN_SYSTEM else types_pb2.PURPOSE_UNSPECIFIED,
    )
    setattr(answer, "from", found.header_from)
    answer.received.FromDatetime(found.received)
    return answer
