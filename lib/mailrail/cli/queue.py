"""`mailrail queue`: what is in the queue, why, and what to do about it (ADM-01, ADM-02)."""

import contextlib
import datetime
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import grpc
import typer
from google.protobuf.duration_pb2 import Duration

from mailrail.cli import arguments as a
from mailrail.cli import output
from mailrail.cli.connection import CHANGE_TIMEOUT, TIMEOUT, ask, pages
from mailrail.pb.queue.v1 import admin_pb2, admin_pb2_grpc, types_pb2

app = typer.Typer(no_args_is_help=True, help="See and change what is in the queue.")
holds = typer.Typer(no_args_is_help=True, help="Rules that put matching mail on hold, now and as it comes.")
app.add_typer(holds, name="holds")

SERVICE = "queue"

_STORED = "with those of mailboxes and what is not swept yet"
_UNLIMITED = 1_000_000  # the window where nothing is dialled
_LOOKED_AT = 1000
"""Of so many recipients that were changed it is asked whether they are on hold: a page of the API."""


def _stub(channel: Any) -> "admin_pb2_grpc.QueueAdminServiceAsyncStub":
    stub: admin_pb2_grpc.QueueAdminServiceAsyncStub = admin_pb2_grpc.QueueAdminServiceStub(channel)
    return stub


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


# --- reading ----------------------------------------------------------------------------------------------------------


@app.command("list")
@a.choosing(a.LIVE)
def list_recipients(
    chosen: admin_pb2.Filter,
    limit: a.Limit = 50,
    json: a.Json = False,
) -> None:
    """Recipients in the queue, the next due first. All options given must hold."""

    now = _now()
    _print_recipients(
        *_recipients(chosen, limit, finished=False),
        {
            "STATE": _state,
            "TRIES": _tries,
            "NEXT": lambda r: "on hold" if r.on_hold else output.when(r, "next_attempt", now, brief=True),
            "LAST REPLY": _last_reply,
        },
        none="the queue is empty" if chosen == admin_pb2.Filter() else "nothing in the queue matches",
        json=json,
    )


def _recipients(chosen: admin_pb2.Filter, limit: int, *, finished: bool) -> tuple[list[admin_pb2.Recipient], bool]:
    """Up to `limit` (0: all) recipients of the queue or, `finished`, of its history; and whether there are more."""

    async def question(channel: Any) -> tuple[list[admin_pb2.Recipient], bool]:
        stub = _stub(channel)

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


