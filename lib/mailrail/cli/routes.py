"""`mailrail routes`: what a change of the configuration would do, before it is applied (DIF-05, DIF-08)."""

import contextlib
import json as json_module
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from mailrail.cli import arguments as a
from mailrail.cli import output
from mailrail.cli.connection import TIMEOUT, ask
from mailrail.cli.queue import admin_service, counted
from mailrail.pb.config.v1 import config_pb2, config_pb2_grpc
from mailrail.pb.queue.v1 import admin_pb2

app = typer.Typer(no_args_is_help=True, help="See what a change of routes would do to the mail that waits.")

_OCTETS: Final = 1024 * 1024
"""Of all documents together (DIF-07)."""
_FILES: Final = 1_000
_SUFFIXES: Final = (".yaml", ".yml", ".json")
_TRIAL_SECONDS: Final = 90.0
_CONFIG, _QUEUE = "config", "queue"


class TrialChoice(StrEnum):
    """What the files are to the configuration in force."""

    MERGE = "merge"
    REPLACE = "replace"
    DELETE = "delete"


_MODES: Final = {
    TrialChoice.MERGE: config_pb2.TRIAL_MODE_UNSPECIFIED,
    TrialChoice.REPLACE: config_pb2.TRIAL_MODE_REPLACE,
    TrialChoice.DELETE: config_pb2.TRIAL_MODE_DELETE,
}


@app.callback()
def routes() -> None:
    """See what a change of routes would do to the mail that waits."""


@app.command()
def diff(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Edited documents; a folder; `-` for standard input.")
    ],
    mode: Annotated[
        TrialChoice,
        typer.Option(
            "--mode",
            metavar="merge|replace|delete",
            help="merge: the documents replace objects or add some; replace: they are all there is; delete: the objects"
            " that they name go.",
        ),
    ] = TrialChoice.MERGE,
    where: Annotated[
        str, typer.Option("--where", metavar="QUERY", help="Only recipients that a query finds.", show_default=False)
    ] = "",
    budget: Annotated[
        str, typer.Option("--budget", metavar="DURATION", help="Look at the queue for this long, 5m at most.")
    ] = "15s",
    exit_code: Annotated[
        bool,
        typer.Option("--exit-code", help="Exit status 1 if any mail would go another way, or not all was looked at."),
    ] = False,
    json: a.Json = False,
) -> None:
    """Show which recipients in the queue would go another way under edited documents. Nothing is applied.

    Exit status: 0 done; 1 with --exit-code, a difference; 2 bad documents or a wrong command; 3 nobody answers.
    """
    length = a.duration(budget)
    if not 0 < length.total_seconds() <= 300:
        output.stop(f"--budget {budget} is not between 1s and 5m", output.USAGE)
    chosen = admin_pb2.Filter(where=a.query(where)) if where else admin_pb2.Filter()
    request = config_pb2.TrialRequest(mode=_MODES[mode], files=_read(files))
    trial = ask(_CONFIG, lambda channel: _trial(channel, request), doing="compiling")
    findings = json_module.loads(trial.diagnostics or "[]")
    if trial.bad:
        if json:
            output.print_json({"diagnostics": findings})
        _print_findings(findings)
        output.stop("these documents cannot be used: mend what is named above", output.USAGE)
    question = admin_pb2.DiffRevisionRequest(candidate=trial.candidate, base=trial.base, filter=chosen)
    question.budget.FromTimedelta(length)
    with _progress() as tell:
        found = ask(_QUEUE, lambda channel: _compare(channel, question, length.total_seconds(), tell))
    if json:
        output.print_json(_shape(trial, found, findings))
    else:
        _print_findings(findings)
        _print(found)
    if exit_code and (found.looked_at > found.unchanged or not found.complete):
        raise typer.Exit(output.REFUSED)


async def _trial(channel: Any, request: config_pb2.TrialRequest) -> config_pb2.TrialResponse:
    stub: config_pb2_grpc.ConfigServiceAsyncStub = config_pb2_grpc.ConfigServiceStub(channel)
    return await stub.Trial(request, timeout=_TRIAL_SECONDS)


async def _compare(
    channel: Any, question: admin_pb2.DiffRevisionRequest, seconds: float, tell: "_Tell"
) -> admin_pb2.DiffRevisionResponse:
    found = admin_pb2.DiffRevisionResponse()
    async for found in admin_service(channel).DiffRevision(question, timeout=seconds + 2 * TIMEOUT):
        tell.looked_at(found.looked_at, found.of_about)
    return found


# --- the files --------------------------------------------------------------------------------------------------------


def _read(names: Sequence[str]) -> list[config_pb2.TrialFile]:
    """The documents of all files. Ends the command where one cannot be read, or they are too large."""
    found: list[config_pb2.TrialFile] = []
    room = _OCTETS
    for path in _paths(names):
        try:
            if path is None:
                content = sys.stdin.buffer.read(room + 1)
            else:
                with path.open("rb") as stream:
                    content = stream.read(room + 1)
        except (OSError, ValueError) as error:
            output.stop(f"{path or 'standard input'} cannot be read: {error}", output.USAGE)
        room -= len(content)
        if room < 0 or len(found) >= _FILES:
            output.stop(f"the documents have more than {_OCTETS // 1024} KiB: try the change in parts", output.USAGE)
        found.append(config_pb2.TrialFile(name=str(path) if path is not None else "(stdin)", content=content))
    if not found:
        output.stop("there are no documents: name *.yaml, *.yml or *.json files, or a folder of them", output.USAGE)
    return found


