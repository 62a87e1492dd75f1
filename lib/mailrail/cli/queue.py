"""`mailrail queue`: what is in the queue, why, and what to do about it (ADM-01, ADM-02)."""

import datetime
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import typer

from mailrail.cli import arguments as a
from mailrail.cli import output
from mailrail.cli.connection import TIMEOUT, ask, pages
from mailrail.cli.findings import print_findings
from mailrail.kit.files import write_whole
from mailrail.pb.queue.v1 import admin_pb2, admin_pb2_grpc, types_pb2

app = typer.Typer(no_args_is_help=True, help="Show and change what is in the queue.")

SERVICE = "queue"

_STORED = "(including mailboxes and messages awaiting cleanup)"
GO_ON = 10.0
"""Seconds for which a search that the queue answers in stretches is gone on with."""
_PAGE = 500
_START = "start"
After = Annotated[
    str,
    typer.Option(
        "--after",
        metavar="CURSOR",
        help="Go on behind this cursor of an earlier answer; `start` begins. With --json the answer is then an object:"
        " recipients, complete, next.",
    ),
]
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
    after: After = "",
    json: a.Json = False,
) -> None:
    """List the recipients in the queue, the next due first. A recipient must match all options."""

    print_recipients(
        _recipients(chosen, limit, after, finished=False),
        live_columns(utc_now()),
        none="the queue is empty" if chosen == admin_pb2.Filter() else "no recipient in the queue matches",
        paged=bool(after),
        json=json,
    )


Columns = Mapping[str, Callable[[admin_pb2.Recipient], str]]
"""Of a table of recipients, beside number, sender and address: heading and cell."""


def live_columns(now: datetime.datetime) -> Columns:
    """What is shown of recipients in the queue."""
    return {
        "STATE": _state,
        "TRIES": _tries,
        "NEXT": lambda r: "on hold" if r.on_hold else output.when(r, "next_attempt", now, brief=True),
        "LAST REPLY": last_reply,
    }


def finished_columns(now: datetime.datetime) -> Columns:
    """What is shown of those that are finished."""
    return {
        "OUTCOME": lambda r: output.name_of(r, "outcome") or output.name_of(r, "state"),
        "TRIES": _tries,
        "FINISHED": lambda r: output.when(r, "finished", now, brief=True),
        "REPLY": last_reply,
    }


@dataclass(slots=True)
class FoundRecipients:
    """Some of the recipients that a list has."""

    recipients: list[admin_pb2.Recipient] = field(default_factory=list)
    cursor: str = ""
    """Where it goes on; empty: that was all."""
    stopped_at: str = ""
    """Set when the queue is still looking: what was looked at so far, in words."""


async def search(
    stub: "admin_pb2_grpc.QueueAdminServiceAsyncStub",
    chosen: admin_pb2.Filter,
    limit: int,
    after: str = "",
    *,
    finished: bool,
) -> FoundRecipients:
    """Up to `limit` (0: all) recipients of the queue or, `finished`, of its history, behind the cursor `after`.

    Where no index leads to what is meant, the queue answers a stretch at a time; that is gone on with for GO_ON.
    """
    found, until = FoundRecipients(cursor=after), time.monotonic() + GO_ON
    while True:
        size = _PAGE if limit == 0 else min(_PAGE, limit - len(found.recipients))
        answer: admin_pb2.ListRecipientsResponse | admin_pb2.ListHistoryResponse
        if finished:
            past = admin_pb2.ListHistoryRequest(filter=chosen, page_size=size, page_token=found.cursor)
            answer = await stub.ListHistory(past, timeout=TIMEOUT)
        else:
            live = admin_pb2.ListRecipientsRequest(filter=chosen, page_size=size, page_token=found.cursor)
            answer = await stub.ListRecipients(live, timeout=TIMEOUT)
        found.recipients += answer.recipients
        found.cursor = answer.next_page_token
        if not found.cursor or (limit and len(found.recipients) >= limit):
            return found
        if answer.incomplete and time.monotonic() >= until:
            looked_to = output.when(answer, "looked_to", utc_now())
            which = "that finished after" if finished else "that are due before"
            found.stopped_at = f"those {which} {looked_to}" if looked_to else "those in delivery"
            return found


def _recipients(chosen: admin_pb2.Filter, limit: int, after: str, *, finished: bool) -> FoundRecipients:
    cursor = "" if after == _START else after
    return ask(SERVICE, lambda channel: search(admin_service(channel), chosen, limit, cursor, finished=finished))


