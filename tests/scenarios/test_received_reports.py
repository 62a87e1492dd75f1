"""Reports of others from the wire to the command line: mail to a report address, read by dmarc (design 8)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testkit.conditions import wait_until
from testkit.peers.swaks import swaks
from testkit.rail import POSTMASTER, Rail, basics, by_transport, domain, transport
from testkit.report_mail import aggregate, report_mail

pytestmark = [pytest.mark.peer("swaks"), pytest.mark.timeout(300)]

SETTINGS = {
    # Nobody publishes a key or a policy here.
    "MAILRAIL_DMARC_READ_ANY_SENDER": "true",
    "MAILRAIL_DMARC_READ_EVERY": "0.5",
}


@pytest.fixture(scope="module")
def rail() -> Iterator[Rail]:
    documents = [
        *basics(),
        transport("hop", smtp={"host": "127.0.0.9", "port": 9}),
        domain("ours", "our.example", by_transport("hop", "Any"), reports={}),
    ]
    with Rail(documents=documents, settings=SETTINGS) as found:
        yield found


def sent(rail: Rail, folder: Path, mail: bytes) -> None:
    (folder / "mail").write_bytes(mail)
    done = swaks(
        *(*rail.mx, "--from", "r@rep.example", "--to", "dmarc-reports@our.example", "--data", f"@{folder / 'mail'}")
    )
    assert done.accepted, done.text


def listed(rail: Rail, *more: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = rail.cli_json("dmarc", "received", *more)
    return found


def test_a_report_is_read_once_and_told_and_its_mail_marked_read_DAGG_21(rail: Rail, tmp_path: Path) -> None:
    for _ in range(2):
        sent(rail, tmp_path, report_mail(aggregate(1, rows=2), results=""))
    wait_until(
        lambda: (
            [one["flags"] for one in rail.mailbox(POSTMASTER, "Postmaster/reports")].count(["$ReportTaken", "\\Seen"])
            == 2
        ),
        60,
        "both mails were read",
    )
    (one,) = listed(rail)
    assert (one["domain"], one["submitter"], int(one["good"]), int(one["bad"])) == ("our.example", "rep.example", 2, 2)
    shown = rail.cli("dmarc", "report", str(one["id"]))
    assert "192.0.2.1" in shown
    assert "our.example" in rail.cli("dmarc", "received", "--source", "192.0.2.1")
    assert listed(rail, "--kind", "tls") == []


def test_what_is_no_report_is_told_with_its_reason_and_stays_unread(rail: Rail, tmp_path: Path) -> None:
    sent(rail, tmp_path, report_mail(b"<feedback>" + b" " * 40_000_000, results=""))
    wait_until(lambda: "unpacks to more" in " ".join(rail.cli("dmarc", "refused").split()), 60, "the refusal")
    (mail,) = [one for one in rail.mailbox(POSTMASTER, "Postmaster/reports") if "\\Seen" not in one["flags"]]
    assert "$ReportRefused" in mail["flags"]


def test_a_report_that_comes_while_dmarc_is_killed_is_read_once_it_is_back(rail: Rail, tmp_path: Path) -> None:
    before = len(listed(rail))
    rail.kill("dmarc")
    sent(rail, tmp_path, report_mail(aggregate(7), results=""))
    wait_until(
        lambda: len(listed(rail)) == before + 1,
        60,
        "the report is read",
        ignoring=(AssertionError,),
    )
