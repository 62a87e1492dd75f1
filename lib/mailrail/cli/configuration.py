"""`mailrail config`: which configuration runs where, its history, rolling back, and checking a folder beforehand."""

import asyncio
import datetime
import json as json_module
import secrets
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from mailrail.cli import arguments as a
from mailrail.cli import output
from mailrail.cli.connection import TIMEOUT, ask
from mailrail.pb.config.v1 import config_pb2, config_pb2_grpc

app = typer.Typer(no_args_is_help=True, help="Show, check and roll back the configuration.")

SERVICE = "config"

_LOOK_SECONDS = 0.2
"""Between two looks at who runs what."""


def _stub(channel: Any) -> "config_pb2_grpc.ConfigServiceAsyncStub":
    stub: config_pb2_grpc.ConfigServiceAsyncStub = config_pb2_grpc.ConfigServiceStub(channel)
    return stub


@app.command()
def history(
    limit: a.Limit = 20,
    json: a.Json = False,
) -> None:
    """List revisions, the newest first, with the findings of the compiler."""

    async def question(channel: Any) -> config_pb2.ListRevisionsResponse:
        return await _stub(channel).ListRevisions(
            config_pb2.ListRevisionsRequest(limit=limit or a.EVERYTHING), timeout=TIMEOUT
        )

    found = list(ask(SERVICE, question).revisions)
    if json:
        output.print_json([_with_findings(r) for r in found])
        return
    now = datetime.datetime.now(datetime.UTC)
    output.table(
        ("REVISION", "", "CREATED", "PUBLISHER", "CONTENT", "FINDINGS"),
        (
            (
                str(r.revision),
                "pinned" if r.pinned else "head" if r.head else "",
                output.when(r, "created", now, brief=True),
                r.publisher,
                r.summary,
                str(len(_findings(r.diagnostics)) or ""),
            )
            for r in found
        ),
        none="nothing has been published yet",
    )


def _findings(diagnostics: str) -> list[dict[str, Any]]:
    try:
        found = json_module.loads(diagnostics) if diagnostics else []
    except ValueError:
        return []
    return [f for f in found if isinstance(f, dict)] if isinstance(found, list) else []


def _with_findings(revision: config_pb2.RevisionInfo) -> dict[str, Any]:
    plain: dict[str, Any] = output.plain(revision)
    return plain | {"diagnostics": _findings(revision.diagnostics)}


@app.command()
def show(
    revision: Annotated[
        int, typer.Argument(metavar="REVISION", min=0, help="Revision to show. Default: the one in force.")
    ] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON (the default).")] = False,
) -> None:
    """Print the compiled configuration of a revision as JSON. It has references to secrets, never secrets."""

    async def question(channel: Any) -> config_pb2.GetRevisionResponse:
        return await _stub(channel).GetRevision(config_pb2.GetRevisionRequest(revision=revision), timeout=TIMEOUT)

    found = ask(SERVICE, question)
    if not found.body:
        output.stop("nothing has been published yet" if revision == 0 else f"there is no revision {revision}")
    output.print_json(json_module.loads(found.body))


@app.command()
def status(json: a.Json = False) -> None:
    """Show the revision in force, which services run or rejected it, and the findings of the compiler."""

    async def question(
        channel: Any,
    ) -> tuple[config_pb2.ListConsumersResponse, config_pb2.ListRevisionsResponse, config_pb2.RevisionInfo]:
        stub = _stub(channel)
        consumers = await stub.ListConsumers(config_pb2.ListConsumersRequest(), timeout=TIMEOUT)
        revisions = await stub.ListRevisions(config_pb2.ListRevisionsRequest(limit=1), timeout=TIMEOUT)
        head = next((r for r in revisions.revisions if r.revision == consumers.head), None)
        if head is None and consumers.head:  # pinned to an older one
            request = config_pb2.GetRevisionRequest(revision=consumers.head)
            head = (await stub.GetRevision(request, timeout=TIMEOUT)).info
        return consumers, revisions, head if head is not None else config_pb2.RevisionInfo()

    consumers, revisions, head = ask(SERVICE, question)
    newest = revisions.revisions[0] if revisions.revisions else None
    findings = _findings(newest.diagnostics) if newest is not None else []
    if json:
        output.print_json(
            {
                "head": consumers.head,
                "pinned": consumers.pinned,
                "pin_reason": consumers.pin_reason,
                "newest": newest.revision if newest is not None else 0,
                "consumers": list(consumers.consumers),
                "findings": findings,
            }
        )
        return
    if newest is None:
        output.say("nothing has been published yet")
    else:
        _print_head(consumers, head, newest)
    print()
    _print_consumers(consumers)
    if findings:
        print()
        _print_findings(findings)


