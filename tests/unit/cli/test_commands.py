"""Commands without a running installation: help, refusals, exit statuses, and the generated reference."""

import asyncio
import importlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import grpc
import pytest
import typer
from typer.testing import CliRunner

from mailrail.cli import connection, output, queue, queue_changes, queue_holds
from mailrail.cli.app import app
from mailrail.cli.overview import overview
from mailrail.cli.serve import SERVICES
from mailrail.pb.queue.v1 import admin_pb2, types_pb2

explain_module = importlib.import_module("mailrail.cli.explain")
search_module = importlib.import_module("mailrail.cli.search")
ROOT = Path(__file__).resolve().parents[3]
BOTH_GROUPS = [
    ("queue", "list"), ("queue", "show", "1"), ("queue", "history"), ("queue", "stats"), ("queue", "sites"),
    ("queue", "kick", "1"), ("queue", "holds", "list"), ("mailbox", "list"), ("mailbox", "boxes"),
    ("mailbox", "read", "1"),
    ("config", "status"), ("config", "history"), ("explain", "--to", "bob@example.org"), ("ingress", "sessions"),
    ("outbound", "connections"), ("top",), ("search", "bob"),
]  # fmt: skip
DATABASE = ("cluster", "database", "--place", "bundled.mailrail", "--record", "mailrail-database")
KEYS = ("cluster", "keys", "--prefix", "mailrail", "--part", "mtls")