def _paths(names: Sequence[str]) -> Iterator[Path | None]:
    """The files; None is standard input."""
    for name in names:
        path = Path(name)
        if name == "-":
            yield None
        elif path.is_dir():
            yield from sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES and not p.name.startswith("."))
        else:
            yield path


# --- what is shown ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Tell:
    """A line on a terminal about how far it is."""

    shown: bool

    def looked_at(self, number: int, about: int) -> None:
        """So many recipients of about so many."""
        if self.shown:
            of = f" of about {about}" if about > number else ""
            sys.stderr.write(f"\r\x1b[Klooked at {number}{of} recipients")
            sys.stderr.flush()

    def end(self) -> None:
        """The line goes."""
        if self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


@contextlib.contextmanager
def _progress() -> Iterator[_Tell]:
    tell = _Tell(sys.stderr.isatty())
    tell.looked_at(0, 0)
    try:
        yield tell
    finally:
        tell.end()


def _print_findings(findings: Sequence[dict[str, Any]]) -> None:
    for finding in findings:
        place = f"{finding.get('origin')}:{finding.get('line')}: " if finding.get("origin") else ""
        who = f"{finding['object']}: " if finding.get("object") else ""
        output.note(f"{place}{finding.get('severity', '')}: {who}{finding.get('message', '')}")


def way(decision: admin_pb2.RouteDecision) -> str:
    """Where mail goes, in words."""
    kinds = admin_pb2.RouteDecision
    name = output.ref(decision, "transport")
    match decision.kind:
        case kinds.KIND_MAILBOX:
            return "the mailbox"
        case kinds.KIND_DIRECT:
            return "direct"
        case kinds.KIND_DEFERRED:
            return f"waits: {name} is missing" if name else "waits"
        case _:
            return name


def _rule(decision: admin_pb2.RouteDecision) -> str:
    if not decision.HasField("route"):
        return ""
    return f" by {decision.route.namespace}/{decision.route.name}[{decision.rule or decision.rule_index}]"


def _print(found: admin_pb2.DiffRevisionResponse) -> None:
    changed = found.looked_at - found.unchanged
    if not changed:
        output.say(f"none of {counted(found.looked_at, 'recipient')} would go another way")
    else:
        output.say(f"{changed} of {counted(found.looked_at, 'recipient')} would go another way")
    if found.deferred_new:
        output.say(f"{counted(found.deferred_new, 'recipient')} would wait: what should deliver them is missing")
    if found.undeliverable_new:
        output.say(f"{counted(found.undeliverable_new, 'recipient')} would fail")
    if found.groups:
        print()
        output.table(
            ("RECIPIENTS", "NOW", "THEN", "DOMAINS", "SUCH AS"),
            (
                (
                    str(group.recipients),
                    way(group.before) + _rule(group.before),
                    way(group.after) + _rule(group.after),
                    _domains(group),
                    " ".join(map(str, group.samples)),
                )
                for group in found.groups
            ),
            none="",
        )
    if found.ungrouped:
        output.say(f"... and {counted(found.ungrouped, 'recipient')} in further groups")
    if not found.complete:
        more = f" of about {found.of_about}" if found.of_about > found.looked_at else ""
        output.note(f"not all was looked at, only {found.looked_at}{more}: --budget gives more time")


def _domains(group: admin_pb2.DiffGroup) -> str:
    named = [one.domain or "(none)" for one in group.domains]
    rest = group.domain_count - len(named)
    return ", ".join(named) + (f" and {rest} more" if rest > 0 else "")


def _shape(
    trial: config_pb2.TrialResponse, found: admin_pb2.DiffRevisionResponse, findings: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What scripts read (DIF-05)."""
    return {
        "head": found.config_revision,
        "candidate": trial.candidate_checksum,
        "looked_at": found.looked_at,
        "of_about": found.of_about,
        "complete": found.complete,
        "unchanged": found.unchanged,
        "groups": [
            {
                "before": _side(group.before),
                "after": _side(group.after),
                "recipients": group.recipients,
                "domains": {
                    "top": {one.domain: one.recipients for one in group.domains},
                    "count": group.domain_count,
                },
                "samples": list(group.samples),
            }
            for group in found.groups
        ],
        "ungrouped": found.ungrouped,
        "deferred_new": found.deferred_new,
        "undeliverable_new": found.undeliverable_new,
        "diagnostics": list(findings),
    }


def _side(decision: admin_pb2.RouteDecision) -> dict[str, Any]:
    route = f"{decision.route.namespace}/{decision.route.name}" if decision.HasField("route") else None
    rule = (decision.rule or str(decision.rule_index)) if route else None
    return {"decision": way(decision), "route": route, "rule": rule, "reason": decision.reason}
