"""What the tree promises, frozen as a release, and the changes of the tree that a check must then refuse."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import additive
import check_contract
import contract
import psycopg
import pytest

from mailrail.core.config.pieces import PIECES
from mailrail.kit import migrations

from testkit.postgres import Databases

PROTO = "proto/mailrail/queue/v1/types.proto"


@pytest.fixture(scope="module")
def url(_databases: Databases) -> Iterator[str]:
    """A database with all migrations, whose catalog a superuser reads."""
    name = _databases.fresh(migrations.SERVICES)
    yield _databases.server.superuser_url(name)
    _databases.drop(name)


@pytest.fixture
def another_url(_databases: Databases) -> Iterator[str]:
    """One of the test's own, to change its schemas."""
    name = _databases.fresh(migrations.SERVICES)
    yield _databases.server.superuser_url(name)
    _databases.drop(name)


@pytest.fixture(scope="module")
def frozen(url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree's contract."""
    folder = tmp_path_factory.mktemp("0.1.0")
    contract.write(folder, url=url)
    return folder


def test_a_tree_is_additive_to_itself(frozen: Path, url: str, tmp_path: Path) -> None:
    contract.write(tmp_path, url=url)
    assert list(check_contract.compare(frozen, tmp_path)) == []
    assert list(check_contract.agreements(frozen / "proto.json")) == []
    assert list(check_contract.examples(frozen)) == []


def test_a_contract_has_every_part_of_what_the_tree_promises(frozen: Path) -> None:
    database, commands, settings, metrics = (
        json.loads((frozen / f"{name}.json").read_text()) for name in ("database", "commands", "settings", "metrics")
    )
    tables = database["schemas"]["queue"]["tables"]
    assert tables["recipient"]["columns"]["due"] == {
        "type": "timestamp with time zone",
        "null": False,
        "default": None,
    }
    assert tables["recipient"]["columns"]["site"]["type"] == "text COLLATE C"
    assert "recipient_due" in tables["recipient"]["indexes"]
    assert "recipient_shard" in tables["recipient"]["constraints"]
    assert not [name for name in tables if name.startswith("history_")]  # days come and go
    assert "config/0001_revisions" in database["migrations"]
    documents = json.loads((frozen / "documents.json").read_text())
    assert {"Revision", "CompilerState", *(kind.__name__ for kind in PIECES.values())} <= set(documents)
    assert documents["TransportPiece"]["properties"]["part"] == {"$ref": "#/$defs/Transport"}
    assert documents["Transport"]["properties"]["reencode_signed"]["default"] is False
    assert commands["mailrail queue list"]["options"]["--limit"]["default"] == 50
    assert settings["queue"]["MAILRAIL_QUEUE_LINGER"] == {"type": "float", "default": "0.001"}
    assert metrics["series"]["mailrail_outbound_connections_total"]["labels"] == ["result"]
    assert "MailrailBacklogOld" in metrics["alerts"]
    assert len(list((frozen / "crds").iterdir())) == 5
    assert {path.parent.name for path in frozen.glob("examples/*/*.yaml")} == set(contract.EXAMPLES)


@pytest.mark.parametrize(
    ("name", "before", "after", "sentence"),
    [
        ("values.yaml", "replicaCount: 2", "replicaCount: 3", "values.config.replicaCount: default 2, now 3"),
        ("crds/mailrail.dev_mailroutes.yaml", "maxItems: 64", "maxItems: 63", "maxItems 64, now 63"),
        ("metrics.json", '"mailrail_local_up"', '"mailrail_local_is_up"', "series mailrail_local_up is gone"),
        ("values.schema.json", '"nameOverride"', '"theName"', "values.schema.nameOverride: the field is gone"),
        ("settings.json", "MAILRAIL_QUEUE_LINGER", "MAILRAIL_QUEUE_WAIT", "setting MAILRAIL_QUEUE_LINGER is gone"),
        ("commands.json", '"mailrail queue list"', '"mailrail queue ls"', "command `mailrail queue list` is gone"),
        ("documents.json", '"reencode_signed"', '"reencode"', "Transport.reencode_signed: the field is gone"),
        ("database.json", '"hold_rule"', '"hold"', "table queue.hold_rule is gone"),
    ],
)
def test_each_file_of_a_contract_is_compared(
    frozen: Path, tmp_path: Path, name: str, before: str, after: str, sentence: str
) -> None:
    shutil.copytree(frozen, tmp_path / "new")
    file = tmp_path / "new" / name
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))
    assert any(sentence in said for said in check_contract.compare(frozen, tmp_path / "new"))


def test_a_crd_that_is_gone_is_refused(frozen: Path, tmp_path: Path) -> None:
    shutil.copytree(frozen, tmp_path / "new")
    (tmp_path / "new/crds/mailrail.dev_mailroutes.yaml").unlink()
    assert list(check_contract.compare(frozen, tmp_path / "new")) == ["CRD mailroutes.mailrail.dev is gone"]


