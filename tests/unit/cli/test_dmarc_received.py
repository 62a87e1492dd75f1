"""`mailrail dmarc received`, `report` and `refused`: what they ask, and what they print."""

from typing import Any

import pytest
from typer.testing import CliRunner

from mailrail.cli import dmarc_received
from mailrail.pb.dmarc.v1 import received_pb2


class Stub:
    """What dmarc answers."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def ListReceived(self, request: Any, timeout: float) -> Any:
        self.asked.append(request)
        one = received_pb2.Received(
            id=7, kind=received_pb2.REPORT_KIND_TLS, domain="our.example", organization="Rep\x1b[1m", good=5, bad=2
        )
        return received_pb2.ListReceivedResponse(reports=[one], next_page_token="more")

    async def GetReceived(self, request: Any, timeout: float) -> Any:
        answer = received_pb2.GetReceivedResponse(
            report=received_pb2.Received(id=request.id, report_id="abc", rejected=3)
        )
        answer.records.add(source="192.0.2.1", messages=9, dkim="pass")
        answer.policies.add(
            type="sts",
            domain="our.example",
            successful=5,
            failed=2,
            details='{"failures": [{"result": "certificate-expired", "sessions": 2, "receiving_ip": "198.51.100.1"}]}',
        )
        return answer

    async def ListRefused(self, request: Any, timeout: float) -> Any:
        answer = received_pb2.ListRefusedResponse()
        answer.mails.add(id=3, sender="rep.example", subject="hi", reason="nothing proves who sent it")
        return answer


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    import asyncio

    found = Stub()
    monkeypatch.setattr(dmarc_received, "_stub", lambda channel: found)
    monkeypatch.setattr(dmarc_received, "ask", lambda service, question: asyncio.run(question(None)))
    return found


def said(*arguments: str) -> str:
    done = CliRunner().invoke(dmarc_received.app, arguments)
    assert done.exit_code == 0, done.output
    return done.output


def test_reports_are_listed_with_what_was_asked_for(stub: Stub) -> None:
    options = ("--domain", "our.example", "--kind", "tls", "--from", "rep.example", "--source", "192.0.2.1")
    told = said("received", *options, "--limit", "1")
    assert "our.example" in told
    assert "\x1b[1m" not in told  # of a stranger
    assert "--limit 0 shows all" in told
    (asked,) = stub.asked
    assert (asked.domain, asked.kind, asked.submitter, asked.source) == ("our.example", 2, "rep.example", "192.0.2.1")


def test_a_report_is_shown_with_its_rows_and_failures(stub: Stub) -> None:
    told = said("report", "7")
    for words in ("abc", "3 rows", "192.0.2.1", "5 sessions well, 2 failed", "2 x certificate-expired", "198.51.100.1"):
        assert words in told


def test_what_was_refused_is_told_with_its_reason(stub: Stub) -> None:
    assert "nothing proves who sent it" in said("refused")