def print_recipients(found: FoundRecipients, columns: Columns, *, none: str, paged: bool, json: bool) -> None:
    """A table of recipients: number, sender, address, then `columns`; or all of them as JSON."""
    if json:
        output.print_json(page_json(found) if paged else found.recipients)
        if paged:
            return
    else:
        print_table(found, columns, none)
    if found.stopped_at:
        output.note(unfinished(found))
    elif found.cursor and not json:
        output.say(f"... more than {len(found.recipients)}; --limit 0 shows all")


def page_json(found: FoundRecipients) -> dict[str, Any]:
    """What was found, whether that is all that was asked for, and where the list goes on."""
    return {"recipients": found.recipients, "complete": not found.stopped_at, "next": found.cursor or None}


def unfinished(found: FoundRecipients) -> str:
    """That a search was broken off, and how it goes on (QRY-05)."""
    return f"not all was looked at, only {found.stopped_at}: there may be more, and --after {found.cursor} goes on"


def print_table(found: FoundRecipients, columns: Columns, none: str) -> None:
    """A table of recipients."""
    output.table(
        ("ID", "FROM", "TO", *columns),
        (
            (str(r.id), r.mail_from or "<>", r.address, *(cell(r) for cell in columns.values()))
            for r in found.recipients
        ),
        none="none was found so far" if found.stopped_at else none,
        prose=1,
    )


def counted(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _state(recipient: admin_pb2.Recipient) -> str:
    if recipient.on_hold:
        return "held"
    return output.name_of(recipient, "state")


def _tries(recipient: admin_pb2.Recipient) -> str:
    return str(recipient.attempts)


def last_reply(recipient: admin_pb2.Recipient) -> str:
    """What the next hop said last, or why the recipient is on hold, in one line."""
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
    """Show one message: envelope, who sent it, recipients, and each attempt with its reply and its route."""

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
    if found.envelope.HasField("authentication"):
        print()
        print_findings(found.envelope.authentication)
    if found.recipients_total > len(found.recipients):
        output.say(
            f"{len(found.recipients)} of {found.recipients_total} recipients are shown; "
            f"`mailrail queue list {message} --limit 0` and `mailrail queue history {message} --limit 0` list all"
        )
    for timeline in found.recipients:
        print()
        _print_recipient(timeline.recipient, found.envelope, now)
        for what in _in_order(timeline):
            print()
            if isinstance(what, types_pb2.Attempt):
                _print_attempt(what, now)
            else:
                _print_entry(what, now)


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


def _in_order(timeline: admin_pb2.RecipientTimeline) -> list[types_pb2.Attempt | types_pb2.TimelineEntry]:
    """What happened to a recipient, by time. Attempts stay in their order, whatever the clock did meanwhile."""
    entries = list(timeline.entries)
    found: list[types_pb2.Attempt | types_pb2.TimelineEntry] = []
    for attempt in timeline.attempts:
        if attempt.HasField("started"):
            while entries and entries[0].at.ToNanoseconds() < attempt.started.ToNanoseconds():
                found.append(entries.pop(0))
        found.append(attempt)
    return found + entries


def _print_recipient(recipient: admin_pb2.Recipient, envelope: types_pb2.Envelope, now: datetime.datetime) -> None:
    changed = recipient.tls_requirement != envelope.tls_requirement
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
            ("TLS", tls_requirement(recipient.tls_requirement) if changed else ""),
        )
    )


def tls_requirement(value: int) -> str:
    """What a message demands of TLS, in the words of `set-tls`."""
    words = {types_pb2.TLS_REQUIREMENT_REQUIRED: "required", types_pb2.TLS_REQUIREMENT_NO: "no"}
    return words.get(types_pb2.TlsRequirement.ValueType(value), "default")


def _print_entry(entry: types_pb2.TimelineEntry, now: datetime.datetime) -> None:
    if entry.WhichOneof("kind") != "tls_set":  # of a later release
        output.facts((("  changed", output.when(entry, "at", now)), ("  by", entry.actor)))
        return
    change = entry.tls_set
    output.facts(
        (
            ("  TLS set", output.when(entry, "at", now)),
            ("  to", f"{tls_requirement(change.to)} (before: {tls_requirement(getattr(change, 'from'))})"),
            ("  by", entry.actor),
            ("  reason", change.reason),
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
            ("  TLS", tls_of(attempt)),
            ("  reply", _reply(attempt.reply)),
        )
    )


_PROVEN: Final = {
    types_pb2.TLS_PROOF_PKIX: "proven by its certificate",
    types_pb2.TLS_PROOF_MTA_STS: "proven by its certificate and the MTA-STS policy",
    types_pb2.TLS_PROOF_DANE: "proven by DANE",
}
_UNPROVEN: Final = "not proven: its certificate is for the name that an unproven MX record has"
"""DANE-22: the name is shown beside it as the MX record has it, without its aliases."""


