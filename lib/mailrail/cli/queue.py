"""`mailrail queue`: what is in the queue, why, and what to do about it (ADM-01, ADM-02)."""

import datetime
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from mailrail.cli import arguments as a
from mailrail.cli import output
from mailrail.cli.connection import TIMEOUT, ask, pages
from mailrail.pb.queue.v1 import admin_pb2, admin_pb2_grpc, types_pb2

app = typer.Typer(no_args_is_help=True, help="Show and change what is in the queue.")

SERVICE = "queue"

_STORED = "(including mailboxes and messages awaiting cleanup)"
_UNLIMITED = 1_000_000
"""The window of a site that is not dialled, such as the built-in mailbox."""


def admin_service(channel: Any) -> "admin_pb2_grpc.QueueAdminServiceAsyncStub":
    stub: admin_pb2_grpc.QueueAdminServiceAsyncStub = admin_pb2_grpc.QueueAdminServiceStub(channel)
    return stub


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


# --- reading ----------------------------------------------------------------------------------------------------------


@app.command("list")
@a.choosing(a.LIVE)
def list_recipients(
    chosen: admin_pb2.Filter,
    limit: a.Limit = 50,
    json: a.Json = False,
) -> None:
    """List the recipients in the queue, the next due first. A recipient must match all options."""

    now = utc_now()
    _print_recipients(
        *_recipients(chosen, limit, finished=False),
        {
            "STATE": _state,
            "TRIES": _tries,
            "NEXT": lambda r: "on hold" if r.on_hold else output.when(r, "next_attempt", now, brief=True),
            "LAST REPLY": _last_reply,
        },
        none="the queue is empty" if chosen == admin_pb2.Filter() else "no recipient in the queue matches",
        json=json,
    )


def _recipients(chosen: admin_pb2.Filter, limit: int, *, finished: bool) -> tuple[list[admin_pb2.Recipient], bool]:
    """Up to `limit` (0: all) recipients of the queue or, `finished`, of its history; and whether there are more."""

    async def question(channel: Any) -> tuple[list[admin_pb2.Recipient], bool]:
        stub = admin_service(channel)

        async def fetch(size: int, token: str) -> tuple[list[admin_pb2.Recipient], str]:
            answer: admin_pb2.ListRecipientsResponse | admin_pb2.ListHistoryResponse
            if finished:
                past = admin_pb2.ListHistoryRequest(filter=chosen, page_size=size, page_token=token)
                answer = await stub.ListHistory(past, timeout=TIMEOUT)
            else:
                live = admin_pb2.ListRecipientsRequest(filter=chosen, page_size=size, page_token=token)
                answer = await stub.ListRecipients(live, timeout=TIMEOUT)
            return list(answer.recipients), answer.next_page_token

        return await pages(fetch, limit)

    return ask(SERVICE, question)


def _print_recipients(
    found: list[admin_pb2.Recipient],
    more: bool,
    columns: Mapping[str, Callable[[admin_pb2.Recipient], str]],
    *,
    none: str,
    json: bool,
) -> None:
    """A table of recipients: number, sender, address, then `columns` (heading: cell); or all of them as JSON."""
    if json:
        output.print_json(found)
        return
    output.table(
        ("ID", "FROM", "TO", *columns),
        ((str(r.id), r.mail_from or "<>", r.address, *(cell(r) for cell in columns.values())) for r in found),
        none=none,
        prose=1,
    )
    if more:
        output.say(f"... more than {len(found)}; --limit 0 shows all")


