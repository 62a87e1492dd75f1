"""`mailrail mailbox`: the built-in mailboxes, where local mail, notifications and captured mail land (design 9)."""

import datetime
import email
import email.policy
import sys
from email.message import EmailMessage
from typing import Annotated, Any

import typer

from mailrail.cli import arguments as a
from mailrail.cli import output
from mailrail.cli.connection import TIMEOUT, ask, pages
from mailrail.kit.files import write_whole
from mailrail.pb.queue.v1 import mailbox_pb2, mailbox_pb2_grpc

app = typer.Typer(no_args_is_help=True, help="Read the built-in mailboxes.")

SEEN = "\\Seen"
_SHOWN = ("From", "To", "Cc", "Subject", "Date", "Message-ID", "In-Reply-To", "References", "Auto-Submitted")

MailboxAccount = Annotated[str, typer.Option("--account", metavar="NS/NAME", help="Only this account (or login).")]
Numbers = Annotated[list[int], typer.Argument(metavar="ID", help="Message number, from `mailrail mailbox list`.")]


def _stub(channel: Any) -> "mailbox_pb2_grpc.MailboxServiceAsyncStub":
    stub: mailbox_pb2_grpc.MailboxServiceAsyncStub = mailbox_pb2_grpc.MailboxServiceStub(channel)
    return stub


@app.command()
def boxes(account: MailboxAccount = "", json: a.Json = False) -> None:
    """List the mailboxes and how many messages each holds."""

    async def question(channel: Any) -> mailbox_pb2.ListMailboxesResponse:
        request = mailbox_pb2.ListMailboxesRequest(account=a.qualified(account))
        return await _stub(channel).ListMailboxes(request, timeout=TIMEOUT)

    found = list(ask("queue", question).mailboxes)
    if json:
        output.print_json(found)
        return
    output.table(
        ("ACCOUNT", "MAILBOX", "MESSAGES", "UNREAD"),
        ((output.ref(m, "account"), m.path, str(m.messages), str(m.unseen)) for m in found),
        none="all mailboxes are empty",
    )


@app.command("list")
def list_messages(
    path: Annotated[str, typer.Argument(metavar="MAILBOX", help="Only this mailbox, such as Inbox.")] = "",
    account: MailboxAccount = "",
    limit: a.Limit = 50,
    json: a.Json = False,
) -> None:
    """List messages, the newest first."""

    async def question(channel: Any) -> tuple[list[mailbox_pb2.MailboxMessage], bool]:
        stub = _stub(channel)

        async def fetch(size: int, token: str) -> tuple[list[mailbox_pb2.MailboxMessage], str]:
            request = mailbox_pb2.ListMessagesRequest(
                account=a.qualified(account), path=path, page_size=size, page_token=token
            )
            answer = await stub.ListMessages(request, timeout=TIMEOUT)
            return list(answer.messages), answer.next_page_token

        return await pages(fetch, limit)

    found, more = ask("queue", question)
    if json:
        output.print_json(found)
        return
    now = datetime.datetime.now(datetime.UTC)
    output.table(
        ("ID", "ACCOUNT", "MAILBOX", "RECEIVED", "FROM", "SUBJECT", "NOTE"),
        (
            (
                str(m.id),
                output.ref(m, "account"),
                m.path,
                output.when(m, "received", now, brief=True),
                m.__getattribute__("from"),
                m.subject if SEEN in m.flags else f"* {m.subject}",
                m.note,
            )
            for m in found
        ),
        none="no messages",
        prose=2,
    )
    if more:
        output.say(f"... more than {limit}; --limit 0 shows all")