def _count(number: int, one: str, many: str = "") -> str:
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
    """One message whole: envelope, recipients, every attempt with its reply and its reason."""

    async def question(channel: Any) -> admin_pb2.GetMessageResponse:
        stub = _stub(channel)
        return await stub.GetMessage(
            admin_pb2.GetMessageRequest(message_id=await _message_of(stub, message)), timeout=TIMEOUT
        )

    found = ask(SERVICE, question)
    if json:
        output.print_json(found)
        return
    envelope, now = found.envelope, _now()
    output.facts(
        (
            (
                "Message",
                next((t.recipient.message_id.hex() for t in found.recipients), ""),
            ),  # as in 250, Received and logs
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
    if found.recipients_total > len(found.recipients):
        output.say(
            f"{len(found.recipients)} of {found.recipients_total} recipients are shown; "
            f"`mailrail queue list {message} --limit 0` and `mailrail queue history {message} --limit 0` list all"
        )
    for timeline in found.recipients:
        r = timeline.recipient
        print()
        output.facts(
            (
                (f"#{r.id}", r.address),
                ("state", _state(r)),
                ("outcome", output.name_of(r, "outcome")),
                ("hold", r.hold_reason),
                ("next", "" if r.on_hold else output.when(r, "next_attempt", now)),
                ("finished", output.when(r, "finished", now)),
                ("expires", output.when(r, "expires", now)),
                ("own transport", output.ref(r, "override_transport")),
                ("site", r.site),
            )
        )
        for attempt in timeline.attempts:
            way = output.ref(attempt, "transport") or "direct"
            peer = " ".join(dict.fromkeys(p for p in (attempt.mx_host, attempt.remote_ip) if p))
            print()
            output.facts(
                (
                    (f"  attempt {attempt.number}", output.when(attempt, "started", now)),
                    ("  outcome", output.name_of(attempt, "outcome")),
                    ("  by", " to ".join(p for p in (way, peer) if p)),
                    ("  because", attempt.reason),
                    ("  TLS", _tls(attempt.tls) if attempt.HasField("tls") else ""),
                    ("  reply", _reply(attempt.reply)),
                )
            )


def _tls(facts: types_pb2.TlsFacts) -> str:
    """Whether the connection was encrypted, then what was demanded."""
    return "; ".join(p for p in (" ".join(p for p in (facts.version, facts.cipher) if p) or "none", facts.verdict) if p)


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
    """The message itself, octet for octet, on standard output."""

    async def question(channel: Any) -> None:
        stub = _stub(channel)
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
    """Recipients that are final: delivered, failed or dropped, the newest first."""

    now = _now()
    _print_recipients(
        *_recipients(chosen, limit, finished=True),
        {
            "OUTCOME": lambda r: output.name_of(r, "outcome") or output.name_of(r, "state"),
            "TRIES": _tries,
            "FINISHED": lambda r: output.when(r, "finished", now, brief=True),
            "REPLY": _last_reply,
        },
        none="nothing has been finished yet" if chosen == admin_pb2.Filter() else "nothing in the history matches",
        json=json,
    )


@app.command()
def stats(json: a.Json = False) -> None:
    """Counts: queued, due, under way, on hold."""

    async def question(channel: Any) -> admin_pb2.GetStatsResponse:
        return await _stub(channel).GetStats(admin_pb2.GetStatsRequest(), timeout=TIMEOUT)

    found = ask(SERVICE, question)
    if json:
        output.print_json(found)
        return
    output.facts(
        (
            ("queued", _count(found.queued, "recipient")),
            ("due", str(found.due)),
            ("under way", str(found.leased)),
            ("on hold", str(found.on_hold)),
            ("oldest", output.when(found, "oldest", _now())),
            ("stored", f"{_count(found.messages, 'message')}, {output.size_of(found.bytes)}, {_STORED}"),
            ("shards", f"{found.shards_owned} owned by this queue process"),
            ("outbound", f"{_count(found.outbound_nodes, 'process', 'processes')} connected"),
        )
    )


@app.command()
def sites(limit: a.Limit = 50, json: a.Json = False) -> None:
    """Next hops with mail: what waits for each, what is under way, which are paused and why."""

    async def question(channel: Any) -> tuple[list[admin_pb2.Site], bool]:
        stub = _stub(channel)

        async def fetch(size: int, token: str) -> tuple[list[admin_pb2.Site], str]:
            answer = await stub.ListSites(admin_pb2.ListSitesRequest(page_size=size, page_token=token), timeout=TIMEOUT)
            return list(answer.sites), answer.next_page_token

        return await pages(fetch, limit)

    found, more = ask(SERVICE, question)
    if json:
        output.print_json(found)
        return
    now = _now()
    output.table(
        ("SITE", "QUEUED", "UNDER WAY", "WINDOW", "NEXT", "PAUSED UNTIL", "LAST ERROR"),
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
        none="no next hop has mail waiting",
        prose=1,
    )
    if more:
        output.say(f"... more than {limit}; --limit 0 shows all")


# --- changing ---------------------------------------------------------------------------------------------------------


def _tell(
    chosen: admin_pb2.Filter,
    changes: Sequence[admin_pb2.Change],
    count: admin_pb2.ChangeCount,
    done: str,
    json: bool,
) -> None:
    """Say what a change did; exit status 1 when it met nobody."""
    met = max(count.recipients, len(changes))  # a queue of before counts nothing and lists all
    if json:
        output.print_json(list(changes))
        if count.truncated:
            output.note(f"{met} recipients {done}; the first {len(changes)} of them are listed")
    elif changes:
        pending = max(count.pending, sum(c.pending for c in changes))
        tail = f"; for {pending} of them when the attempt that runs has ended" if pending else ""
        output.say(f"{_count(met, 'recipient')} {done}{tail}")
    if not changes:
        if json:
            raise typer.Exit(output.REFUSED)
        output.stop("no recipient matches")
    # Of ids typed together one may be wrong, or final meanwhile: that shall not pass for done.
    reached = {c.recipient_id for c in changes}
    missed = [str(i) for i in dict.fromkeys(chosen.recipient_ids) if i not in reached and not count.truncated]
    if missed:
        output.note(f"not changed, for they are not in the queue or not chosen by the options: {', '.join(missed)}")


def _change(method: str, request: Any, done: str, json: bool, *, held: bool = False) -> None:
    """`held`: recipients on hold are changed, too, without going on; say how many."""

    async def question(channel: Any) -> tuple[Any, int]:
        stub = _stub(channel)
        answer = await getattr(stub, method)(request, timeout=CHANGE_TIMEOUT)
        return answer, await _on_hold(stub, answer.changes) if held and answer.changes else 0

    answer, waiting = ask(SERVICE, question, doing=f"recipients are being {done}")
    _tell(request.filter, answer.changes, answer.count, done, json)
    if waiting:
        least = "at least " if len(answer.changes) > _LOOKED_AT else ""
        are = "is" if waiting == 1 else "are"
        output.note(f"{least}{waiting} of them {are} on hold until `mailrail queue unhold`")


async def _on_hold(stub: "admin_pb2_grpc.QueueAdminServiceAsyncStub", changes: Sequence[admin_pb2.Change]) -> int:
    """How many of those changed are on hold. By number, which is cheap; counting all holds is a pass over the queue.

    The change is done: an answer that does not come makes none of it undone, and counts as none.
    """
    chosen = admin_pb2.Filter(recipient_ids=[c.recipient_id for c in changes[:_LOOKED_AT]], on_hold=True)
    request = admin_pb2.ListRecipientsRequest(filter=chosen, page_size=_LOOKED_AT)
    with contextlib.suppress(grpc.aio.AioRpcError):
        return len((await stub.ListRecipients(request, timeout=TIMEOUT)).recipients)
    return 0


Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, as it does before --all alone.")]


def _sure(chosen: admin_pb2.Filter, yes: bool, what: str) -> None:
    """Ask before something final is done to the whole queue; without a terminal --yes must say it."""
    if not chosen.all or yes:
        return
    if not sys.stdin.isatty():
        output.stop(f"this would {what} every recipient in the queue; add --yes to say so", output.USAGE)
    if not typer.confirm(f"{what} every recipient in the queue?"):
        output.stop("nothing was changed")


@app.command()
@a.choosing(a.TO_CHANGE)
def hold(
    chosen: admin_pb2.Filter,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, for whoever looks later.")] = "",
    json: a.Json = False,
) -> None:
    """Keep recipients from being tried. Time on hold counts for neither attempts nor lifetime."""
    _change("Hold", admin_pb2.HoldRequest(filter=chosen, reason=reason), "put on hold", json)


@app.command()
@a.choosing(a.TO_CHANGE)
def unhold(
    chosen: admin_pb2.Filter,
    json: a.Json = False,
) -> None:
    """Let held recipients go on."""
    _change("Unhold", admin_pb2.UnholdRequest(filter=chosen), "released", json)


@app.command()
@a.choosing(a.TO_CHANGE)
def kick(
    chosen: admin_pb2.Filter,
    json: a.Json = False,
) -> None:
    """Try now instead of at the planned time."""
    _change("Kick", admin_pb2.KickRequest(filter=chosen), "made due now", json, held=True)


@app.command()
@a.choosing(a.TO_CHANGE)
def schedule(
    chosen: admin_pb2.Filter,
    at: Annotated[str, typer.Option("--at", metavar="TIME", help="Next attempt at this time.")] = "",
    within: Annotated[str, typer.Option("--in", metavar="DURATION", help="Next attempt so long from now.")] = "",
    later: Annotated[
        str, typer.Option("--later", metavar="DURATION", help="So much later than planned; -1h: earlier.")
    ] = "",
    json: a.Json = False,
) -> None:
    """Move the next attempt: exactly one of --at, --in and --later."""
    if sum(map(bool, (at, within, later))) != 1:
        output.stop("give exactly one of --at, --in and --later", output.USAGE)
    request = admin_pb2.ScheduleRequest(filter=chosen)
    if at:
        request.at.CopyFrom(a.stamp(a.moment(at)))
    else:
        span = Duration()
        span.FromTimedelta(a.duration(within or later))
        (request.from_now if within else request.from_scheduled).CopyFrom(span)
    _change("Schedule", request, "rescheduled", json, held=True)


@app.command()
@a.choosing(a.TO_CHANGE)
def fail(
    chosen: admin_pb2.Filter,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="What the sender reads in the notification.")
    ] = "",
    yes: Yes = False,
    json: a.Json = False,
) -> None:
    """Give up now and tell the sender. A delivery that succeeds meanwhile wins."""
    _sure(chosen, yes, "fail")
    _change("Fail", admin_pb2.FailRequest(filter=chosen, reason=reason), "failed", json)