def counted(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _state(recipient: admin_pb2.Recipient) -> str:
    if recipient.on_hold:
        return "held"
    return output.name_of(recipient, "state")


def _tries(recipient: admin_pb2.Recipient) -> str:
    return str(recipient.attempts)


def _last_reply(recipient: admin_pb2.Recipient) -> str:
    reply = _reply(recipient.last.reply) if recipient.HasField("last") else ""
    held = f"held: {recipient.hold_reason}" if recipient.on_hold and recipient.hold_reason else ""
    return "; ".join(part for part in (held, reply) if part)


def _reply(reply: types_pb2.Reply) -> str:
    words = " ".join(reply.lines)
    return " ".join(part for part in (str(reply.code) if reply.code else "", reply.enhanced, words) if part)[:200]


@app.command()
def show(
    message: Annotated[str, typer.Argument(metavar="ID", help=a.MESSAGE)],
    json: a.Json = False,
) -> None:
    """Show one message: envelope, recipients, and each attempt with its reply and its route."""

    async def question(channel: Any) -> admin_pb2.GetMessageResponse:
        stub = admin_service(channel)
        return await stub.GetMessage(
            admin_pb2.GetMessageRequest(message_id=await _message_of(stub, message)), timeout=TIMEOUT
        )

    found = ask(SERVICE, question)
    if json:
        output.print_json(found)
        return
    now = utc_now()
    _print_message(found, now)
    if found.recipients_total > len(found.recipients):
        output.say(
            f"{len(found.recipients)} of {found.recipients_total} recipients are shown; "
            f"`mailrail queue list {message} --limit 0` and `mailrail queue history {message} --limit 0` list all"
        )
    for timeline in found.recipients:
        print()
        _print_recipient(timeline.recipient, now)
        for attempt in timeline.attempts:
            print()
            _print_attempt(attempt, now)


def _print_message(found: admin_pb2.GetMessageResponse, now: datetime.datetime) -> None:
    envelope = found.envelope
    number = next((t.recipient.message_id.hex() for t in found.recipients), "")  # as in our 250, Received and the logs
    output.facts(
        (
            ("Message", number),
            ("From", envelope.mail_from or "<>"),
            ("Subject", envelope.subject),
            ("Message-ID", envelope.message_id),
            ("Received", output.when(envelope, "received", now)),
            ("Client", " ".join(p for p in (envelope.client_name, envelope.client_ip) if p)),
            ("Account", output.ref(envelope, "account")),
            ("Origin", output.name_of(envelope, "origin")),
            ("Size", output.size_of(found.size)),
            ("Not before", output.when(envelope, "release", now)),
            ("TLS", output.name_of(envelope, "tls_requirement")),
            ("ENVID", envelope.envelope_id),
        )
    )


def _print_recipient(recipient: admin_pb2.Recipient, now: datetime.datetime) -> None:
    output.facts(
        (
            (f"#{recipient.id}", recipient.address),
            ("state", _state(recipient)),
            ("outcome", output.name_of(recipient, "outcome")),
            ("hold", recipient.hold_reason),
            ("next", "" if recipient.on_hold else output.when(recipient, "next_attempt", now)),
            ("finished", output.when(recipient, "finished", now)),
            ("expires", output.when(recipient, "expires", now)),
            ("bound to", output.ref(recipient, "override_transport")),
            ("site", recipient.site),
        )
    )


def _print_attempt(attempt: types_pb2.Attempt, now: datetime.datetime) -> None:
    peer = " ".join(dict.fromkeys(p for p in (attempt.mx_host, attempt.remote_ip) if p))
    transport = output.ref(attempt, "transport") or "direct"
    output.facts(
        (
            (f"  attempt {attempt.number}", output.when(attempt, "started", now)),
            ("  outcome", output.name_of(attempt, "outcome")),
            ("  transport", f"{transport} ({peer})" if peer else transport),
            ("  rule", a.rule(attempt)),
            ("  reason", attempt.reason),
            ("  TLS", _tls(attempt.tls) if attempt.HasField("tls") else ""),
            ("  reply", _reply(attempt.reply)),
        )
    )


def _tls(facts: types_pb2.TlsFacts) -> str:
    """Whether the connection was encrypted, then what was demanded."""
    made = " ".join(p for p in (facts.version, facts.cipher) if p) or "none"
    return "; ".join(p for p in (made, "session resumed" if facts.resumed else "", facts.verdict) if p)


async def _message_of(stub: "admin_pb2_grpc.QueueAdminServiceAsyncStub", text: str) -> bytes:
    """The message id that a UUID or the number of a recipient means."""
    if not a.is_number(text):
        return a.message_id(text)
    chosen = admin_pb2.Filter(recipient_ids=[int(text)])
    live = await stub.ListRecipients(admin_pb2.ListRecipientsRequest(filter=chosen, page_size=1), timeout=TIMEOUT)
    done = await stub.ListHistory(admin_pb2.ListHistoryRequest(filter=chosen, page_size=1), timeout=TIMEOUT)
    found = [r.message_id for r in (*live.recipients, *done.recipients)]
    if not found:
        output.stop(f"no recipient {text} in the queue or in its history")
    return found[0]


@app.command()
def content(
    message: Annotated[str, typer.Argument(metavar="ID", help=a.MESSAGE)],
) -> None:
    """Write the content of a message to standard output, octet for octet."""

    async def question(channel: Any) -> None:
        stub = admin_service(channel)
        request = admin_pb2.GetContentRequest(message_id=await _message_of(stub, message))
        async for part in stub.GetContent(request):
            sys.stdout.buffer.write(part.data)
        sys.stdout.buffer.flush()

    ask(SERVICE, question)


@app.command()
@a.choosing(a.FINISHED)
def history(
    chosen: admin_pb2.Filter,
    limit: a.Limit = 50,
    json: a.Json = False,
) -> None:
    """List finished recipients (delivered, failed or dropped), the newest first."""

    now = utc_now()
    _print_recipients(
        *_recipients(chosen, limit, finished=True),
        {
            "OUTCOME": lambda r: output.name_of(r, "outcome") or output.name_of(r, "state"),
            "TRIES": _tries,
            "FINISHED": lambda r: output.when(r, "finished", now, brief=True),
            "REPLY": _last_reply,
        },
        none="no recipient is finished yet" if chosen == admin_pb2.Filter() else "no recipient in the history matches",
        json=json,
    )


@app.command()
def stats(json: a.Json = False) -> None:
    """Show counts: queued, due, being delivered, on hold."""

    async def question(channel: Any) -> admin_pb2.GetStatsResponse:
        return await admin_service(channel).GetStats(admin_pb2.GetStatsRequest(), timeout=TIMEOUT)

    found = ask(SERVICE, question)
    if json:
        output.print_json(found)
        return
    output.facts(
        (
            ("queued", counted(found.queued, "recipient")),
            ("due", str(found.due)),
            ("in delivery", str(found.leased)),
            ("on hold", str(found.on_hold)),
            ("oldest", output.when(found, "oldest", utc_now())),
            ("stored", f"{counted(found.messages, 'message')}, {output.size_of(found.bytes)} {_STORED}"),
            ("shards", f"{found.shards_owned} owned by this queue process"),
            ("outbound", f"{counted(found.outbound_processes, 'process', 'processes')} connected"),
        )
    )


@app.command()
def sites(limit: a.Limit = 50, json: a.Json = False) -> None:
    """List the sites with mail: how much waits, how much is being delivered, which back off and why."""

    async def question(channel: Any) -> tuple[list[admin_pb2.Site], bool]:
        stub = admin_service(channel)

        async def fetch(size: int, token: str) -> tuple[list[admin_pb2.Site], str]:
            answer = await stub.ListSites(admin_pb2.ListSitesRequest(page_size=size, page_token=token), timeout=TIMEOUT)
            return list(answer.sites), answer.next_page_token

        return await pages(fetch, limit)

    found, more = ask(SERVICE, question)
    if json:
        output.print_json(found)
        return
    now = utc_now()
    output.table(
        ("SITE", "QUEUED", "IN DELIVERY", "WINDOW", "NEXT", "BACKOFF UNTIL", "LAST ERROR"),
        (
            (
                s.name,
                str(s.queued),
                str(s.in_flight),
                str(s.window) if 0 < s.window < _UNLIMITED else "",
                output.when(s, "next_due", now, brief=True),
                output.when(s, "backoff_until", now, brief=True),
                s.last_error[:160],
            )
            for s in found
            # Where the last mail went, the name stays for a while.
            if s.queued or s.in_flight or s.HasField("backoff_until") or s.last_error
        ),
        none="no site has mail waiting",
        prose=1,
    )
    if more:
        output.say(f"... more than {limit}; --limit 0 shows all")
