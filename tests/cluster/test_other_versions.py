"""What another version of Mailrail accepted, and this one cannot read: kubectl and every service's view (CFG-01).

The API server cannot compare aliases without regard to case, and this version refuses two that are the same so. The
store says that another version accepted them.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from cluster.conftest import Kubectl
from cluster.stage import Stage, basics, manifest, relay, route, staged

from mailrail.core.config.state import Accepted, decode_state, encode_state
from mailrail.core.resources import canonical
from mailrail.core.revision.revision import Domain, Revision
from mailrail_operator.app import document_of
from mailrail_operator.model import Observed

ALL = ("mgw/mx1", "mdom/org", "macct/postmaster", "mtrans/relay", "mroute/all")


def org(*aliases: str) -> str:
    written = [{"localPart": alias, "to": ["postmaster"]} for alias in aliases]
    more = {"gatewayRef": {"name": "mx1"}, "delivery": {"mailbox": {}}, "aliases": written}
    return manifest("MailDomain", "org", {"domainName": "example.org"} | more)


def domain(revision: Revision) -> Domain:
    (found,) = revision.domains
    return found


def hosts(revision: Revision) -> set[str | None]:
    return {transport.host for transport in revision.transports}


@pytest.fixture
def stage(kubectl: Kubectl, database: str, tmp_path: Path) -> Iterator[Stage]:
    with staged(kubectl, database, tmp_path) as made:
        made.start_consumers()
        yield made


def ran_another_version(stage: Stage, database: str, change: Callable[[Accepted], Accepted]) -> None:
    """All is ready; then the operator is stopped, and the domain is as another version wrote and stored it."""
    operator = stage.start_operator()
    stage.kubectl.apply(basics() + relay("relay", "relay.example.org") + route("all", "relay"))
    stage.kubectl.apply(org("sales"))
    stage.wait_ready(*ALL)
    operator.stop()
    stage.kubectl.apply(org("sales", "Sales"))
    source = canonical(document_of(Observed.of(stage.get("mdom", "org"))).content)
    with psycopg.connect(database) as connection:
        connection.execute("SET search_path TO config")
        newest = connection.execute("SELECT revision, previous FROM revisions ORDER BY revision DESC LIMIT 1")
        revision, previous = newest.fetchone() or (0, b"")
        state = decode_state(bytes(previous))
        accepted = tuple(
            change(replace(one, source=source, generation=(one.generation or 0) + 1)) if one.ref.name == "org" else one
            for one in state.accepted
        )
        connection.execute(
            "UPDATE revisions SET previous = %s WHERE revision = %s",
            (encode_state(replace(state, accepted=accepted)), revision),
        )


def test_an_object_of_another_version_runs_on_while_changes_of_others_go_live(stage: Stage, database: str) -> None:
    ran_another_version(stage, database, lambda accepted: accepted)
    before = domain(stage.queue())
    stage.start_operator()
    said = stage.wait_condition("mdom", "org", "Accepted", status="False", reason="NotSupported")
    assert "it runs on as that version compiled it" in said["message"]
    stage.wait_condition("mdom", "org", "Programmed", status="True")
    stage.kubectl.apply(relay("relay", "other.example.org"))
    stage.until_queue(lambda revision: hosts(revision) == {"other.example.org"}, what="others go live")
    assert domain(stage.queue()) == before
    stage.wait_ready("mgw/mx1", "macct/postmaster", "mtrans/relay", "mroute/all")
    assert stage.get("mgw", "mx1")["status"]["domains"] == 1
    stage.kubectl.apply(org("sales", "info"))
    stage.wait_ready(*ALL)
    assert [alias.local for alias in domain(stage.queue()).aliases] == ["info", "sales"]


def test_an_object_of_which_nothing_can_be_read_holds_up_all_and_takes_away_nothing(
    stage: Stage, database: str
) -> None:
    ran_another_version(stage, database, lambda accepted: replace(accepted, piece=None))
    before = stage.queue()
    stage.start_operator()
    said = stage.wait_condition("mdom", "org", "Accepted", status="False", reason="NotSupported")
    assert "no change of any object goes live: mend or delete it" in said["message"]
    stage.kubectl.apply(relay("relay", "other.example.org"))
    said = stage.wait_condition("mtrans", "relay", "Accepted", status="False", reason="NotSupported")
    assert f"nothing is published until MailDomain {stage.kubectl.namespace}/org can be read" in said["message"]
    assert stage.queue() == before
    for kind, name in (("mgw", "mx1"), ("macct", "postmaster"), ("mroute", "all")):
        assert stage.condition(kind, name, "Ready")["status"] == "True", "it runs unchanged"
    stage.kubectl.apply(org("sales", "info"))
    stage.wait_ready(*ALL)
    stage.until_queue(lambda revision: hosts(revision) == {"other.example.org"}, what="what waited goes live")
