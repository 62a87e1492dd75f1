"""`mailrail explain`: where a message would go at attempt n, and why (promise 3)."""

import datetime
from typing import Annotated, Any

import typer

from mailrail.cli import arguments as a
from mailrail.cli import output
from mailrail.cli.connection import TIMEOUT, ask
from mailrail.cli.findings import print_findings
from mailrail.cli.queue import tls_of
from mailrail.pb.queue.v1 import admin_pb2, admin_pb2_grpc


def explain(
    recipient: Annotated[
        int | None, typer.Argument(metavar="ID", min=1, help="Recipient number, from `mailrail queue list`.")
    ] = None,
    sender: Annotated[str, typer.Option("--from", metavar="ADDRESS", help="The sender. Default: null.")] = "",
    to: Annotated[str, typer.Option("--to", metavar="ADDRESS", help="The recipient.")] = "",
    account: Annotated[
        str,
        typer.Option(
            "--account",
            metavar="NS/NAME",
            help="The submitting account, NS/NAME or login. Default: none.",
        ),
    ] = "",
    attempt: Annotated[
        int | None,
        typer.Option("--attempt", metavar="N", min=1, help="The attempt to explain, from 1.", show_default=False),
    ] = None,
    json: a.Json = False,
) -> None:
    """Explain where a message would go, and why: each rule in order of evaluation, and whether it matched."""
    if (recipient is None) == (not to):
        output.stop("give the number of a recipient in the queue, or --to with --from and --account", output.USAGE)
    if recipient is not None and (sender or account):
        output.stop(
            "a queued recipient has its own sender and account; leave out --from and --account",
            output.USAGE,
        )
    request = admin_pb2.ExplainRequest(recipient_id=recipient, to=to, account=a.qualified(account), attempt=attempt)
    setattr(request, "from", sender)  # a keyword in Python, a field in the API
    if to and account and not sender:  # who submits has an address, and routes of its domain
        output.note("without --from the reverse-path is null, and routes of domains do not apply")

    async def question(channel: Any) -> tuple[admin_pb2.ExplainResponse, admin_pb2.Recipient | None]:
        stub: admin_pb2_grpc.QueueAdminServiceAsyncStub = admin_pb2_grpc.QueueAdminServiceStub(channel)
        answer = await stub.Explain(request, timeout=TIMEOUT)
        return answer, await _queued(stub, recipient) if recipient is not None and not json else None

    found, queued = ask("queue", question)
    if json:
        output.print_json(found)
        return
    now = datetime.datetime.now(datetime.UTC)
    _print_decision(found, queued, now)
    if found.tried:
        print()
        _print_rules(found)
    if found.planned:
        print()
        _print_attempts(found, now)
    if found.HasField("authentication"):
        print()
        print_findings(found.authentication)


def _print_decision(
    found: admin_pb2.ExplainResponse, queued: admin_pb2.Recipient | None, now: datetime.datetime
) -> None:
    output.facts(
        (
            ("on hold", _held(queued)),
            ("result", _where(found.decision)),
            ("reason", found.decision.reason),
            ("attempt", str(found.attempt)),
            ("site", found.site),
            ("TLS", output.name_of(queued, "tls_requirement") if queued is not None else ""),
            ("TLS before", tls_of(queued.last) if queued is not None and queued.HasField("last") else ""),
            ("backoff until", output.when(found, "site_backoff_until", now)),
            ("revision", str(found.config_revision)),
        )
    )


def _print_rules(found: admin_pb2.ExplainResponse) -> None:
    output.table(
        ("", "LEVEL", "RULE", "REASON"),
        ((output.arrow() if r.matched else " ", r.level, a.rule(r) or r.rule, r.reason) for r in found.tried),
        none="",
        prose=1,
    )


def _print_attempts(found: admin_pb2.ExplainResponse, now: datetime.datetime) -> None:
    output.table(
        ("ATTEMPTS", "FIRST DUE", "LAST DUE", "RESULT", "REASON"),
        (
            (
                _attempts(p),
                output.when(p, "due", now, brief=True),
                output.when(p, "last_due", now, brief=True) if p.last_attempt > p.attempt else "",
                _where(p.decision),
                p.decision.reason,
            )
            for p in found.planned
        ),
        none="",
        prose=1,
    )


async def _queued(stub: "admin_pb2_grpc.QueueAdminServiceAsyncStub", recipient: int) -> admin_pb2.Recipient | None:
    """What the queue knows of a recipient; None where it is not there."""
    chosen = admin_pb2.Filter(recipient_ids=[recipient])
    found = await stub.ListRecipients(admin_pb2.ListRecipientsRequest(filter=chosen, page_size=1), timeout=TIMEOUT)
    return next(iter(found.recipients), None)


def _held(queued: admin_pb2.Recipient | None) -> str:
    """Why a recipient goes nowhere for now, whatever its route; empty when it is not on hold."""
    if queued is None or not queued.on_hold:
        return ""
    until = "until `mailrail queue unhold`"
    return f"{until}: {queued.hold_reason}" if queued.hold_reason else until


def _attempts(planned: admin_pb2.PlannedAttempt) -> str:
    return str(planned.attempt) + (f"-{planned.last_attempt}" if planned.last_attempt > planned.attempt else "")


def _where(decision: admin_pb2.RouteDecision) -> str:
    if decision.kind == admin_pb2.RouteDecision.KIND_UNKNOWN_RECIPIENT:
        return "refused: 550 5.1.1 unknown recipient"
    kind = output.name_of(decision, "kind").replace("_", " ")
    transport = output.ref(decision, "transport")
    return f"{kind} {transport}".strip()