@app.command()
@a.choosing(a.TO_CHANGE)
def drop(
    chosen: admin_pb2.Filter,
    yes: Yes = False,
    json: a.Json = False,
) -> None:
    """Remove now and tell nobody. A delivery that succeeds meanwhile wins."""
    _sure(chosen, yes, "drop")
    _change("Drop", admin_pb2.DropRequest(filter=chosen), "dropped", json)


@app.command("set-transport")
@a.choosing(a.TO_CHANGE)
def set_transport(
    target: Annotated[
        str, typer.Argument(metavar="NS/NAME", help="A MailTransport, or `routes`: let the routes decide again.")
    ],
    chosen: admin_pb2.Filter,
    json: a.Json = False,
) -> None:
    """Send by this transport, whatever the routes say, from the next attempt on (`kick`: now)."""
    request = admin_pb2.SetTransportRequest(filter=chosen)
    if target != "routes":
        request.transport.CopyFrom(a.object_ref("MailTransport", target))
    done = (
        "routed by the routes again"
        if target == "routes"
        else f"bound to {request.transport.namespace}/{request.transport.name}"
    )
    _change("SetTransport", request, done, json)


@app.command("set-tls")
@a.choosing(a.TO_CHANGE)
def set_tls(
    requirement: Annotated[str, typer.Argument(metavar="required|default|no", help="What to demand of TLS.")],
    chosen: admin_pb2.Filter,
    json: a.Json = False,
) -> None:
    """Change what queued messages demand of TLS (RFC 8689), from the next attempt on."""
    values = {
        "required": (types_pb2.TLS_REQUIREMENT_REQUIRED, "set to demand TLS"),
        "default": (types_pb2.TLS_REQUIREMENT_UNSPECIFIED, "set to demand of TLS what the transport says"),
        "no": (types_pb2.TLS_REQUIREMENT_NO, "set to go even where no TLS can be had"),
    }
    if requirement not in values:
        output.stop(f"{requirement!r}: write required, default or no", output.USAGE)
    request = admin_pb2.SetTlsRequirementRequest(filter=chosen, tls_requirement=values[requirement][0])
    _change("SetTlsRequirement", request, values[requirement][1], json)


