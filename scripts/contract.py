"""What a release promises, as files: a folder a version in tests/contract, and the same of the work tree.

    python scripts/contract.py freeze VERSION   writes tests/contract/VERSION
    python scripts/contract.py commit           prints the commit of the newest release, if there is one

`check_contract.py` compares the newest such folder with the tree.

    release.json        the version, and the tree (its hash in git) that was frozen: that of the commit below
    crds/               the CustomResourceDefinitions
    proto.json          the agreements between services, as an image of buf
    documents.json      JSON that is stored and sent, by class: revisions, the state of the compiler, pieces
    database.json       schemas as the catalog of Postgres tells them, and the checksums of the migrations
    values.yaml         of the chart: keys and defaults; values.schema.json: what it takes
    metrics.json        series with type and labels, and the names of the alerts
    commands.json       the command line: commands, arguments, options, environment variables
    settings.json       environment variables of each service, with type and default
    examples/           resource documents, a folder for those that belong together, and what the compiler says of them
"""

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import psycopg
import typer.main
from generate_dashboards import rules
from generate_metrics import documented
from pydantic import TypeAdapter

from mailrail.cli.app import app
from mailrail.core.config.compiler import compile
from mailrail.core.config.diagnostics import Severity
from mailrail.core.config.loader import load
from mailrail.core.config.pieces import PIECES
from mailrail.core.config.reading import Sources
from mailrail.core.config.state import CompilerState
from mailrail.core.revision.revision import Revision
from mailrail.core.revision.sealing import KEY_SIZE, Keyring
from mailrail.kit import migrations
from mailrail.local.postgres.server import DATABASE, EmbeddedPostgres

ROOT: Final = Path(__file__).resolve().parent.parent
FROZEN: Final = ROOT / "tests" / "contract"
CHART: Final = ROOT / "deploy" / "helm" / "mailrail"
BUF: Final = Path(sys.executable).with_name("buf")
EXAMPLES: Final[Mapping[str, Path]] = {
    "cluster": ROOT / "docs" / "examples",
    "first-steps": ROOT / "docs" / "examples" / "first-steps",
    "local": ROOT / "lib" / "mailrail" / "local" / "example",
}
"""Folders of documents; those of one folder refer to each other."""
SETTINGS: Final[Mapping[str, str]] = {
    "config": "mailrail_config.settings.ConfigSettings",
    "dmarc": "mailrail_dmarc.settings.DmarcSettings",
    "ingress": "mailrail_ingress.settings.IngressSettings",
    "operator": "mailrail_operator.settings.OperatorSettings",
    "outbound": "mailrail_outbound.settings.OutboundSettings",
    "policy": "mailrail_policy.settings.PolicySettings",
    "queue": "mailrail_queue.settings.QueueSettings",
}
"""Service → the class that its environment is read into."""

COLUMNS: Final = """
    SELECT n.nspname, c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
           CASE a.attidentity WHEN '' THEN pg_get_expr(d.adbin, d.adrelid) ELSE 'identity ' || a.attidentity::text END,
           col.collname
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    LEFT JOIN pg_collation col ON col.oid = a.attcollation AND col.collname <> 'default'
    WHERE n.nspname = ANY(%(schemas)s) AND c.relkind IN ('r', 'p') AND NOT c.relispartition AND a.attnum > 0
          AND NOT a.attisdropped
    ORDER BY 1, 2, a.attnum"""
# NOT NULL is told with its column; newer releases of Postgres also have a constraint for it.
CONSTRAINTS: Final = """
    SELECT n.nspname, c.relname, k.conname, pg_get_constraintdef(k.oid)
    FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = ANY(%(schemas)s) AND NOT c.relispartition AND k.contype <> 'n' ORDER BY 1, 2, 3"""
INDEXES: Final = """
    SELECT n.nspname, c.relname, i.relname, pg_get_indexdef(i.oid)
    FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid
    JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = ANY(%(schemas)s) AND NOT c.relispartition ORDER BY 1, 2, 3"""
SEQUENCES: Final = """
    SELECT schemaname, sequencename, format('%%s from %%s by %%s', data_type, start_value, increment_by)
    FROM pg_sequences WHERE schemaname = ANY(%(schemas)s) ORDER BY 1, 2"""
