"""`mailrail dmarc`: what is counted, and the reports of ours."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from typer.testing import CliRunner

from mailrail.cli import dmarc_reports
from mailrail.cli.app import app
from mailrail.pb.dmarc.v1 import admin_pb2

END = datetime(2026, 3, 5, tzinfo=UTC)


def a_report() -> admin_pb2.Report:
    found = admin_pb2.Report(
        domain="sender.example", state=admin_pb2.REPORT_STATE_SENT, messages=7, detail="1 of 1 addresses\x1b[2J"
    )
    found.end.FromDatetime(END)
    return found


def said(monkeypatch: pytest.MonkeyPatch, answer: Any, *command: str) -> str:
    monkeypatch.setattr(dmarc_reports, "ask", lambda *_, **__: answer)
    done = CliRunner().invoke(app, ["dmarc", *command])
    assert done.exit_code == 0, done.output
    return done.output


def test_domains_are_told_with_whether_they_get_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    found = admin_pb2.DomainStatistics(
        domain="sender.example", messages=3, send_report=True, dispositions=["pass", "reject"], interval_hours=24
    )
    told = said(monkeypatch, [found], "domains")
    assert "sender.example  3         pass, reject  yes     24 h" in told
    assert "nothing is counted" in said(monkeypatch, [], "domains")
    assert json.loads(said(monkeypatch, [found], "domains", "--json"))[0]["domain"] == "sender.example"


def test_reports_are_listed_with_what_came_of_them_and_what_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    told = said(monkeypatch, ([a_report()], "no domain has a DKIM key"), "sent")
    assert "sender.example  2026-03-05T00:00:00.000Z  sent   7         1 of 1 addresses\\x1b[2J" in told
    assert "no domain has a DKIM key" in told


def test_reports_are_sent_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = admin_pb2.SendReportsResponse(reports=[a_report()])
    assert "sent" in said(monkeypatch, answer, "send", "sender.example", "--before", "2026-03-05T00:00:00Z")
    assert "nothing is to be reported" in said(monkeypatch, admin_pb2.SendReportsResponse(), "send")


def test_a_report_is_shown_before_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = admin_pb2.PreviewReportResponse(xml=b"<feedback></feedback>\n")
    assert said(monkeypatch, answer, "preview", "sender.example") == "<feedback></feedback>\n"