@app.command()
def read(
    number: Annotated[int, typer.Argument(metavar="ID", min=1, help="Message number, from `mailrail mailbox list`.")],
    raw: Annotated[bool, typer.Option("--raw", help="Print the message octet for octet.")] = False,
    unread: Annotated[bool, typer.Option("--keep-unread", help="Do not mark the message as read.")] = False,
    json: a.Json = False,
) -> None:
    """Read one message."""

    async def question(channel: Any) -> tuple[mailbox_pb2.MailboxMessage, bytes]:
        known = mailbox_pb2.MailboxMessage()
        parts: list[bytes] = []
        request = mailbox_pb2.ReadMessageRequest(id=number, mark_seen=not unread)
        async for part in _stub(channel).ReadMessage(request):
            if part.HasField("message"):
                known = part.message
            parts.append(part.data)
        return known, b"".join(parts)

    known, content = ask("queue", question)
    if raw:
        write_whole(sys.stdout.buffer, content)
        sys.stdout.buffer.flush()
        return
    message = email.message_from_bytes(content, policy=email.policy.default)
    if json:
        output.print_json(
            {
                "message": known,
                "headers": [{"name": n, "value": str(v)} for n, v in message.items()],
                "text": _text(message),
                "content": content.decode("utf-8", "backslashreplace"),
            }
        )
        return
    output.facts(
        (
            ("Mailbox", f"{output.ref(known, 'account')} {known.path}"),
            ("Recipient", known.recipient),
            ("Note", known.note),
            ("TLS", output.name_of(known, "tls_requirement")),
            *((name, str(message[name])) for name in _SHOWN if message[name] is not None),
        )
    )
    print()
    print(output.clean(_text(message)))


def _text(message: EmailMessage) -> str:
    """What a person reads: text parts, the fields of a delivery report, and the headers of an enclosed message.

    A line `--- type ---` stands before each part but the first.
    """
    shown: list[tuple[str, str]] = []
    for part in message.walk():
        kind = part.get_content_type()
        if part.is_multipart():
            # A delivery report is parsed as a list of header blocks, an enclosed message as a message.
            if kind == "message/delivery-status":
                blocks = (f"{n}: {v}" for block in part.iter_parts() for n, v in (*block.items(), ("", "")))
                shown.append((kind, "\n".join(line.rstrip(": ") for line in blocks)))
            continue
        if kind == "text/plain" and message.get_content_type() != "message/delivery-status":
            body = part.get_payload(decode=True)
            octets = body if isinstance(body, bytes) else b""
            try:
                shown.append((kind, octets.decode(part.get_content_charset() or "utf-8", "replace")))
            except LookupError:  # an unknown charset
                shown.append((kind, octets.decode("utf-8", "replace")))
        elif kind == "text/rfc822-headers":
            shown.append((kind, str(part.get_payload())))
        elif kind not in ("text/plain",):
            name = part.get_filename() or kind
            shown.append((kind, f"[{name}]"))
    parts = [(kind, text.replace("\r\n", "\n").rstrip("\n") + "\n") for kind, text in shown if text.strip()]
    return "\n".join(text if number == 0 else f"--- {kind} ---\n{text}" for number, (kind, text) in enumerate(parts))


@app.command()
def flag(
    numbers: Numbers,
    add: Annotated[list[str] | None, typer.Option("--add", metavar="FLAG", help="seen, flagged, answered, ...")] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", metavar="FLAG", help="seen, flagged, answered, ...")
    ] = None,
) -> None:
    """Set or clear flags of messages."""
    if not add and not remove:
        output.stop("give --add or --remove", output.USAGE)
    request = mailbox_pb2.SetFlagsRequest(ids=numbers, add=map(_flag, add or []), remove=map(_flag, remove or []))

    async def question(channel: Any) -> mailbox_pb2.SetFlagsResponse:
        return await _stub(channel).SetFlags(request, timeout=TIMEOUT)

    changed = ask("queue", question).changed
    if not changed:
        output.stop("no such message")
    output.say(f"{changed} {'message' if changed == 1 else 'messages'} changed")


def _flag(name: str) -> str:
    """System flags may be typed without their backslash."""
    system = ("Seen", "Answered", "Flagged", "Deleted", "Draft")
    return next((f"\\{s}" for s in system if s.lower() == name.lstrip("\\").lower()), name)


@app.command()
def delete(numbers: Numbers) -> None:
    """Delete messages."""

    async def question(channel: Any) -> mailbox_pb2.DeleteMessagesResponse:
        return await _stub(channel).DeleteMessages(mailbox_pb2.DeleteMessagesRequest(ids=numbers), timeout=TIMEOUT)

    deleted = ask("queue", question).deleted
    if not deleted:
        output.stop("no such message")
    output.say(f"{deleted} {'message' if deleted == 1 else 'messages'} deleted")