@pytest.mark.parametrize(
    ("statement", "sentences"),
    [
        ("DROP TABLE queue.hold_rule", ["table queue.hold_rule is gone"]),
        ("ALTER TABLE queue.hold_rule RENAME TO hold", ["table queue.hold_rule is gone"]),
        ("ALTER TABLE queue.recipient DROP COLUMN site CASCADE", ["column queue.recipient.site is gone"]),
        ("ALTER TABLE queue.recipient RENAME site TO place", ["column queue.recipient.site is gone"]),
        ("ALTER TABLE queue.recipient ALTER attempts TYPE bigint", ["column queue.recipient.attempts: type "]),
        ("ALTER TABLE queue.recipient ADD tag text NOT NULL", ["column queue.recipient.tag: it is new and NOT NULL"]),
        ("DROP INDEX queue.recipient_due", ["index of queue.recipient: recipient_due is gone"]),
        ("DROP SCHEMA config CASCADE", ["table config.head is gone"]),
        ("ALTER TABLE queue.recipient ADD tag text, ADD number int NOT NULL DEFAULT 0", []),
        ("CREATE TABLE queue.tag (id bigint PRIMARY KEY); CREATE INDEX ON queue.recipient (attempts)", []),
    ],
)
def test_what_a_migration_takes_from_older_processes_is_refused_and_what_it_adds_passes(
    frozen: Path, another_url: str, statement: str, sentences: list[str]
) -> None:
    with psycopg.connect(another_url) as connection:
        connection.execute(statement.encode())
    found = list(additive.database(check_contract.read(frozen / "database.json"), contract.database(another_url)))
    assert bool(found) == bool(sentences), found
    for sentence in sentences:
        assert any(said.startswith(sentence) for said in found), found


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("bool smtputf8 = 3;", "", 'Previously present field "3" with name "smtputf8"'),
        ("bool smtputf8 = 3;", "bool utf8 = 3;", 'changed name from "smtputf8"'),
        ("bool smtputf8 = 3;", "string smtputf8 = 3;", "changed type from"),
        ("bool smtputf8 = 3;", "bool smtputf8 = 99;", 'Previously present field "3"'),
        ("repeated string notify = 3; ", "string notify = 3; ", "changed cardinality"),
        ("ORIGIN_MX = 1;", "ORIGIN_MX = 9;", 'Previously present enum value "1"'),
        ("ORIGIN_MX = 1;", "ORIGIN_STRANGER = 1;", "changed name from"),
        ("  rpc Hold(HoldRequest) returns (HoldResponse);", "", 'Previously present RPC "Hold"'),
        ("rpc Hold(HoldRequest)", "rpc Hold(UnholdRequest)", "changed request type"),
    ],
)
def test_an_agreement_that_older_processes_read_otherwise_is_refused(
    frozen: Path, tmp_path: Path, before: str, after: str, sentence: str
) -> None:
    edit_agreements(tmp_path, before, after)
    assert any(sentence in said for said in check_contract.agreements(frozen / "proto.json", tmp_path))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("bool smtputf8 = 3;", "bool smtputf8 = 3; string more = 99;"),
        ("ORIGIN_MX = 1;", "ORIGIN_MX = 1; ORIGIN_MORE = 99;"),
        ("message Envelope {", "message More { string text = 1; }\nmessage Envelope {"),
        ("  rpc Hold(", "  rpc More(HoldRequest) returns (HoldResponse);\n  rpc Hold("),
    ],
)
def test_an_agreement_that_grows_passes(frozen: Path, tmp_path: Path, before: str, after: str) -> None:
    edit_agreements(tmp_path, before, after)
    assert list(check_contract.agreements(frozen / "proto.json", tmp_path)) == []


def edit_agreements(folder: Path, before: str, after: str) -> None:
    """Copy the agreements into `folder`, and put `after` for `before` in the one file that has it."""
    shutil.copy(contract.ROOT / "buf.yaml", folder)
    shutil.copytree(contract.ROOT / "proto", folder / "proto")
    (file,) = (path for path in (folder / "proto/mailrail/queue").rglob("*.proto") if before in path.read_text())
    file.write_text(file.read_text().replace(before, after, 1))


def test_an_agreement_that_is_gone_or_cannot_be_read_is_refused(frozen: Path, tmp_path: Path) -> None:
    shutil.copy(contract.ROOT / "buf.yaml", tmp_path)
    shutil.copytree(contract.ROOT / "proto", tmp_path / "proto")
    (tmp_path / "proto/mailrail/queue/v1/peer.proto").unlink()
    assert any("peer.proto" in said for said in check_contract.agreements(frozen / "proto.json", tmp_path))
    (tmp_path / PROTO).write_text("no proto")
    assert list(check_contract.agreements(frozen / "proto.json", tmp_path))


def test_an_example_of_a_release_that_is_refused_now_is_named(frozen: Path, tmp_path: Path) -> None:
    release = tmp_path / "0.1.0"
    shutil.copytree(frozen, release)
    file = next((release / "examples/local").glob("*gateway*"))
    file.write_text(file.read_text().replace("hostname:", "hostName:"))
    (said, *_) = check_contract.examples(release)
    assert said.startswith(f"example of 0.1.0 is refused now: local/{file.name} ")


def test_a_release_is_frozen_once_with_its_tree_and_takes_what_was_accepted_along(tmp_path: Path) -> None:
    (tmp_path / "accepted.toml").write_text("")
    folder = contract.freeze("0.1.0", tmp_path)
    told = json.loads((folder / "release.json").read_text())
    head = subprocess.run(
        ["git", "rev-parse", "HEAD^{tree}"], cwd=contract.ROOT, capture_output=True, text=True
    ).stdout.strip()
    assert told == {"version": "0.1.0", "tree": head}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.1.0"]
    assert (folder / "accepted.toml").exists()
    with pytest.raises(FileExistsError, match="what was released stays as it is"):
        contract.freeze("0.1.0", tmp_path)


def test_the_newest_release_is_the_one_of_the_highest_number(tmp_path: Path) -> None:
    for version in ("0.10.0", "0.9.1", "0.9.0"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "release.json").write_text("{}")
    (tmp_path / "0.11.0").mkdir()  # without a release.json it is none
    assert [folder.name for folder in contract.releases(tmp_path)] == ["0.9.0", "0.9.1", "0.10.0"]


def test_the_check_passes_on_the_tree() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/check_contract.py"], cwd=contract.ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