def _print_head(
    consumers: config_pb2.ListConsumersResponse, head: config_pb2.RevisionInfo, newest: config_pb2.RevisionInfo
) -> None:
    output.say(f"revision {consumers.head} is in force: {head.summary}")
    if consumers.pinned:
        why = f" ({consumers.pin_reason})" if consumers.pin_reason else ""
        waiting = (
            f"; the newest, {newest.revision} ({newest.summary}), waits" if newest.revision != consumers.head else ""
        )
        output.say(f"it is pinned{why}{waiting}: `mailrail config unpin` goes on with the newest")


def _print_consumers(consumers: config_pb2.ListConsumersResponse) -> None:
    now = datetime.datetime.now(datetime.UTC)
    output.table(
        ("NODE", "ROLE", "RUNS", "SEEN", "PROBLEM"),
        (
            (
                c.process,
                c.role,
                str(c.revision) if c.revision == consumers.head else f"{c.revision} (behind)",
                output.when(c, "seen", now) if c.live else f"{output.when(c, 'seen', now)}, silent",
                problem_of(c),
            )
            for c in consumers.consumers
        ),
        none="no service has reported yet",
        prose=1,
    )


def problem_of(consumer: config_pb2.Consumer) -> str:
    """What is wrong with a consumer, in words; empty when all is well."""
    refused = [f"refused {consumer.rejected}: {consumer.error}"] if consumer.rejected else []
    others = [f"{p.kind} {p.namespace}/{p.name} {p.part}: {p.message} ({p.reason})" for p in consumer.problems]
    return "; ".join(refused + others)


def _print_findings(findings: list[dict[str, Any]]) -> None:
    for finding in findings:
        where = f"{finding.get('origin')}:{finding.get('line')}: " if finding.get("origin") else ""
        who = f"{finding['object']}: " if finding.get("object") else ""
        output.say(f"{where}{finding.get('severity', '')}: {who}{finding.get('message', '')}")


@app.command()
def wait(
    revision: Annotated[
        int,
        typer.Option(
            "--revision", metavar="N", min=0, help="Wait for this revision or a newer one. Default: the one in force."
        ),
    ] = 0,
    timeout: Annotated[str, typer.Option("--timeout", metavar="DURATION", help="Give up after this time.")] = "60s",
    json: a.Json = False,
) -> None:
    """Wait until every live service runs the revision in force. (A deletion has no Ready condition to wait for.)

    A change by kubectl or in a file is in force a moment after it was made. What `mailrail explain` says was decided by
    the revision that it names; with `--revision` and that number, every service decides so when this command ends.
    """
    seconds = a.duration(timeout).total_seconds()
    if seconds < 0:
        output.stop(f"--timeout {timeout} is in the past", output.USAGE)

    async def question(channel: Any) -> tuple[config_pb2.ListConsumersResponse, list[str]]:
        end = time.monotonic() + seconds
        while True:
            found = await _stub(channel).ListConsumers(config_pb2.ListConsumersRequest(), timeout=TIMEOUT)
            missing = not_yet_live(found, revision)
            if not missing or time.monotonic() >= end:
                return found, missing
            await asyncio.sleep(_LOOK_SECONDS)

    found, missing = ask(SERVICE, question, doing="waiting for every service")
    if json:
        output.print_json({"head": found.head, "live": not missing, "consumers": list(found.consumers)})
    elif not missing:
        output.say(f"revision {found.head} runs in all {sum(c.live for c in found.consumers)} services")
    if missing:
        output.stop(f"not live everywhere after {seconds:g} s: {'; '.join(missing)}")


def not_yet_live(found: config_pb2.ListConsumersResponse, revision: int = 0) -> list[str]:
    """Why `revision` or a newer one (0: exactly the one in force) does not run everywhere; empty when it does.

    Services that were not seen for 10 s do not count, as for the condition Programmed (CFG-05).
    """
    if not found.head:
        return ["nothing has been published yet"]
    if found.head < revision:
        return [f"revision {found.head} is {'pinned: `mailrail config unpin`' if found.pinned else 'the newest yet'}"]
    live = [c for c in found.consumers if c.live]
    if not live:
        return ["no service has reported yet"]
    return [
        f"{c.process} ({c.role}) runs {c.revision}" + (f" and refused {c.rejected}: {c.error}" if c.rejected else "")
        for c in live
        if (c.revision < revision if revision else c.revision != found.head)
    ]


