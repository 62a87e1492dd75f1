"""The store went back, or is another: the operator publishes again by itself, and status says so meanwhile (CFG-09)."""

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import psycopg
import pytest
from cluster.conftest import Kubectl
from cluster.stage import Stage, basics, manifest, relay, staged

from mailrail.core.revision.revision import Revision
from mailrail.kit import migrations
from mailrail.local.postgres.server import EmbeddedPostgres

from testkit.conditions import wait_until
from testkit.failover import pair

SECONDS = 20.0
"""Within which it is published again; the rest of what a busy machine takes. Nobody edits anything meanwhile."""


def host(revision: Revision) -> str | None:
    (transport,) = revision.transports
    return transport.host


def copy(folder: Path, to: Path) -> None:
    """A folder with its owners."""
    subprocess.run(["cp", "-a", folder, to], check=True)


@pytest.fixture
def restorable(kubectl: Kubectl, disposable_postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[Stage]:
    migrations.migrate(disposable_postgres.url(), migrations.load_all(("config",)))
    with staged(kubectl, disposable_postgres.url(), tmp_path) as made:
        yield made


def until_published_again(stage: Stage, before: int) -> None:
    """Wait until what objects say is stored and run again, under a number beyond all that were given."""

    def again() -> bool:
        config = stage.get("mgw", "mx1")["status"]["config"]
        return bool(config["revision"] == config["newest"] > before and config["upToDate"] == 3)

    stage.until(again, "it is published again", SECONDS)
    stage.wait_ready("mtrans/relay", "mgw/mx1")
    assert host(stage.queue()) == "second.example.org"


def first_publish(stage: Stage) -> None:
    stage.start_consumers()
    stage.start_operator()
    stage.kubectl.apply(basics() + relay("relay", "first.example.org"))
    stage.wait_ready("mtrans/relay", "mgw/mx1")


def last_publish(stage: Stage) -> int:
    """What will be lost; its number."""
    stage.kubectl.apply(relay("relay", "second.example.org"))
    stage.until_queue(lambda r: host(r) == "second.example.org")
    stage.until(lambda: stage.condition("mtrans", "relay", "Programmed")["observedGeneration"] == 2, "it is programmed")
    return int(stage.get("mgw", "mx1")["status"]["config"]["newest"])


def test_a_backup_that_is_put_back_is_published_over_without_an_edit_CFG_09(
    restorable: Stage, disposable_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    stage, postgres = restorable, disposable_postgres
    first_publish(stage)
    postgres.stop()
    copy(postgres.data, tmp_path / "backup")
    postgres.start()
    before = last_publish(stage)
    postgres.stop()
    shutil.rmtree(postgres.data)
    copy(tmp_path / "backup", postgres.data)
    postgres.start()
    until_published_again(stage, before)


def test_a_failover_to_a_standby_without_the_last_publish_is_published_over_CFG_09(
    kubectl: Kubectl, tmp_path: Path
) -> None:
    with pair() as servers:
        migrations.migrate(servers.url, migrations.load_all(("config",)))
        with staged(kubectl, servers.url, tmp_path) as stage:
            first_publish(stage)
            servers.wait_until_followed()
            servers.standby.pause()
            before = last_publish(stage)
            servers.fail_over()
            until_published_again(stage, before)


@pytest.mark.parametrize("fresh_config", [True, False])
def test_an_empty_database_is_filled_again_and_a_new_process_gets_ready_CFG_09(
    kubectl: Kubectl, database_for: Callable[..., str], tmp_path: Path, fresh_config: bool
) -> None:
    """An empty database that the same config process finds under its feet, and one that a new process is given."""
    url = database_for("config")
    with staged(kubectl, url, tmp_path) as stage:
        first_publish(stage)
        if fresh_config:
            stage.config.stop()
            stage.use_database(database_for("config"))
            stage.start_config()
        else:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("DROP SCHEMA config CASCADE")
            migrations.migrate(url, migrations.load_all(("config",)))
        newcomer = stage.consumer("queue-new")
        stage.until(lambda: host(newcomer.revision) == "first.example.org", "a new process gets ready", SECONDS)
        stage.wait_ready("mtrans/relay", "mgw/mx1")
        assert stage.get("mgw", "mx1")["status"]["config"]["revision"] > 0
        newcomer.close()


@pytest.mark.long
def test_a_new_database_gives_a_name_to_its_oldest_owner_whoever_waits_with_a_refused_claim_CFG_10(
    kubectl: Kubectl, database_for: Callable[..., str], tmp_path: Path
) -> None:
    spec = {"domainName": "example.org", "gatewayRef": {"name": "mx1"}, "delivery": {"mailbox": {}}}
    with staged(kubectl, database_for("config"), tmp_path) as stage:
        first_publish(stage)
        made = datetime.fromisoformat(stage.get("mdom", "org")["metadata"]["creationTimestamp"]).timestamp()
        wait_until(lambda: time.time() > made + 1, what="ages are told in seconds")
        stage.kubectl.apply(manifest("MailDomain", "aaa", spec))
        stage.wait_condition("mdom", "aaa", "Accepted", status="False", reason="Conflicted")
        before = stage.get("mgw", "mx1")["status"]["config"]["newest"]
        stage.config.stop()
        stage.use_database(database_for("config"))
        stage.start_config()
        stage.until(
            lambda: stage.get("mgw", "mx1")["status"]["config"]["newest"] != before and host(stage.queue()),
            "it is published again",
            SECONDS,
        )
        stage.wait_ready("mdom/org", "mgw/mx1")
        stage.wait_condition("mdom", "aaa", "Accepted", status="False", reason="Conflicted")
        (domain,) = stage.queue().domains
        assert domain.ref.name == "org"


def test_while_what_was_published_is_not_stored_nothing_is_called_programmed_CFG_09(restorable: Stage) -> None:
    """A store that takes no publish: the operator goes on trying, and says what is the matter."""
    stage = restorable
    first_publish(stage)
    stage.sql(
        "ALTER TABLE revisions ADD CONSTRAINT none CHECK (false) NOT VALID",
        "UPDATE head SET revision = NULL",
        "DELETE FROM revisions",
    )
    for kind, name in (("mgw", "mx1"), ("mtrans", "relay")):
        found = stage.wait_condition(kind, name, "Programmed", status="False", reason="NotStored")
        assert "the store is empty" in found["message"]
        assert stage.condition(kind, name, "Ready")["status"] == "False"
    stage.sql("ALTER TABLE revisions DROP CONSTRAINT none")
    stage.wait_ready("mtrans/relay", "mgw/mx1")