FUNCTIONS: Final = """
    SELECT n.nspname, format('%%s(%%s)', p.proname, pg_get_function_arguments(p.oid)), pg_get_function_result(p.oid)
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = ANY(%(schemas)s) ORDER BY 1, 2"""

Json = dict[str, Any]


# --- the tree ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def migrated_database() -> Iterator[str]:
    """The URL of a database of the moment, with all migrations of the tree."""
    folder = Path(tempfile.mkdtemp(prefix="mailrail-contract-"))
    folder.chmod(0o711)  # as root the server runs as a user of its own, which must pass through
    server = EmbeddedPostgres(folder / "server", settings={"fsync": "off", "shared_buffers": "16MB"})
    try:
        server.start()
        migrations.migrate(server.url(), migrations.load_all())
        yield server.superuser_url(DATABASE)
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def database(url: str) -> Json:
    """The schemas of a migrated database, and what each migration is known by."""
    steps = migrations.load_all()
    schemas = sorted({step.schema for step in steps})
    found: Json = {name: {"tables": {}, "sequences": {}, "functions": {}} for name in schemas}
    with psycopg.connect(url) as connection:

        def rows(statement: str) -> list[tuple[Any, ...]]:
            return connection.execute(statement.encode(), {"schemas": schemas}).fetchall()

        for schema, table, column, kind, filled, default, collation in rows(COLUMNS):
            parts = found[schema]["tables"].setdefault(table, {"columns": {}, "constraints": {}, "indexes": {}})
            kind = f"{kind} COLLATE {collation}" if collation else kind
            parts["columns"][column] = {"type": kind, "null": not filled, "default": default}
        for part, statement in (("constraints", CONSTRAINTS), ("indexes", INDEXES)):
            for schema, table, name, definition in rows(statement):
                found[schema]["tables"][table][part][name] = definition
        for part, statement in (("sequences", SEQUENCES), ("functions", FUNCTIONS)):
            for schema, name, definition in rows(statement):
                found[schema][part][name] = definition
    return {"schemas": found, "migrations": {step.label: step.checksum for step in steps}}


def metrics() -> Json:
    """Series, and the names of the alerts."""
    return {
        "series": {name: {"type": one.kind, "labels": list(one.labels)} for name, one in sorted(documented().items())},
        "alerts": sorted(rule["alert"] for rule in rules() if "alert" in rule),
    }


def commands() -> Json:
    """Every command with what it takes."""
    found: Json = {}

    def visit(command: Any, name: str) -> None:
        found[name] = {
            "arguments": [
                {"name": p.name, "required": p.required, "many": p.nargs == -1}
                for p in command.params
                if p.param_type_name == "argument"
            ],
            "options": {
                spelling: _option(p)
                for p in command.params
                if p.param_type_name == "option"
                for spelling in (*p.opts, *p.secondary_opts)
            },
        }
        for child, below in getattr(command, "commands", {}).items():
            visit(below, f"{name} {child}")

    visit(typer.main.get_command(app), "mailrail")
    return found


def _option(parameter: Any) -> Json:
    value, names = parameter.default, parameter.metavar or ""
    return {
        "takes": "nothing" if parameter.is_flag else inspect.formatannotation(parameter.type_descriptor.annotation),
        "choices": sorted(names.split("|")) if "|" in names else [],
        "required": parameter.required,
        "environment": parameter.envvar,
        "default": value if value is None or isinstance(value, str | int | float) else str(value),
    }


def settings() -> Json:
    """Service → variable → type and default."""
    found: Json = {}
    for service, path in SETTINGS.items():
        module, _, name = path.rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        hints, defaults = typing.get_type_hints(kind), kind()
        found[service] = {
            f"MAILRAIL_{service.upper()}_{field.name.upper()}": {
                "type": inspect.formatannotation(hints[field.name]),
                "default": str(getattr(defaults, field.name)),
            }
            for field in dataclasses.fields(kind)
        }
    return found


def documents() -> Json:
    """Schemas of what is stored and sent as JSON, by the names of its classes, which are in no agreement of proto/."""
    found: dict[str, Any] = {}
    for kind in (Revision, CompilerState, *PIECES.values()):
        made = TypeAdapter(kind).json_schema()
        found |= made.pop("$defs", {}) | {kind.__name__: made}
    return found


