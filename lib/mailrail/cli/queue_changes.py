"""The commands of `mailrail queue` that change recipients (ADM-01, ADM-02)."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final
from uuid import UUID, uuid4

import grpc
import typer
from google.protobuf.duration_pb2 import Duration

from mailrail.cli import arguments as a
from mailrail.cli import output
from mailrail.cli.connection import CHANGE_TIMEOUT, TIMEOUT, ask
from mailrail.cli.queue import SERVICE, admin_service, counted, search
from mailrail.pb.queue.v1 import admin_pb2, admin_pb2_grpc, types_pb2

app = typer.Typer()

_MANY: Final = 100
"""Recipients above which a change that cannot be undone is confirmed."""
_SAMPLES: Final = 5
"""Recipients that the question shows."""
_COUNTED: Final = 10_000
"""Recipients that are counted for that; of more it is said that there are at least so many."""
_LOOKED_AT = 1000
"""Of so many recipients that were changed it is asked whether they are on hold: a page of the API."""


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
    elif met:
        pending = max(count.pending, sum(c.state == admin_pb2.CHANGE_STATE_PENDING for c in changes))
        tail = f"; {pending} of them as soon as the current attempt ends" if pending else ""
        output.say(f"{counted(met, 'recipient')} {done}{tail}")
    if not met:
        if json:
            raise typer.Exit(output.REFUSED)
        output.stop("no recipient matches")
    # Of ids typed together one may be wrong, or final meanwhile: that shall not pass for done.
    reached = {c.recipient_id for c in changes}
    missed = [str(i) for i in dict.fromkeys(chosen.recipient_ids) if i not in reached and not count.truncated]
    if missed:
        output.note(f"not changed (not in the queue, or excluded by your options): {', '.join(missed)}")


def _change(method: str, request: Any, done: str, json: bool, *, held: bool = False, interrupted: str = "") -> None:
    """`held`: recipients on hold are changed, too, without going on; say how many.

    `interrupted`: what is said besides when the call fails.
    """

    async def question(channel: Any) -> tuple[Any, int]:
        stub = admin_service(channel)
        answer = await getattr(stub, method)(request, timeout=CHANGE_TIMEOUT)
        return answer, await _on_hold(stub, answer.changes) if held and answer.changes else 0

    try:
        answer, waiting = ask(SERVICE, question, doing=f"recipients are being {done}")
    except typer.Exit as error:
        if interrupted and error.exit_code != output.USAGE:
            output.note(interrupted)
        raise
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


Yes = Annotated[
    bool, typer.Option("--yes", "-y", help=f"Do not ask for confirmation (asked for more than {_MANY} recipients).")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say how many would be changed, and change nothing.")]


def is_terminal() -> bool:
    """Whether somebody is there to be asked."""
    return sys.stdin.isatty()


@dataclass(frozen=True, slots=True)
class _Preview:
    """What a change would meet."""

    number: int
    words: str
    """The number for people; "at least" or "about" where it is not exact."""
    exact: bool
    samples: Sequence[admin_pb2.Recipient]


async def _preview(stub: "admin_pb2_grpc.QueueAdminServiceAsyncStub", chosen: admin_pb2.Filter) -> _Preview:
    if chosen.all:
        stats = await stub.GetStats(admin_pb2.GetStatsRequest(), timeout=TIMEOUT)
        found = await search(stub, chosen, _SAMPLES, finished=False)
        number, how = stats.queued, "about " if stats.HasField("counted") else ""
    else:
        found = await search(stub, chosen, _COUNTED, finished=False)
        number, how = len(found.recipients), "at least " if found.cursor or found.stopped_at else ""
    return _Preview(number, how + counted(number, "recipient"), not how, found.recipients[:_SAMPLES])


def _ask_back(chosen: admin_pb2.Filter, done: str, *, yes: bool, dry_run: bool, json: bool) -> None:
    """Ask before many recipients are changed, with their number and some of them (CMD-03); without a terminal --yes
    must say it. With `dry_run` say it, and end the command."""
    few = not chosen.all and len(chosen.recipient_ids) in range(1, _MANY + 1)
    if not dry_run and (yes or few):
        return
    preview = ask(SERVICE, lambda channel: _preview(admin_service(channel), chosen), doing="counting recipients")
    if dry_run:
        if json:
            plain = {"recipients": preview.number, "exact": preview.exact, "samples": list(preview.samples)}
            output.print_json(plain)
        elif preview.number or not preview.exact:
            output.say(f"{preview.words} would be {done}")
            _print_samples(preview, output.say)
        if preview.number == 0 and preview.exact:
            output.stop("no recipient matches")
        raise typer.Exit
    if preview.exact and preview.number <= (0 if chosen.all else _MANY):
        return
    if not is_terminal():
        output.stop(f"this would change {preview.words}; add --yes to confirm", output.USAGE)
    _print_samples(preview, output.note)
    if not typer.confirm(f"{preview.words} will be {done}. Go on?", err=True):
        output.stop("nothing was changed")


def _print_samples(preview: _Preview, say: Callable[[str], None]) -> None:
    for one in preview.samples:
        say(f"  {one.id} {one.mail_from or '<>'} to {one.address}")
    if preview.number > len(preview.samples):
        say("  ...")


@app.command()
@a.choosing(a.TO_CHANGE)
def hold(
    chosen: admin_pb2.Filter,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; shown to other administrators.")] = "",
    json: a.Json = False,
) -> None:
    """Put recipients on hold: no attempts until `unhold`. Time on hold does not count for the lifetime."""
    _change("Hold", admin_pb2.HoldRequest(filter=chosen, reason=reason), "put on hold", json)


@app.command()
@a.choosing(a.TO_CHANGE)
def unhold(
    chosen: admin_pb2.Filter,
    json: a.Json = False,
) -> None:
    """Release recipients from hold."""
    _change("Unhold", admin_pb2.UnholdRequest(filter=chosen), "released", json)


@app.command()
@a.choosing(a.TO_CHANGE)
def kick(
    chosen: admin_pb2.Filter,
    json: a.Json = False,
) -> None:
    """Try now, in place of at the planned time."""
    _change("Kick", admin_pb2.KickRequest(filter=chosen), "made due now", json, held=True)


@app.command()
@a.choosing(a.TO_CHANGE)
def schedule(
    chosen: admin_pb2.Filter,
    at: Annotated[str, typer.Option("--at", metavar="TIME", help="Try at this time.")] = "",
    within: Annotated[str, typer.Option("--in", metavar="DURATION", help="Try this long from now.")] = "",
    later: Annotated[
        str, typer.Option("--later", metavar="DURATION", help="Try this much later than planned; -1h is earlier.")
    ] = "",
    operation: Annotated[
        str,
        typer.Option("--operation", metavar="ID", help="Continue a move that was interrupted; its message has the id."),
    ] = "",
    json: a.Json = False,
) -> None:
    """Move the next attempt; give exactly one of --at, --in and --later."""
    if sum(map(bool, (at, within, later))) != 1:
        output.stop("give exactly one of --at, --in and --later", output.USAGE)
    identity = _operation(operation)
    request = admin_pb2.ScheduleRequest(filter=chosen, operation_id=identity.bytes)
    if at:
        request.at.CopyFrom(a.stamp(a.moment(at)))
    else:
        span = Duration()
        span.FromTimedelta(a.duration(within or later))
        (request.from_now if within else request.from_scheduled).CopyFrom(span)
    # Repeated as it is, it would move some recipients twice.
    interrupted = f"to continue without moving a recipient twice, add: --operation {identity}"
    _change("Schedule", request, "rescheduled", json, held=True, interrupted=interrupted)


def _operation(given: str) -> UUID:
    if not given:
        return uuid4()
    try:
        return UUID(given)
    except ValueError:
        output.stop(f"{given!r} is not an operation id", output.USAGE)


@app.command()
@a.choosing(a.TO_CHANGE)
def fail(
    chosen: admin_pb2.Filter,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="The reason that the sender reads in the notification.")
    ] = "",
    yes: Yes = False,
    dry_run: DryRun = False,
    json: a.Json = False,
) -> None:
    """Fail recipients now and notify the sender. An attempt that succeeds meanwhile counts."""
    _ask_back(chosen, "failed", yes=yes, dry_run=dry_run, json=json)
    _change("Fail", admin_pb2.FailRequest(filter=chosen, reason=reason), "failed", json)


@app.command()
@a.choosing(a.TO_CHANGE)
def drop(
    chosen: admin_pb2.Filter,
    yes: Yes = False,
    dry_run: DryRun = False,
    json: a.Json = False,
) -> None:
    """Remove recipients now, without a notification. An attempt that succeeds meanwhile counts."""
    _ask_back(chosen, "dropped", yes=yes, dry_run=dry_run, json=json)
    _change("Drop", admin_pb2.DropRequest(filter=chosen), "dropped", json)


@app.command("set-transport")
@a.choosing(a.TO_CHANGE)
def set_transport(
    target: Annotated[
        str, typer.Argument(metavar="NS/NAME", help="A MailTransport, or `routes` to let the routes decide again.")
    ],
    chosen: admin_pb2.Filter,
    json: a.Json = False,
) -> None:
    """Bind recipients to a transport, whatever the routes say, from the next attempt on."""
    request = admin_pb2.SetTransportRequest(filter=chosen)
    if target != "routes":
        request.transport.CopyFrom(a.object_ref("MailTransport", target))
    done = (
        "routed by the routes again"
        if target == "routes"
        else f"bound to {request.transport.namespace}/{request.transport.name}"
    )
    _change("SetTransport", request, done, json)


_TLS: Final = {
    "required": (types_pb2.TLS_REQUIREMENT_REQUIRED, 'set to TLS "required": sent over verified TLS or not at all'),
    "default": (types_pb2.TLS_REQUIREMENT_UNSPECIFIED, 'set to TLS "default": the transport decides'),
    "no": (types_pb2.TLS_REQUIREMENT_NO, 'set to TLS "no": sent without TLS if necessary'),
}


@app.command("set-tls")
@a.choosing(a.TO_CHANGE)
def set_tls(
    requirement: Annotated[str, typer.Argument(metavar="required|default|no", help="The TLS requirement.")],
    chosen: admin_pb2.Filter,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why; `mailrail queue show` tells it with the change.")
    ] = "",
    yes: Yes = False,
    dry_run: DryRun = False,
    json: a.Json = False,
) -> None:
    """Change what whole messages demand of TLS (RFC 8689), from their next attempt on.

    All waiting recipients of each message that you choose are changed. An attempt under way goes on as it began.
    """
    if requirement not in _TLS:
        output.stop(f"{requirement!r} is not a TLS requirement; write required, default or no", output.USAGE)
    value, done = _TLS[requirement]
    _ask_back(chosen, f'set to TLS "{requirement}"', yes=yes, dry_run=dry_run, json=json)
    request = admin_pb2.SetTlsRequirementRequest(filter=chosen, tls_requirement=value, reason=reason)
    _change("SetTlsRequirement", request, done, json)
