"""`mailrail queue holds`: rules that put matching mail on hold."""

from typing import Annotated, Any

import grpc
import typer

from mailrail.cli import arguments as a
from mailrail.cli import output
from mailrail.cli.connection import CHANGE_TIMEOUT, TIMEOUT, ask
from mailrail.cli.queue import SERVICE, admin_service, counted, utc_now
from mailrail.pb.queue.v1 import admin_pb2, admin_pb2_grpc

app = typer.Typer(no_args_is_help=True, help="Rules that put matching mail on hold.")


@app.command("list")
def list_hold_rules(json: a.Json = False) -> None:
    """List the hold rules."""

    async def question(channel: Any) -> admin_pb2.ListHoldRulesResponse:
        return await admin_service(channel).ListHoldRules(admin_pb2.ListHoldRulesRequest(), timeout=TIMEOUT)

    found = list(ask(SERVICE, question).rules)
    if json:
        output.print_json(found)
        return
    now = utc_now()
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


@app.command("add")
def add_hold_rule(
    account: a.Account = "",
    from_domain: a.FromDomain = "",
    to_domain: a.ToDomain = "",
    everything: a.All = False,
    comment: Annotated[
        str, typer.Option("--comment", "--reason", metavar="TEXT", help="Why; shown to other administrators.")
    ] = "",
    json: a.Json = False,
) -> None:
    """Add a rule that puts matching mail on hold, queued and new. Mail must match all options."""
    if not (account or from_domain or to_domain or everything):
        output.stop("choose the mail to hold: give --account, --from-domain, --to-domain, or --all", output.USAGE)
    rule = admin_pb2.HoldRule(
        account=a.account_name(account), from_domain=from_domain, to_domain=to_domain, comment=comment
    )

    async def question(channel: Any) -> tuple[admin_pb2.CreateHoldRuleResponse, bool]:
        stub = admin_service(channel)
        made = await stub.CreateHoldRule(admin_pb2.CreateHoldRuleRequest(rule=rule), timeout=CHANGE_TIMEOUT)
        return made, not rule.account or await _is_there(stub, rule.account)

    made, known = ask(SERVICE, question, doing="recipients are being put on hold")
    if not known:
        output.note(f"account {rule.account} does not exist; the rule applies as soon as it does")
    if json:
        output.print_json(made)
        return
    output.say(f"added hold rule {made.rule.id}; {counted(made.held, 'queued recipient')} put on hold")


async def _is_there(stub: "admin_pb2_grpc.QueueAdminServiceAsyncStub", account: str) -> bool:
    """Whether the configuration in force has an account, which explaining a message of it tells.

    Asked when the rule is made: an answer that does not come makes it no less made, and counts as yes.
    """
    try:
        await stub.Explain(admin_pb2.ExplainRequest(to="anybody@example.invalid", account=account), timeout=TIMEOUT)
    except grpc.aio.AioRpcError as error:
        return error.code() is not grpc.StatusCode.INVALID_ARGUMENT
    return True


@app.command("remove")
def remove_hold_rule(
    rule: Annotated[int, typer.Argument(metavar="ID", min=1, help="Hold rule number, from `holds list`.")],
) -> None:
    """Remove a hold rule. Mail that it put on hold stays on hold until `mailrail queue unhold`."""

    async def question(channel: Any) -> None:
        await admin_service(channel).DeleteHoldRule(admin_pb2.DeleteHoldRuleRequest(id=rule), timeout=TIMEOUT)

    ask(SERVICE, question)
    output.say(f"removed hold rule {rule}; the mail that it put on hold stays on hold until `mailrail queue unhold`")
