"""The operator's probe through a real installation: it arrives, and says how far it came when something is broken."""

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.registry import REGISTRY

from mailrail.kit.config_client import keyring
from mailrail_operator.mail_probe import MailProbe, ProbeResult
from mailrail_operator.settings import OperatorSettings

from testkit.conditions import wait_until
from testkit.ports import free_port, loopback_address
from testkit.rail import LOGIN, Rail, basics


@pytest.fixture(scope="module")
def rail() -> Iterator[Rail]:
    with Rail(basics()) as running:
        yield running


def settings(rail: Rail, **changes: object) -> OperatorSettings:
    """Those of an operator beside a local installation."""
    targets = json.loads((rail.state / "client.json").read_text())["targets"]
    given: dict[str, object] = {
        "node_id": "operator-1",
        "tls_dir": rail.state / "pki" / "operator",
        "sealing_keys_dir": rail.state / "pki" / "sealing",
        "mail_probe_target": "{}:{}".format(*rail.mx),
        "queue_target": targets["queue"],
        "mail_probe_timeout": 60.0,
    }
    return OperatorSettings(**(given | changes))  # type: ignore[arg-type]  # fields of many types


def probe(made: OperatorSettings) -> ProbeResult:
    return asyncio.run(MailProbe(made, lambda: keyring(made), lambda: True).once())


def test_a_probe_arrives_and_no_user_and_no_history_knows_of_it(rail: Rail) -> None:
    def stored() -> list[tuple[int]]:
        return [rail.sql(f"SELECT count(*) FROM queue.{name}")[0] for name in ("message", "recipient", "history")]

    def exported(name: str) -> float:
        return REGISTRY.get_sample_value(f"mailrail_operator_{name}") or 0.0

    before, mailbox = stored(), rail.mailbox(LOGIN)
    count, began = exported("mail_probe_seconds_count"), time.time()
    assert probe(settings(rail)) is ProbeResult.ARRIVED
    assert exported("mail_probe_seconds_count") == count + 1
    assert exported("last_mail_probe_timestamp_seconds") >= began
    assert stored() == before
    assert rail.mailbox(LOGIN) == mailbox


def test_without_a_listener_it_is_unreachable(rail: Rail) -> None:
    target = f"{loopback_address()}:{free_port()}"
    assert probe(settings(rail, mail_probe_target=target)) is ProbeResult.UNREACHABLE


def test_under_a_key_that_ingress_does_not_have_it_is_mail_like_any_other(rail: Rail, tmp_path: Path) -> None:
    (tmp_path / "k1").write_text("A" * 43 + "=")
    made = settings(rail, sealing_keys_dir=tmp_path, mail_probe_timeout=3.0)
    assert probe(made) is ProbeResult.NOT_ARRIVED  # local mode captures mail for anybody; a cluster refuses it


def test_without_the_queue_it_is_refused_and_with_it_again_it_arrives(rail: Rail) -> None:
    with rail.frozen("queue"):
        found = probe(settings(rail, mail_probe_timeout=5.0))
        assert found in (ProbeResult.REFUSED, ProbeResult.UNREACHABLE)
    wait_until(lambda: probe(settings(rail)) is ProbeResult.ARRIVED, 60, "the probe arrives again")