# --- hold rules -------------------------------------------------------------------------------------------------------


@holds.command("list")
def list_hold_rules(json: a.Json = False) -> None:
    """The rules that hold mail."""

    async def question(channel: Any) -> admin_pb2.ListHoldRulesResponse:
        return await _stub(channel).ListHoldRules(admin_pb2.ListHoldRulesRequest(), timeout=TIMEOUT)

    found = list(ask(SERVICE, question).rules)
    if json:
        output.print_json(found)
        return
    now = _now()
    output.table(
        ("ID", "ACCOUNT", "FROM DOMAIN", "TO DOMAIN", "SINCE", "COMMENT"),
        (
            (
                str(r.id),
                r.account or "any",
                r.from_domain or "any",
                r.to_domain or "any",
                output.when(r, "created", now),
                r.comment,
            )
            for r in found
        ),
        none="no hold rules",
        prose=1,
    )


@holds.command("add")
def add_hold_rule(
    account: a.Account = "",
    from_domain: a.FromDomain = "",
    to_domain: a.ToDomain = "",
    everything: a.All = False,
    comment: Annotated[
        str, typer.Option("--comment", "--reason", metavar="TEXT", help="Why, for whoever looks later.")
    ] = "",
    json: a.Json = False,
) -> None:
    """Hold what matches, now and as it comes. All options given must hold; --all alone holds everything."""
    if not (account or from_domain or to_domain or everything):
        output.stop("say what to hold: --account, --from-domain, --to-domain, or --all", output.USAGE)
    rule = admin_pb2.HoldRule(
        account=a.account_name(account), from_domain=from_domain, to_domain=to_domain, comment=comment
    )

    async def question(channel: Any) -> tuple[admin_pb2.CreateHoldRuleResponse, bool]:
        stub = _stub(channel)
        made = await stub.CreateHoldRule(admin_pb2.CreateHoldRuleRequest(rule=rule), timeout=CHANGE_TIMEOUT)
        return made, not rule.account or await _is_there(stub, rule.account)

    made, known = ask(SERVICE, question, doing="recipients are being put on hold")
    if not known:
        output.note(f"there is no account {rule.account}; the rule holds what is submitted once there is")
    if json:
        output.print_json(made)
        return
    output.say(f"hold rule {made.rule.id} made; {_count(made.held, 'queued recipient')} put on hold")


async def _is_there(stub: "admin_pb2_grpc.QueueAdminServiceAsyncStub", account: str) -> bool:
    """Whether the configuration in force has an account, which explaining a message of it tells.

    Asked when the rule is made: an answer that does not come makes it no less made, and counts as yes.
    """
    try:
        await stub.Explain(admin_pb2.ExplainRequest(to="anybody@example.invalid", account=account), timeout=TIMEOUT)
    except grpc.aio.AioRpcError as error:
        return error.code() is not grpc.StatusCode.INVALID_ARGUMENT
    return True


@holds.command("remove")
def remove_hold_rule(rule: Annotated[int, typer.Argument(metavar="ID", min=1, help="From `holds list`.")]) -> None:
    """Remove a rule. What it held stays held until `mailrail queue unhold`."""

    async def question(channel: Any) -> None:
        await _stub(channel).DeleteHoldRule(admin_pb2.DeleteHoldRuleRequest(id=rule), timeout=TIMEOUT)

    ask(SERVICE, question)
    output.say(f"hold rule {rule} removed; what it held stays held until `mailrail queue unhold`")