def judged(folder: Path) -> list[str]:
    """What the compiler refuses among the documents of a folder: `FILE KIND NAMESPACE/NAME: MESSAGE`."""
    files = sorted(folder.glob("*.yaml"))
    loaded = [load(file.read_bytes(), file.name) for file in files]
    compiled = compile(Sources.of(*loaded), CompilerState(), Keyring({"contract": bytes(KEY_SIZE)}))
    return [
        f"{finding.place.origin} {finding.ref or ''}: {finding.message}"
        for finding in compiled.diagnostics.findings
        if finding.severity is Severity.ERROR
    ]


def write(folder: Path, *, url: str) -> None:
    """Write what the tree promises into an empty folder. `url`: a database that `migrated_database` made."""
    shutil.copytree(CHART / "files" / "crds", folder / "crds")
    for name in ("values.yaml", "values.schema.json"):
        shutil.copy(CHART / name, folder / name)
    for name, value in (
        ("documents", documents()),
        ("database", database(url)),
        ("metrics", metrics()),
        ("commands", commands()),
        ("settings", settings()),
    ):
        _write_json(folder / f"{name}.json", value)
    refused = {}
    for name, source in EXAMPLES.items():
        (folder / "examples" / name).mkdir(parents=True)
        for file in sorted(source.glob("*.yaml")):
            shutil.copy(file, folder / "examples" / name / file.name)
        refused[name] = judged(folder / "examples" / name)
    _write_json(folder / "examples" / "refused.json", refused)
    image = folder / "proto.json"
    subprocess.run([BUF, "build", "--exclude-source-info", "-o", str(image)], cwd=ROOT, check=True)
    _write_json(image, json.loads(image.read_text(encoding="utf-8")))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


# --- released ---------------------------------------------------------------------------------------------------------


def number_of(version: str) -> tuple[int, ...]:
    """`0.10.1` as numbers, for comparing. Raises ValueError."""
    return tuple(int(part) for part in version.split("."))


def releases(frozen: Path = FROZEN) -> list[Path]:
    """The folders of released versions, the oldest first."""
    return sorted((file.parent for file in frozen.glob("*/release.json")), key=lambda folder: number_of(folder.name))


class HistoryCutOff(Exception):
    """A shallow clone does not tell which commit added what; the text says what to do."""


def commit_of(release: Path) -> str:
    """The commit of a release: the one that added its folder; of one that is not committed yet, HEAD.

    The folder cannot name it, and history can, whatever hash a rebase gives it. Raises HistoryCutOff.
    """
    if _git("rev-parse", "--is-shallow-repository") == "true":
        raise HistoryCutOff(f"this clone has no history that tells the commit of {release.name}: git fetch --unshallow")
    file = release / "release.json"
    added = _git("log", "-1", "--diff-filter=A", "--format=%H", "--", str(file))
    return added or _git("rev-parse", "HEAD")


def tree_of(commit: str) -> str:
    """Git's hash of what a commit holds: the same for every commit that holds the same."""
    return _git("rev-parse", f"{commit}^{{tree}}")


def freeze(version: str, frozen: Path = FROZEN) -> Path:
    """Write the folder of a version, whole or not at all. Returns it. Raises FileExistsError."""
    target = frozen / version
    if target.exists():
        raise FileExistsError(f"{target} exists: what was released stays as it is")
    frozen.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=frozen))
    try:
        with migrated_database() as url:
            write(unfinished, url=url)
        _write_json(unfinished / "release.json", {"version": version, "tree": tree_of("HEAD")})
        accepted = frozen / "accepted.toml"
        if accepted.exists():  # they were about the version before this one
            shutil.move(accepted, unfinished / accepted.name)
        unfinished.chmod(0o755)
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished)
        raise
    return target


def _git(*arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, env=environment)
    return done.stdout.decode().strip()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write what a release promises, or find the commit of the newest.")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("freeze").add_argument("version")
    actions.add_parser("commit")
    arguments = parser.parse_args()
    try:
        if arguments.action == "freeze":
            number_of(arguments.version)
            print(freeze(arguments.version).relative_to(ROOT))
        elif released := releases():
            print(commit_of(released[-1]))
    except (ValueError, FileExistsError, HistoryCutOff) as error:
        print(f"contract: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