@app.command()
def rollback(
    revision: Annotated[
        int, typer.Argument(metavar="REVISION", min=1, help="Revision, from `mailrail config history`.")
    ],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; shown to other administrators.")] = "",
    json: a.Json = False,
) -> None:
    """Put an older revision in force and pin it. Newer revisions wait until `mailrail config unpin`."""

    async def question(channel: Any) -> config_pb2.RollbackResponse:
        request = config_pb2.RollbackRequest(revision=revision, reason=reason)
        return await _stub(channel).Rollback(request, timeout=TIMEOUT)

    found = ask(SERVICE, question)
    if json:
        output.print_json(found.head)
        return
    output.say(
        f"revision {found.head.revision} is in force and pinned; `mailrail config unpin` goes on with the newest"
    )


@app.command()
def unpin(json: a.Json = False) -> None:
    """End a rollback: put the newest revision in force."""

    async def question(channel: Any) -> config_pb2.UnpinResponse:
        return await _stub(channel).Unpin(config_pb2.UnpinRequest(), timeout=TIMEOUT)

    found = ask(SERVICE, question)
    if json:
        output.print_json(found.head)
        return
    output.say(f"revision {found.head.revision} is in force")


@app.command()
def keys(json: a.Json = False) -> None:
    """List the sealing keys that stored secrets need. A key that head does not need serves rollbacks only."""

    async def question(channel: Any) -> config_pb2.ListSealingKeysResponse:
        return await _stub(channel).ListSealingKeys(config_pb2.ListSealingKeysRequest(), timeout=TIMEOUT)

    found = list(ask(SERVICE, question).keys)
    if json:
        output.print_json(found)
        return
    output.table(
        ("KEY", "VALUES", "OF THE REVISION IN FORCE"),
        ((k.key_id, str(k.values), str(k.head_values)) for k in found),
        none="no secret is stored",
    )


@app.command("mta-sts")
def mta_sts(json: a.Json = False) -> None:
    """List the MTA-STS policies of our domains, with the record of each that is served, ready to copy.

    A record is told once every policy process serves the policy. Published earlier, it would keep others on the old
    one.
    """
    # Imported here, as the compiler is: the others need no revision.
    from mailrail.cli.in_force import in_force

    rows = ask(SERVICE, in_force).mta_sts()
    if json:
        output.print_json(rows)
        return
    output.table(
        ("DOMAIN", "MODE", "SECONDS", "MX", "RECORD"),
        (
            (row["domain"], row["mode"], str(row["max_age"]), ", ".join(row["mx"]), row["record"] or "not served yet")
            for row in rows
        ),
        none="no domain has a policy: spec.mtaSts of its MailDomain says one",
        prose=1,
    )


def _counted(number: int, severity: str) -> str:
    return f"{number} {severity}{'s' if number != 1 and severity != 'waiting' else ''}"


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="Folder of resources, or one file.")] = Path("mail.d"),
    strict: Annotated[bool, typer.Option("--strict", help="Warnings and missing references count as errors.")] = False,
    json: a.Json = False,
) -> None:
    """Compile documents without using them, and print mistakes as FILE:LINE. Mailrail need not run."""
    # Imported here: the compiler is large, and every other command starts twice as fast without it.
    from mailrail.core.config.compiler import compile
    from mailrail.core.config.diagnostics import Severity
    from mailrail.core.config.state import CompilerState
    from mailrail.core.revision.sealing import KEY_SIZE, Keyring
    from mailrail.local import pki
    from mailrail.local.documents import Folder

    if not folder.exists():
        output.stop(f"{folder} does not exist; name a folder with resource documents", output.USAGE)
    keyring = Keyring({"check": secrets.token_bytes(KEY_SIZE)})
    with tempfile.TemporaryDirectory(prefix="mailrail-check-") as keys:
        # What local mode itself adds (the certificate of its listeners) is no fault of the documents.
        made = pki.ensure(Path(keys))
        sources = Folder(folder, made.smtp_certificate, made.smtp_key).read()
    if not (sources.unreadable or any(d.place.origin for d in sources.documents)):
        # A mistyped folder in a pipeline shall not pass for one in which all is well.
        output.stop(f"{folder} holds no resource documents: *.yaml, *.yml or *.json")
    compiled = compile(sources, CompilerState(), keyring)
    findings = compiled.diagnostics.findings
    bad = [f for f in findings if strict or f.severity is Severity.ERROR]
    if json:
        output.print_json(
            {"ok": not bad, "summary": compiled.summary, "findings": json_module.loads(compiled.diagnostics.encode())}
        )
    else:
        for finding in findings:
            where = f"{finding.place}: " if finding.place.origin else ""
            who = f"{finding.ref}: " if finding.ref else ""
            output.say(f"{where}{finding.severity}: {who}{finding.message}")
        counts = Counter(f.severity for f in findings)
        words = [_counted(counts[s], str(s)) for s in (Severity.ERROR, Severity.WAITING, Severity.WARNING) if counts[s]]
        output.say(f"{compiled.summary}: {', '.join(words) or 'fine'}")
    if bad:
        raise typer.Exit(output.REFUSED)