@pytest.mark.parametrize("command", BOTH_GROUPS, ids=" ".join)
def test_without_an_installation_each_says_how_to_start_one(command: tuple[str, ...], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["--state", str(tmp_path), *command])
    assert done.exit_code == 3
    assert "start it with `mailrail local`" in done.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("queue", "kick"), "choose the recipients"),
        (("queue", "drop"), "choose the recipients"),
        (("queue", "show", "nonsense"), "is not a message id"),
        (("queue", "list", "--where", "to:bob@x.example state:asleep"), "write state: and one of"),
        (("queue", "drop", "--where", ""), "choose the recipients"),
        (("queue", "drop", "--where", "  "), "the query is empty"),
        (("search", "too:bob"), "did you mean to:?"),
        (("search", " "), "the query is empty"),
        (("search", "state:failed", "due:<1h"), "nothing can be like that"),
        (("queue", "schedule", "1"), "exactly one of --at, --in and --later"),
        (("queue", "schedule", "1", "--at", "now", "--in", "5m"), "exactly one of"),
        (("queue", "set-transport", "a/b/c", "1"), "is not the name of a MailTransport"),
        (("queue", "set-tls", "maybe", "1"), "required, default or no"),
        (("queue", "holds", "add"), "choose the mail to hold"),
        (("queue", "holds", "add", "--account", "alice@example.org"), "is a login"),
        (("queue", "hold", "--account", "alice@example.org"), "is a login"),
        (("mailbox", "flag", "1"), "--add or --remove"),
        (("explain",), "give the number of a recipient"),
        (("explain", "7", "--to", "bob@example.org"), "give the number of a recipient"),
        (("explain", "7", "--from", "bob@example.org"), "has its own sender and account"),
        (("config", "check", "/nonexistent"), "does not exist"),
        (("local", "--log-format", "xml"), "console or json"),
        (("local", "--log-level", "loud"), "debug, info, warning or error"),
        (("local", "--resolver", "9.9.9.9"), "HOST:PORT"),
        (("local", "--trust-ad"), "name the validating DNS server with --resolver"),
        (("local", "--listen", ""), "--listen needs an address"),
        (
            ("local", "--database-url", "postgres//me:hush@db/mail"),
            "write postgresql://USER:PASSWORD@HOST:5432/DATABASE",
        ),
        (("migrate", "--database-url", "me:hush@db"), "write postgresql://USER:PASSWORD@HOST:5432/DATABASE"),
        (("migrate",), "give --database-url"),
        (("serve", "nothing"), "there are"),
        ((*DATABASE, "--label", "nothing"), "--label 'nothing': write NAME=VALUE"),
        ((*DATABASE, "--label", "a=b", "--label", "=b"), "--label '=b': write NAME=VALUE"),
        ((*KEYS, "--label", "nothing"), "--label 'nothing': write NAME=VALUE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_command_that_makes_no_sense_says_what_would(
    command: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("MAILRAIL_DATABASE_URL", "MAILRAIL_SERVER"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MAILRAIL_STATE", str(tmp_path))
    (tmp_path / "client.json").write_text(
        json.dumps({"targets": {"queue": "127.0.0.1:1", "config": "127.0.0.1:1"}, "tls_dir": str(tmp_path)})
    )
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / name).write_text("")
    done = CliRunner().invoke(app, list(command))
    assert words in done.stderr, done.output
    assert "hush" not in done.stderr
    assert done.exit_code == 2


@pytest.mark.parametrize(
    ("octets", "sentence"),
    [(b"caf\xe9", "it is not UTF-8; store the password as UTF-8 text"), (None, "it cannot be read: Is a directory")],
)
@pytest.mark.parametrize("command", [DATABASE, ("cluster", "postgres", "--folder", "/nowhere")], ids=lambda it: it[1])
def test_a_file_that_holds_no_password_is_named_with_its_reason(
    command: tuple[str, ...], octets: bytes | None, sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    if octets is None:
        file.mkdir()
    else:
        file.write_bytes(octets)
    done = CliRunner().invoke(app, [*command, "--password-file", str(file)])
    assert done.exit_code == 2
    assert done.stderr == f"mailrail: --password-file {file}: {sentence}\n"


def test_a_server_without_a_certificate_to_show_is_refused() -> None:
    done = CliRunner().invoke(app, ["--server", "127.0.0.1:1", "queue", "stats"])
    assert done.exit_code == 2
    assert "--tls-dir" in done.stderr


def test_a_server_list_must_name_the_service(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["--server", "config=127.0.0.1:1", "--tls-dir", str(tmp_path), "queue", "stats"])
    assert done.exit_code == 2
    assert "add queue=HOST:PORT" in done.stderr


def test_a_database_out_of_reach_is_status_3() -> None:
    done = CliRunner().invoke(app, ["migrate", "--database-url", "postgresql://x:secret@127.0.0.1:1/x"])
    assert done.exit_code == 3
    assert "unreachable" in done.stderr
    assert "secret" not in done.stderr


def test_a_folder_is_checked_with_file_line_and_status(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "apiVersion: mailrail.dev/v1alpha1\nkind: MailTransport\nmetadata: {name: a}\nspec: {smtp: {port: 25}}\n"
    )
    done = CliRunner().invoke(app, ["config", "check", str(tmp_path)])
    assert done.exit_code == 1
    assert "a.yaml:4: error: MailTransport default/a: " in done.stdout
    told = CliRunner().invoke(app, ["config", "check", str(tmp_path), "--json"])
    assert told.exit_code == 1
    found = json.loads(told.stdout)
    assert found["ok"] is False
    assert found["findings"][0]["line"] == 4


TRANSPORT = "apiVersion: mailrail.dev/v1alpha1\nkind: MailTransport\nmetadata: {name: a}\nspec: {smtp: {host: h}}\n"


@pytest.mark.parametrize("name", ["a.txt", "a.yaml"])
def test_a_folder_without_documents_does_not_pass_the_check(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("# nothing yet\n")
    done = CliRunner().invoke(app, ["config", "check", str(tmp_path)])
    assert done.exit_code == 1
    assert "holds no resource documents" in done.stderr


def test_a_check_ends_with_how_much_is_wrong_and_says_where_the_first_of_two_is(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(TRANSPORT)
    assert CliRunner().invoke(app, ["config", "check", str(tmp_path)]).stdout.endswith(": fine\n")
    (tmp_path / "b.yaml").write_text(TRANSPORT)
    (tmp_path / "c.yaml").write_text(
        "apiVersion: mailrail.dev/v1alpha1\nkind: MailAccount\nmetadata: {name: a}\n"
        "spec: {domainRef: {name: missing}, addresses: [a]}\n"
    )
    done = CliRunner().invoke(app, ["config", "check", str(tmp_path)])
    assert done.exit_code == 1
    assert f"the one in {tmp_path.name}/a.yaml:1 counts" in done.stdout
    assert done.stdout.endswith(": 1 error, 1 waiting\n")


def test_the_example_of_local_mode_passes_the_check() -> None:
    example = ROOT / "lib" / "mailrail" / "local" / "example"
    done = CliRunner().invoke(app, ["config", "check", str(example), "--strict"])
    assert done.exit_code == 0, done.output


def test_a_service_process_carries_no_command_line_library() -> None:
    script = (
        "import sys; sys.argv = ['mailrail', 'serve', 'nothing']\n"
        "from mailrail.cli import main\n"
        "try: main()\nexcept SystemExit as end: print(end.code, 'typer' in sys.modules, 'rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False False\n"


@pytest.mark.parametrize("module", [*(f"mailrail_{name}.__main__" for name in SERVICES), "mailrail.local.folder"])
def test_no_service_takes_rich_along_which_structlog_imports_where_it_is_installed(module: str) -> None:
    script = (
        f"import sys, {module}\n"
        "print(sorted(name for name in ('rich', 'typer') if name in sys.modules))\n"
        "import rich.console; print('and the command line has it')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\nand the command line has it\n"


def test_a_message_of_more_recipients_than_are_shown_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = admin_pb2.GetMessageResponse(recipients_total=20_000)
    answer.recipients.add().recipient.address = "a@b.example"
    monkeypatch.setattr(queue, "ask", lambda *_: answer)
    said = CliRunner().invoke(app, ["queue", "show", "7"]).stdout
    assert "1 of 20000 recipients are shown; `mailrail queue list 7 --limit 0`" in said.replace("\n", " ")
    answer.recipients_total = 1
    assert "are shown" not in CliRunner().invoke(app, ["queue", "show", "7"]).stdout


def test_the_version_is_told_as_a_line_and_as_json() -> None:
    line = CliRunner().invoke(app, ["version"]).stdout
    assert line == f"mailrail {json.loads(CliRunner().invoke(app, ['version', '--json']).stdout)['version']}\n"


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_told_where_every_command_has_it(option: str) -> None:
    done = CliRunner().invoke(app, [option])
    assert (done.exit_code, done.stdout) == (0, CliRunner().invoke(app, ["version"]).stdout)


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_the_quick_help_is_the_help_of_the_command_CMD_04(arguments: list[str]) -> None:
    quick, whole = (CliRunner().invoke(made, arguments, prog_name="mailrail") for made in (overview(), app))
    assert quick.output == whole.output
    assert quick.exit_code == whole.exit_code
    assert "search" in quick.output


def test_the_quick_help_loads_no_command_CMD_04() -> None:
    code = "import sys, mailrail.cli.overview as o; o.overview(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "mailrail.cli.root" in loaded
    assert not {"grpc", "google.protobuf", "pydantic", "cryptography", "asyncio", "dns"} & set(loaded)


def test_every_command_that_reads_takes_json() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text("utf-8")
    sections = re.split(r"^### `mailrail ", page, flags=re.MULTILINE)[1:]
    without = {section.split("`")[0] for section in sections if "| `--json` |" not in section}
    assert without == {
        "local", "serve", "cluster database", "cluster keys", "cluster postgres", "cluster test",  # they run, and log
        "queue content", "dmarc preview",  # octets, and the XML of a report
        "sendmail",  # the flags of sendmail
        "sink",  # prints JSON in any case
        "queue holds remove", "mailbox flag", "mailbox delete",  # they change, and end with a status
    }  # fmt: skip


def test_the_reference_page_names_every_command() -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text("utf-8")
    for command in BOTH_GROUPS:
        name = " ".join(part for part in command if part.isalpha() and part != "bob")
        assert f"### `mailrail {name}`" in page


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_takes_long_is_shown_on_a_terminal_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for stream, shown in ((_Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr("sys.stderr", stream)
        with connection._shown("recipients are being dropped"):
            pass
        assert ("recipients are being dropped" in stream.getvalue()) is shown


def test_a_change_to_a_queue_of_millions_is_not_cut_off_in_its_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 30 s, as any question is, it left half of them changed and said to try again."""
    given: list[float] = []

    class Queue:
        async def Hold(self, request: admin_pb2.HoldRequest, timeout: float) -> admin_pb2.HoldResponse:
            given.append(timeout)
            return admin_pb2.HoldResponse(changes=[admin_pb2.Change(recipient_id=1)])

    monkeypatch.setattr(queue_changes, "admin_service", lambda _: Queue())
    monkeypatch.setattr(queue_changes, "ask", lambda _, question, doing: asyncio.run(question(None)))
    done = CliRunner().invoke(app, ["queue", "hold", "--all"])
    assert (done.exit_code, done.stdout) == (0, "1 recipient put on hold\n")
    assert given == [connection.CHANGE_TIMEOUT]
    assert connection.CHANGE_TIMEOUT > 10 * connection.TIMEOUT


def test_a_change_to_more_than_can_be_listed_tells_how_many_it_met(monkeypatch: pytest.MonkeyPatch) -> None:
    count = admin_pb2.ChangeCount(recipients=3_000_000, pending=2, truncated=True)
    answer = admin_pb2.HoldResponse(changes=[admin_pb2.Change(recipient_id=1)], count=count)
    monkeypatch.setattr(queue_changes, "ask", lambda _, question, doing: (answer, 0))
    done = CliRunner().invoke(app, ["queue", "hold", "--all"])
    assert done.stdout == "3000000 recipients put on hold; 2 of them as soon as the current attempt ends\n"
    done = CliRunner().invoke(app, ["queue", "hold", "--all", "--json"])
    assert done.stderr == "mailrail: 3000000 recipients put on hold; the first 1 of them are listed\n"


def test_a_move_that_was_interrupted_says_how_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    class Queue:
        async def Schedule(self, request: admin_pb2.ScheduleRequest, timeout: float) -> admin_pb2.ScheduleResponse:
            asked.append(request.operation_id)
            if len(asked) == 1:
                output.stop("55500 recipients were changed before", output.REFUSED)
            return admin_pb2.ScheduleResponse(count=admin_pb2.ChangeCount(recipients=102_300, truncated=True))

    monkeypatch.setattr(queue_changes, "admin_service", lambda _: Queue())
    monkeypatch.setattr(queue_changes, "ask", lambda _, question, doing: asyncio.run(question(None)))
    done = CliRunner().invoke(app, ["queue", "schedule", "--all", "--later", "1h"])
    assert done.exit_code == output.REFUSED
    operation = done.stderr.rpartition("add: --operation ")[2].strip()
    done = CliRunner().invoke(app, ["queue", "schedule", "--all", "--later", "1h", "--operation", operation])
    assert (done.exit_code, done.stdout) == (0, "102300 recipients rescheduled\n")
    assert asked[0] == asked[1] == UUID(operation).bytes
    done = CliRunner().invoke(app, ["queue", "schedule", "--all", "--later", "1h", "--operation", "x"])
    assert (done.exit_code, done.stderr) == (2, "mailrail: 'x' is not an operation id\n")


class _Queue:
    """A queue with recipient 7, which is on hold or not, and nobody else."""

    def __init__(self, *, on_hold: bool = False) -> None:
        self.on_hold = on_hold

    async def ListRecipients(
        self, request: admin_pb2.ListRecipientsRequest, timeout: float
    ) -> admin_pb2.ListRecipientsResponse:
        assert list(request.filter.recipient_ids) == [7]
        found = admin_pb2.Recipient(id=7, on_hold=self.on_hold, tls_requirement=types_pb2.TLS_REQUIREMENT_REQUIRED)
        there = self.on_hold or not request.filter.HasField("on_hold")
        return admin_pb2.ListRecipientsResponse(recipients=[found] if there else [])

    async def CreateHoldRule(
        self, request: admin_pb2.CreateHoldRuleRequest, timeout: float
    ) -> admin_pb2.CreateHoldRuleResponse:
        return admin_pb2.CreateHoldRuleResponse(rule=request.rule)

    async def Explain(self, request: admin_pb2.ExplainRequest, timeout: float) -> admin_pb2.ExplainResponse:
        if request.account not in ("", "default/alice"):
            raise grpc.aio.AioRpcError(grpc.StatusCode.INVALID_ARGUMENT, grpc.aio.Metadata(), grpc.aio.Metadata())
        return admin_pb2.ExplainResponse(attempt=1)

    async def Kick(self, request: admin_pb2.KickRequest, timeout: float) -> admin_pb2.KickResponse:
        return admin_pb2.KickResponse(changes=[admin_pb2.Change(recipient_id=7)])

    async def Drop(self, request: admin_pb2.DropRequest, timeout: float) -> admin_pb2.DropResponse:
        return admin_pb2.DropResponse(changes=[admin_pb2.Change(recipient_id=7)])


def _talk_to(monkeypatch: pytest.MonkeyPatch, there: _Queue) -> None:
    for module in (queue_changes, queue_holds):
        monkeypatch.setattr(module, "admin_service", lambda _: there)
        monkeypatch.setattr(module, "ask", lambda _, question, doing="": asyncio.run(question(None)))


@pytest.mark.parametrize("on_hold", [True, False])
def test_a_kick_says_when_what_it_made_due_is_on_hold_and_does_not_go(
    on_hold: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _talk_to(monkeypatch, _Queue(on_hold=on_hold))
    done = CliRunner().invoke(app, ["queue", "kick", "7"])
    assert (done.exit_code, done.stdout) == (0, "1 recipient made due now\n")
    assert ("1 of them is on hold until `mailrail queue unhold`" in done.stderr) is on_hold


def test_what_was_done_stays_done_when_what_is_told_beside_it_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Leaving(_Queue):
        async def ListRecipients(self, *_: object, **__: object) -> Any:
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())

        Explain = ListRecipients

    _talk_to(monkeypatch, Leaving(on_hold=True))
    kicked = CliRunner().invoke(app, ["queue", "kick", "7"])
    assert (kicked.exit_code, kicked.stdout, kicked.stderr) == (0, "1 recipient made due now\n", "")
    held = CliRunner().invoke(app, ["queue", "holds", "add", "--account", "alice"])
    assert (held.exit_code, held.stderr) == (0, "")


def test_an_id_that_was_not_changed_is_named_though_others_were(monkeypatch: pytest.MonkeyPatch) -> None:
    _talk_to(monkeypatch, _Queue())
    done = CliRunner().invoke(app, ["queue", "drop", "7", "4711"])
    assert (done.exit_code, done.stdout) == (0, "1 recipient dropped\n")
    assert done.stderr.endswith(": 4711\n")
    assert CliRunner().invoke(app, ["queue", "drop", "7"]).stderr == ""


class _Long(_Queue):
    """A queue with 250 recipients for one domain."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: admin_pb2.SetTlsRequirementRequest | None = None
        self.ended: admin_pb2.Filter | None = None

    async def ListRecipients(
        self, request: admin_pb2.ListRecipientsRequest, timeout: float
    ) -> admin_pb2.ListRecipientsResponse:
        count = 250 if request.filter.to_domain else 1
        return admin_pb2.ListRecipientsResponse(recipients=[admin_pb2.Recipient(id=n + 1) for n in range(count)])

    async def GetStats(self, request: admin_pb2.GetStatsRequest, timeout: float) -> admin_pb2.GetStatsResponse:
        answer = admin_pb2.GetStatsResponse(queued=2_000_000)
        answer.counted.GetCurrentTime()
        return answer

    async def SetTlsRequirement(
        self, request: admin_pb2.SetTlsRequirementRequest, timeout: float
    ) -> admin_pb2.SetTlsRequirementResponse:
        self.asked = request
        return admin_pb2.SetTlsRequirementResponse(count=admin_pb2.ChangeCount(recipients=250))

    async def Fail(self, request: admin_pb2.FailRequest, timeout: float) -> admin_pb2.FailResponse:
        self.ended = request.filter
        return admin_pb2.FailResponse(count=admin_pb2.ChangeCount(recipients=250))

    async def Drop(self, request: admin_pb2.DropRequest, timeout: float) -> admin_pb2.DropResponse:
        self.ended = request.filter
        return admin_pb2.DropResponse(count=admin_pb2.ChangeCount(recipients=250))


@pytest.mark.parametrize(
    ("chosen", "told"),
    [(("--to-domain", "d.example"), "change 250 recipients"), (("--all",), "change about 2000000 recipients")],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_many_get_another_tls_requirement_only_when_that_is_confirmed(
    chosen: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = _Long()
    _talk_to(monkeypatch, there)
    done = CliRunner().invoke(app, ["queue", "set-tls", "no", *chosen])
    assert (done.exit_code, there.asked) == (2, None)
    assert f"this would {told}; add --yes to confirm" in done.stderr
    assert CliRunner().invoke(app, ["queue", "set-tls", "no", *chosen, "--yes", "--reason", "why"]).exit_code == 0
    assert there.asked is not None
    assert (there.asked.tls_requirement, there.asked.reason) == (types_pb2.TLS_REQUIREMENT_NO, "why")


@pytest.mark.parametrize("command", ["fail", "drop"])
def test_many_are_ended_only_when_their_number_is_confirmed_CMD_03(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = _Long()
    _talk_to(monkeypatch, there)
    chosen = ("--to-domain", "d.example")
    done = CliRunner().invoke(app, ["queue", command, *chosen])
    assert (done.exit_code, there.ended) == (2, None)
    assert "this would change 250 recipients; add --yes to confirm" in done.stderr
    done = CliRunner().invoke(app, ["queue", command, "--where", "domain:d.example", "--dry-run"])
    assert (done.exit_code, there.ended) == (0, None)
    done = CliRunner().invoke(app, ["queue", command, *chosen, "--dry-run", "--json"])
    found = json.loads(done.stdout)
    assert (found["recipients"], found["exact"], len(found["samples"])) == (250, True, 5)
    monkeypatch.setattr(queue_changes, "is_terminal", lambda: True)
    done = CliRunner().invoke(app, ["queue", command, *chosen], input="n\n")
    assert (done.exit_code, there.ended) == (1, None)
    assert "250 recipients will be" in done.stderr
    assert "  1 <> to" in done.stderr, "some of them are shown"
    assert CliRunner().invoke(app, ["queue", command, *chosen], input="y\n").exit_code == 0
    assert there.ended is not None
    there.ended = None
    assert CliRunner().invoke(app, ["queue", command, *chosen, "--yes"]).exit_code == 0
    assert there.ended is not None


@pytest.mark.parametrize("command", ["fail", "drop"])
def test_the_whole_queue_is_ended_only_when_that_is_confirmed_CMD_03(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = _Long()
    _talk_to(monkeypatch, there)
    done = CliRunner().invoke(app, ["queue", command, "--all"])
    assert (done.exit_code, there.ended) == (2, None)
    assert "this would change about 2000000 recipients; add --yes to confirm" in done.stderr
    assert CliRunner().invoke(app, ["queue", command, "--all", "--yes"]).exit_code == 0
    assert there.ended == admin_pb2.Filter(all=True)


@pytest.mark.parametrize("chosen", [("7",), ("01890000-0000-7000-8000-000000000000",)])
def test_a_few_get_another_tls_requirement_without_a_question(
    chosen: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = _Long()
    _talk_to(monkeypatch, there)
    done = CliRunner().invoke(app, ["queue", "set-tls", "required", *chosen])
    assert done.exit_code == 0, done.output
    assert there.asked is not None


def test_a_change_stands_among_the_attempts_by_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    timeline = admin_pb2.RecipientTimeline(attempts=[types_pb2.Attempt(number=n) for n in (1, 2)])
    for number, attempt in enumerate(timeline.attempts):
        attempt.started.FromSeconds(1_700_000_000 + 60 * number)
    for at, why in ((30, "their certificate expired"), (90, "it works again")):
        entry = timeline.entries.add(actor="cli", tls_set=types_pb2.TlsSet(to=types_pb2.TLS_REQUIREMENT_NO, reason=why))
        entry.at.FromSeconds(1_700_000_000 + at)
    first, change, second, last = queue._in_order(timeline)
    assert [getattr(each, "number", None) for each in (first, second)] == [1, 2]
    assert isinstance(change, types_pb2.TimelineEntry)
    assert isinstance(last, types_pb2.TimelineEntry)
    queue._print_entry(change, queue.utc_now())
    shown = capsys.readouterr().out
    for words in ("TLS set", "no (before: default)", "cli", "their certificate expired"):
        assert words in shown


def test_why_mail_is_held_stands_in_the_list() -> None:
    reply = types_pb2.Reply(code=451, enhanced="4.3.0", lines=["later"])
    held = admin_pb2.Recipient(on_hold=True, hold_reason="ask bob", last=types_pb2.Attempt(reply=reply))
    assert queue.last_reply(held) == "held: ask bob; 451 4.3.0 later"


def test_whether_a_connection_was_encrypted_is_said_not_only_what_was_demanded() -> None:
    verdict = "tls.mode opportunistic"
    assert queue.tls_of(types_pb2.Attempt(tls=types_pb2.TlsFacts(verdict=verdict))) == f"none; {verdict}"
    facts = types_pb2.TlsFacts(version="TLSv1.3", cipher="TLS_AES_256_GCM_SHA384", verdict=verdict)
    assert queue.tls_of(types_pb2.Attempt(tls=facts)) == f"TLSv1.3 TLS_AES_256_GCM_SHA384; {verdict}"
    facts.resumed = True
    told = queue.tls_of(types_pb2.Attempt(tls=facts))
    assert told == f"TLSv1.3 TLS_AES_256_GCM_SHA384; session resumed; {verdict}"
    facts.proof, facts.requiretls = types_pb2.TLS_PROOF_DANE, True
    told = queue.tls_of(types_pb2.Attempt(tls=facts))
    assert told.endswith(f"; session resumed; proven by DANE; REQUIRETLS offered; {verdict}")


def test_a_certificate_for_a_name_that_nothing_proves_is_not_shown_as_proof_DANE_22() -> None:
    facts = types_pb2.TlsFacts(version="TLSv1.3", proof=types_pb2.TLS_PROOF_PKIX, verdict="because")
    assert queue.tls_of(types_pb2.Attempt(tls=facts)) == "TLSv1.3; proven by its certificate; because"
    facts.mx_unproven = True
    told = queue.tls_of(types_pb2.Attempt(tls=facts))
    assert told == "TLSv1.3; not proven: its certificate is for the name that an unproven MX record has; because"


def test_why_tls_kept_a_message_is_said_also_where_nothing_was_dialled() -> None:
    attempt = types_pb2.Attempt(tls_cause=types_pb2.TLS_CAUSE_MX_UNPROVEN)
    assert queue.tls_of(attempt) == "kept from the host (mx_unproven)"
    assert queue.tls_of(types_pb2.Attempt()) == ""


def test_an_explanation_says_what_tls_did_at_the_last_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    class Kept(_Queue):
        async def ListRecipients(
            self, request: admin_pb2.ListRecipientsRequest, timeout: float
        ) -> admin_pb2.ListRecipientsResponse:
            last = types_pb2.Attempt(tls_cause=types_pb2.TLS_CAUSE_STS_MX)
            return admin_pb2.ListRecipientsResponse(recipients=[admin_pb2.Recipient(id=7, last=last)])

    monkeypatch.setattr(explain_module.admin_pb2_grpc, "QueueAdminServiceStub", lambda _: Kept())
    monkeypatch.setattr(explain_module, "ask", lambda _, question: asyncio.run(question(None)))
    assert "kept from the host (sts_mx)" in CliRunner().invoke(app, ["explain", "7"]).stdout


FOUND = types_pb2.MessageAuthentication(
    results=[
        types_pb2.AuthenticationResult(method="iprev", result="permerror", reason="192.0.2.1 has no name in the DNS"),
        types_pb2.AuthenticationResult(method="spf", identity="helo", result="none", reason="no record"),
        types_pb2.AuthenticationResult(
            method="spf", identity="mfrom", result="fail", domain="a.example", reason="-all"
        ),
        types_pb2.AuthenticationResult(
            method="dkim", result="fail", domain="b.example", selector="s1", reason="the body was changed"
        ),
        types_pb2.AuthenticationResult(method="dmarc", result="fail", domain="a.example", reason="\x1b[2Jneither"),
    ],
    signatures_left_out=3,
    action=types_pb2.AUTHENTICATION_ACTION_ACCEPTED,
    author_domains=["a.example"],
    policy_domain="a.example",
    policy="reject",
    applied="none",
    overrides=[types_pb2.AuthenticationOverride(type="trusted_forwarder", comment="from 192.0.2.0/24")],
)
SENDER = (
    "Sender    accepted; iprev permerror, spf none/fail, dkim fail, dmarc fail",
    "Author    a.example",
    "Policy    a.example asks for reject if DMARC fails; applied: none",
    "Override  trusted_forwarder: from 192.0.2.0/24",
)


@pytest.mark.parametrize("command", [("queue", "show", "7"), ("explain", "7")], ids=lambda it: it[0])
def test_what_was_found_about_the_sender_is_shown_check_by_check(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = admin_pb2.GetMessageResponse(envelope=types_pb2.Envelope(authentication=FOUND))
    monkeypatch.setattr(queue, "ask", lambda *_: message)
    monkeypatch.setattr(explain_module, "ask", lambda *_: (admin_pb2.ExplainResponse(authentication=FOUND), None))
    said = CliRunner().invoke(app, list(command)).stdout
    assert all(line in said.splitlines() for line in SENDER), said
    rows = [line.split(maxsplit=3) for line in said.splitlines() if line.startswith(("  iprev", "  dkim", "  dmarc"))]
    assert ["iprev", "permerror", "192.0.2.1", "has no name in the DNS"] in rows
    assert ["dkim", "fail", "b.example,", "selector s1  the body was changed"] in rows
    for words in ("  spf of HELO ", "  spf of MAIL FROM  fail ", "3 more signatures are not shown", "\\x1b[2Jneither"):
        assert words in said, said
    assert "\x1b" not in said


def test_of_mail_that_nobody_checked_no_sender_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "ask", lambda *_: admin_pb2.GetMessageResponse())
    assert "Sender" not in CliRunner().invoke(app, ["queue", "show", "7"]).stdout


def test_programs_get_what_was_found_about_the_sender_field_by_field(monkeypatch: pytest.MonkeyPatch) -> None:
    message = admin_pb2.GetMessageResponse(envelope=types_pb2.Envelope(authentication=FOUND))
    monkeypatch.setattr(queue, "ask", lambda *_: message)
    found = json.loads(CliRunner().invoke(app, ["queue", "show", "7", "--json"]).stdout)
    told = found["envelope"]["authentication"]
    assert told["action"] == "accepted"
    assert told["results"][3]["selector"] == "s1"
    assert told["overrides"][0]["type"] == "trusted_forwarder"


def test_an_explanation_for_an_account_without_a_sender_says_whom_it_is_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain_module, "ask", lambda _, question: (admin_pb2.ExplainResponse(), None))
    command = ["explain", "--account", "alice", "--to", "bob@example.org"]
    assert "the reverse-path is null" in CliRunner().invoke(app, command).stderr
    assert CliRunner().invoke(app, [*command, "--from", "alice@example.org"]).stderr == ""


def test_an_explanation_of_held_mail_says_first_that_it_is_on_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    there = _Queue(on_hold=True)
    monkeypatch.setattr(explain_module.admin_pb2_grpc, "QueueAdminServiceStub", lambda _: there)
    monkeypatch.setattr(explain_module, "ask", lambda _, question: asyncio.run(question(None)))
    assert CliRunner().invoke(app, ["explain", "7"]).stdout.startswith("on hold   until `mailrail queue unhold`")
    there.on_hold = False
    said = CliRunner().invoke(app, ["explain", "7"]).stdout
    assert "on hold" not in said
    assert re.search(r"^TLS +required$", said, re.MULTILINE)


@pytest.mark.parametrize(("account", "told"), [("alcie", True), ("alice", False)])
def test_a_rule_for_an_account_that_is_not_there_says_that_it_holds_nothing_yet(
    account: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _talk_to(monkeypatch, _Queue())
    done = CliRunner().invoke(app, ["queue", "holds", "add", "--account", account])
    assert done.exit_code == 0, done.output
    assert (f"account default/{account} does not exist" in done.stderr) is told


def test_next_hops_are_those_with_mail_or_trouble_and_a_window_is_a_number_of_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [
        admin_pb2.Site(name="transport:default/smarthost", queued=3, window=4),
        admin_pb2.Site(name="missing:default/gone", queued=1, window=1_000_000),
        admin_pb2.Site(name="domain:done.example"),
        admin_pb2.Site(name="domain:resting.example", last_error="421 busy"),
    ]
    monkeypatch.setattr(queue, "ask", lambda _, question: (found, False))
    lines = CliRunner().invoke(app, ["queue", "sites"]).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [s.name for s in found if s.name != "domain:done.example"]
    assert "1000000" not in "".join(lines)


class _LongQueue:
    """A queue that is looked through a stretch at a time: recipient 7 is in the second one, and there is a third."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def ListRecipients(
        self, request: admin_pb2.ListRecipientsRequest, timeout: float
    ) -> admin_pb2.ListRecipientsResponse:
        self.asked.append(request.page_token)
        match request.page_token:
            case "":
                answer = admin_pb2.ListRecipientsResponse(next_page_token="x:W:2", incomplete=True)
            case "x:W:2":
                answer = admin_pb2.ListRecipientsResponse(
                    recipients=[admin_pb2.Recipient(id=7, address="bob@d.example")],
                    next_page_token="x:W:3",
                    incomplete=True,
                )
            case _:
                return admin_pb2.ListRecipientsResponse()
        answer.looked_to.FromSeconds(1_800_000_000)
        return answer


def _list(
    monkeypatch: pytest.MonkeyPatch, there: _LongQueue, *options: str, seconds: float = 60.0
) -> tuple[str, str, list[str]]:
    there.asked.clear()
    monkeypatch.setattr(queue, "GO_ON", seconds)
    monkeypatch.setattr(queue, "admin_service", lambda _: there)
    monkeypatch.setattr(queue, "ask", lambda _, question, doing="": asyncio.run(question(None)))
    done = CliRunner().invoke(app, ["queue", "list", "--to", "bob", *options])
    assert done.exit_code == 0, done.stderr
    return done.stdout, done.stderr, list(there.asked)


def test_a_list_goes_on_by_itself_where_the_queue_looks_a_stretch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    out, error, asked = _list(monkeypatch, _LongQueue())
    assert "bob@d.example" in out
    assert error == ""
    assert asked == ["", "x:W:2", "x:W:3"]


def test_a_list_that_ends_before_all_was_looked_at_says_so_and_how_to_go_on_QRY_05(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, error, asked = _list(monkeypatch, _LongQueue(), seconds=0.0)
    assert out == "none was found so far\n"
    assert "only those that are due before 2027-01-15" in error
    assert "--after x:W:2 goes on" in error
    assert asked == [""]
    out, error, asked = _list(monkeypatch, _LongQueue(), "--after", "x:W:2", seconds=0.0)
    assert "bob@d.example" in out
    assert asked == ["x:W:2"]


def test_a_list_for_programs_says_whether_it_is_complete_and_where_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    out, _, asked = _list(monkeypatch, _LongQueue(), "--json", "--after", "start", seconds=0.0)
    assert json.loads(out) == {"recipients": [], "complete": False, "next": "x:W:2"}
    assert asked == [""]
    out, _, _ = _list(monkeypatch, _LongQueue(), "--json", "--after", "start")
    found = json.loads(out)
    assert ([one["id"] for one in found["recipients"]], found["complete"], found["next"]) == (["7"], True, None)
    out, error, _ = _list(monkeypatch, _LongQueue(), "--json", seconds=0.0)
    assert json.loads(out) == [], "without --after programs get the list that they always got"
    assert "--after x:W:2 goes on" in error


class _Searched:
    """A queue whose history is looked through a stretch at a time."""

    def __init__(self, live: int, past: int) -> None:
        self.live, self.past = live, past
        self.asked: list[str] = []

    async def ListRecipients(
        self, request: admin_pb2.ListRecipientsRequest, timeout: float
    ) -> admin_pb2.ListRecipientsResponse:
        self.asked.append(f"queue {request.filter.where}")
        found = [admin_pb2.Recipient(id=n, address=f"live{n}@d.example") for n in range(self.live)]
        return admin_pb2.ListRecipientsResponse(recipients=found)

    async def ListHistory(self, request: admin_pb2.ListHistoryRequest, timeout: float) -> admin_pb2.ListHistoryResponse:
        self.asked.append(f"history {request.filter.where}")
        found = [admin_pb2.Recipient(id=n, address=f"past{n}@d.example") for n in range(self.past)]
        return admin_pb2.ListHistoryResponse(recipients=found, next_page_token="x:H:9", incomplete=True)


def _search(monkeypatch: pytest.MonkeyPatch, there: _Searched, *words: str) -> tuple[int, str, str]:
    monkeypatch.setattr(queue, "GO_ON", 0.0)
    monkeypatch.setattr(queue, "admin_service", lambda _: there)
    monkeypatch.setattr(search_module, "ask", lambda _, question, doing="": asyncio.run(question(None)))
    done = CliRunner().invoke(app, ["search", *words])
    return done.exit_code, done.stdout, done.stderr


def test_a_search_looks_into_the_queue_and_into_history_and_says_how_it_goes_on_QRY_05(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = _Searched(1, 1)
    status, out, error = _search(monkeypatch, there, "bob@d.example", "queued:<-2h")
    assert status == 0
    assert there.asked == ["queue bob@d.example queued:<-2h", "history bob@d.example queued:<-2h"]
    assert out.index("In the queue:") < out.index("live0@d.example") < out.index("In the history:")
    assert out.index("In the history:") < out.index("past0@d.example")
    assert "looking for to:bob@d.example" in error
    assert "mailrail queue history --where 'bob@d.example queued:<-2h' --after x:H:9" in error
    status, out, _ = _search(monkeypatch, there, "--json", "to:bob*")
    found = json.loads(out)
    assert [found[part]["complete"] for part in ("queue", "history")] == [True, False]
    assert found["history"]["next"] == "x:H:9"


def test_a_search_asks_only_where_the_query_can_be_fulfilled(monkeypatch: pytest.MonkeyPatch) -> None:
    there = _Searched(1, 1)
    assert _search(monkeypatch, there, "state:held")[0] == 0
    assert _search(monkeypatch, there, "state:failed")[0] == 0
    assert there.asked == ["queue state:held", "history state:failed"]


def test_a_search_that_finds_nothing_is_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    status, out, _ = _search(monkeypatch, _Searched(0, 0), "to:bob*")
    assert (status, out) == (1, "none was found so far\n")
    assert _search(monkeypatch, _Searched(0, 0), "state:held")[:2] == (1, "no recipient matches\n")


@pytest.mark.parametrize(
    ("code", "details", "status", "words"),
    [
        (grpc.StatusCode.NOT_FOUND, "no message 7", 1, "no message 7"),
        (grpc.StatusCode.ABORTED, "55500 recipients were changed before", 1, "55500 recipients were changed before"),
        (grpc.StatusCode.FAILED_PRECONDITION, "ask again in a minute", 1, "ask again in a minute"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "", 1, "resource exhausted"),
        (grpc.StatusCode.INVALID_ARGUMENT, "not a time", 2, "not a time"),
        (grpc.StatusCode.UNAVAILABLE, "", 3, "does not answer"),
    ],
)
def test_whatever_a_service_answers_a_command_ends_with_a_sentence(
    code: grpc.StatusCode, details: str, status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details=details)
    with pytest.raises(typer.Exit) as ended:
        connection.explain_failure(error, "queue", "127.0.0.1:1")
    assert ended.value.exit_code == status
    assert words in capsys.readouterr().err