def tls_of(attempt: types_pb2.Attempt) -> str:
    """Whether the connection was encrypted and the server proven, then what was demanded; and why TLS kept the message
    from a host, in a word that metrics have too."""
    kept = f"kept from the host ({output.name_of(attempt, 'tls_cause')})" if attempt.tls_cause else ""
    if not attempt.HasField("tls"):
        return kept
    facts = attempt.tls
    made = " ".join(p for p in (facts.version, facts.cipher) if p) or "none"
    resumed = "session resumed" if facts.resumed else ""
    offered = "REQUIRETLS offered" if facts.requiretls else ""
    proven = _UNPROVEN if facts.mx_unproven else _PROVEN.get(facts.proof, "")
    parts = (made, resumed, proven, offered, kept, facts.verdict)
    return "; ".join(part for part in parts if part)


async def _message_of(stub: "admin_pb2_grpc.QueueAdminServiceAsyncStub", text: str) -> bytes:
    """The message id that a UUID or the number of a recipient means."""
    if not a.is_number(text):
        return a.message_id(text)
    chosen = admin_pb2.Filter(recipient_ids=[int(text)])
    live = await search(stub, chosen, 1, finished=False)
    if live.recipients:
        return live.recipients[0].message_id
    done = await search(stub, chosen, 1, finished=True)
    if not done.recipients and not done.stopped_at:
        output.stop(f"no recipient {text} in the queue or in its history")
    if done.stopped_at:
        output.stop(
            f"recipient {text} is not in the queue, nor among {done.stopped_at}, which is as far as its history was"
            " searched: name the message by its id"
        )
    return done.recipients[0].message_id


@app.command()
def content(
    message: Annotated[str, typer.Argument(metavar="ID", help=a.MESSAGE)],
) -> None:
    """Write the content of a message to standard output, octet for octet."""

    async def question(channel: Any) -> None:
        stub = admin_service(channel)
        request = admin_pb2.GetContentRequest(message_id=await _message_of(stub, message))
        async for part in stub.GetContent(request):
            write_whole(sys.stdout.buffer, part.data)
        sys.stdout.buffer.flush()

    ask(SERVICE, question)


@app.command()
@a.choosing(a.FINISHED)
def history(
    chosen: admin_pb2.Filter,
    limit: a.Limit = 50,
    after: After = "",
    json: a.Json = False,
) -> None:
    """List finished recipients (delivered, failed or dropped), the newest first."""

    print_recipients(
        _recipients(chosen, limit, after, finished=True),
        finished_columns(utc_now()),
        none="no recipient is finished yet" if chosen == admin_pb2.Filter() else "no recipient in the history matches",
        paged=bool(after),
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
    output.facts(stats_facts(found, utc_now()))


def stats_facts(found: admin_pb2.GetStatsResponse, now: datetime.datetime) -> list[tuple[str, str]]:
    """The counts by name, for people; those without a value are empty."""
    about = "about " if found.HasField("counted") else ""
    stored = "about " if found.estimated else ""
    return [
        ("queued", about + counted(found.queued, "recipient")),
        ("due", f"{about}{found.due}"),
        ("in delivery", str(found.leased)),
        ("on hold", f"{about}{found.on_hold}"),
        ("counted", output.when(found, "counted", now)),
        ("oldest", output.when(found, "oldest", now)),
        ("stored", f"{stored}{counted(found.messages, 'message')}, {output.size_of(found.bytes)} {_STORED}"),
        ("shards", f"{found.shards_owned} owned by this queue process"),
        ("outbound", f"{counted(found.outbound_processes, 'process', 'processes')} connected"),
    ]


SITE_COLUMNS: Final = ("SITE", "QUEUED", "IN DELIVERY", "WINDOW", "NEXT", "BACKOFF UNTIL", "LAST ERROR")


def site_row(site: admin_pb2.Site, now: datetime.datetime) -> tuple[str, ...]:
    """A site in SITE_COLUMNS."""
    return (
        site.name,
        f"{site.queued}+" if site.queued_at_least else str(site.queued),
        str(site.in_flight),
        str(site.window) if 0 < site.window < _UNLIMITED else "",
        output.when(site, "next_due", now, brief=True),
        output.when(site, "backoff_until", now, brief=True),
        site.last_error[:160],
    )


def is_in_use(site: admin_pb2.Site) -> bool:
    """Whether it has mail or trouble: where the last mail went, the name stays for a while."""
    return bool(site.queued or site.in_flight or site.HasField("backoff_until") or site.last_error)


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
        SITE_COLUMNS,
        (site_row(site, now) for site in found if is_in_use(site)),
        none="no site has mail waiting",
        prose=1,
    )
    if more:
        output.say(f"... more than {limit}; --limit 0 shows all")
