"""The command against a running installation: what is queued, why, and what to do about it."""

import json
import os
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from mailrail.local.options import SMTP

from testkit.conditions import wait_until
from testkit.local import Installation, installation

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def local() -> Iterator[Installation]:
    """One installation for all of them."""
    with installation() as running:
        yield running


def _queued(local: Installation, to: str) -> dict[str, Any]:
    """Queue a message for a recipient that always fails for now (captive local mode), and wait for its first try."""
    with smtplib.SMTP("127.0.0.1", local.port(SMTP), timeout=30) as client:
        content = f"Subject: for {to}\r\nMessage-ID: <{to}>\r\n\r\nhello \x1b[2J\r\n".encode()
        client.sendmail("bob@elsewhere.example", [to], content)

    def tried() -> dict[str, Any] | None:
        found: list[dict[str, Any]] = local.ask("queue", "list", "--to", to)
        return next((r for r in found if r["state"] == "queued" and r["last"]), None)

    return wait_until(tried, 60, f"{to} was tried once")


def _one(local: Installation, number: int) -> dict[str, Any]:
    found: list[dict[str, Any]] = local.ask("queue", "list", str(number))
    assert len(found) == 1
    return found[0]


def _done(local: Installation, *arguments: str) -> str:
    done = local.run(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_deferred_recipient_is_listed_with_its_reason(local: Installation) -> None:
    recipient = _queued(local, "list.temperror@far.example")
    assert recipient["attempts"] == 1
    assert recipient["outcome"] == "deferred"
    shown = _done(local, "queue", "list", "--to-domain", "far.example")
    line = next(line for line in shown.splitlines() if "list.temperror@far.example" in line)
    assert "bob@elsewhere.example" in line
    assert " queued " in line
    assert _done(local, "queue", "list", "--to", "nobody-like-this") == "no recipient in the queue matches\n"


def test_a_message_is_shown_whole_by_its_id_and_by_the_number_of_a_recipient(local: Installation) -> None:
    recipient = _queued(local, "show.temperror@far.example")
    whole = local.ask("queue", "show", recipient["message_id"])
    assert whole["envelope"]["mail_from"] == "bob@elsewhere.example"
    assert whole["envelope"]["message_id"] == "<show.temperror@far.example>"
    assert [a["number"] for a in whole["recipients"][0]["attempts"]] == [1]
    shown = _done(local, "queue", "show", str(recipient["id"]))
    assert "attempt 1" in shown
    assert "for show.temperror@far.example" in shown


def test_content_comes_octet_for_octet(local: Installation) -> None:
    recipient = _queued(local, "content.temperror@far.example")
    content = _done(local, "queue", "content", recipient["message_id"])
    assert "hello \x1b[2J" in content
    assert content.startswith("Received: ")


def test_hold_and_unhold(local: Installation) -> None:
    number = str(_queued(local, "hold.temperror@far.example")["id"])
    assert _done(local, "queue", "hold", number, "--reason", "looking into it") == "1 recipient put on hold\n"
    held = _one(local, int(number))
    assert (held["on_hold"], held["hold_reason"]) == (True, "looking into it")
    assert number in {str(r["id"]) for r in local.ask("queue", "list", "--on-hold")}
    assert _done(local, "queue", "unhold", number) == "1 recipient released\n"
    assert _one(local, int(number))["on_hold"] is False


def test_kick_tries_at_once(local: Installation) -> None:
    recipient = _queued(local, "kick.temperror@far.example")
    assert "made due now" in _done(local, "queue", "kick", str(recipient["id"]))
    wait_until(lambda: _one(local, recipient["id"])["attempts"] == 2, 60, "the second attempt was made")


def test_schedule_moves_the_next_attempt(local: Installation) -> None:
    recipient = _queued(local, "schedule.temperror@far.example")
    _done(local, "queue", "schedule", str(recipient["id"]), "--at", "2031-01-02T03:04:05Z")
    assert _one(local, recipient["id"])["next_attempt"] == "2031-01-02T03:04:05.000Z"
    _done(local, "queue", "schedule", str(recipient["id"]), "--later", "-1h")
    assert _one(local, recipient["id"])["next_attempt"] == "2031-01-02T02:04:05.000Z"


def test_a_transport_set_by_hand_overrides_the_routes_until_they_decide_again(local: Installation) -> None:
    recipient = _queued(local, "transport.temperror@far.example")
    number = str(recipient["id"])
    _done(local, "queue", "hold", number)
    assert "bound to default/smarthost" in _done(local, "queue", "set-transport", "smarthost", number)
    explained = local.ask("explain", number)
    assert explained["decision"]["transport"]["name"] == "smarthost"
    refused = local.run("queue", "set-transport", "no-such-transport", number)
    assert refused.exit_code in (1, 2)
    assert "no-such-transport" in refused.stderr
    assert "routed by the routes again" in _done(local, "queue", "set-transport", "routes", number)
    assert _one(local, recipient["id"])["override_transport"] is None


def test_what_a_message_demands_of_tls_is_changed_and_shown_also_when_it_has_ended(local: Installation) -> None:
    recipient = _queued(local, "tls.temperror@far.example")
    number, message = str(recipient["id"]), recipient["message_id"]
    told = _done(local, "queue", "set-tls", "no", number, "--reason", "their certificate expired")
    assert told == '1 recipient set to TLS "no": sent without TLS if necessary\n'
    assert _one(local, recipient["id"])["tls_requirement"] == "no"
    _done(local, "queue", "fail", number)
    wait_until(lambda: local.ask("queue", "history", number), 60, "it is in the history")
    (entry,) = local.ask("queue", "show", message)["recipients"][0]["entries"]
    assert entry["actor"] == "cli"
    assert entry["tls_set"] == {"from": "unspecified", "to": "no", "reason": "their certificate expired"}
    shown = _done(local, "queue", "show", message)
    assert "no (before: default)" in shown
    assert "their certificate expired" in shown


def test_fail_ends_a_recipient_and_history_keeps_it(local: Installation) -> None:
    recipient = _queued(local, "fail.temperror@far.example")
    assert "failed" in _done(local, "queue", "fail", str(recipient["id"]), "--reason", "no longer wanted")
    wait_until(lambda: local.ask("queue", "history", str(recipient["id"])), 60, "it is in the history")
    kept = local.ask("queue", "history", str(recipient["id"]))[0]
    assert kept["state"] == "failed"
    assert local.ask("queue", "list", str(recipient["id"])) == []


def test_drop_ends_a_recipient_and_tells_nobody(local: Installation) -> None:
    recipient = _queued(local, "drop.temperror@far.example")
    assert "dropped" in _done(local, "queue", "drop", str(recipient["id"]))
    wait_until(lambda: local.ask("queue", "history", str(recipient["id"])), 60, "it is in the history")
    assert local.ask("queue", "history", str(recipient["id"]))[0]["state"] == "cancelled"


def test_what_matches_nobody_is_status_1(local: Installation) -> None:
    for command in ("kick", "hold", "unhold", "drop", "fail"):
        done = local.run("queue", command, "999999999")
        assert (done.exit_code, done.stderr) == (1, "mailrail: no recipient matches\n")
    assert local.run("queue", "show", "999999999").exit_code == 1
    unknown = local.run("queue", "show", "00000000-0000-0000-0000-000000000000")
    assert unknown.exit_code == 1


def test_hold_rules_are_made_listed_and_removed(local: Installation) -> None:
    before = _queued(local, "rule.temperror@held.example")
    made = json.loads(
        _done(local, "queue", "holds", "add", "--to-domain", "held.example", "--comment", "why", "--json")
    )
    try:
        assert made["held"] >= 1
        assert _one(local, before["id"])["on_hold"] is True
        listed = local.ask("queue", "holds", "list")
        assert [(r["to_domain"], r["comment"]) for r in listed] == [("held.example", "why")]
    finally:
        _done(local, "queue", "holds", "remove", str(made["rule"]["id"]))
    assert local.ask("queue", "holds", "list") == []


def test_counts_and_sites_agree_with_the_list(local: Installation) -> None:
    _queued(local, "stats.temperror@sites.example")
    stats = local.ask("queue", "stats")
    assert stats["queued"] >= 1
    assert stats["outbound_processes"] == 1
    assert "awaiting cleanup" in _done(local, "queue", "stats")
    assert any("sites.example" in site["name"] for site in local.ask("queue", "sites", "--limit", "0"))


def test_explain_tells_where_an_imagined_message_would_go_and_why(local: Installation) -> None:
    explained = local.ask("explain", "--from", "bob@elsewhere.example", "--to", "alice@example.org")
    assert explained["decision"]["kind"] == "mailbox"
    foreign = local.ask("explain", "--from", "alice@example.org", "--account", "alice", "--to", "x@far.example")
    assert foreign["decision"]["kind"] in ("transport", "direct")
    assert foreign["decision"]["reason"]
    text = _done(local, "explain", "--from", "alice@example.org", "--account", "alice", "--to", "x@far.example")
    assert text.startswith("result")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows hands arguments on as UTF-16")
def test_no_locale_makes_a_command_fail(local: Installation) -> None:
    """The arrow of `explain` is in no code page of Windows, and containers often have no locale: `>` stands for it."""
    bare = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": os.environ["PATH"]}

    def explained(*more: str) -> str:
        command = [
            sys.executable,
            "-m",
            "mailrail.cli",
            "--state",
            str(local.state),
            "explain",
            "--to",
            "bob@bücher.example",
        ]
        done = subprocess.run([*command, *more], env=bare, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert ">  default" in explained()
    assert json.loads(explained("--json"))["site"] == "domain:xn--bcher-kva.example"


def test_mail_for_an_account_is_read_in_its_mailbox(local: Installation) -> None:
    with smtplib.SMTP("127.0.0.1", local.port(SMTP), timeout=30) as client:
        content = b"From: bob@elsewhere.example\r\nSubject: =?utf-8?q?caf=C3=A9?=\r\n\r\nhello \x1b[2J there\r\n"
        client.sendmail("bob@elsewhere.example", ["alice@example.org"], content)

    def arrived() -> dict[str, Any] | None:
        found: list[dict[str, Any]] = local.ask("mailbox", "list", "--account", "alice@example.org")
        return next((m for m in found if m["subject"] == "café"), None)

    message = wait_until(arrived, 60, "it is in the mailbox")
    number = str(message["id"])

    def flags() -> object:
        return next(m for m in local.ask("mailbox", "list", "--account", "alice") if m["id"] == message["id"])["flags"]

    shown = _done(local, "mailbox", "read", number)
    assert "hello \\x1b[2J there" in shown
    assert "café" in shown
    assert b"hello \x1b[2J there" in _done(local, "mailbox", "read", number, "--raw").encode()
    read = local.ask("mailbox", "read", number)
    assert read["message"]["recipient"] == "alice@example.org"
    assert (
        "\\Seen"
        in next(m for m in local.ask("mailbox", "list", "--account", "alice") if m["id"] == message["id"])["flags"]
    )
    _done(local, "mailbox", "flag", number, "--add", "flagged", "--remove", "seen")
    assert flags() == ["\\Flagged"]
    assert any(box["path"] == "Inbox" for box in local.ask("mailbox", "boxes"))
    assert _done(local, "mailbox", "delete", number) == "1 message deleted\n"
    gone = local.run("mailbox", "flag", number, "--add", "seen")
    assert (gone.exit_code, gone.stderr) == (1, "mailrail: no such message\n")
    assert local.run("mailbox", "read", number).exit_code == 1


def test_configuration_is_shown_rolled_back_and_let_go_again(local: Installation) -> None:
    head = local.ask("config", "status")["head"]
    compiled = json.loads(_done(local, "config", "show"))
    assert compiled["gateways"][0]["ref"]["name"] == "local"
    (local.resources / "90-more.yaml").write_text(
        "apiVersion: mailrail.dev/v1alpha1\nkind: MailTransport\nmetadata: {name: more}\nspec: {fail: {code: 554}}\n"
    )
    wait_until(lambda: local.ask("config", "status")["head"] > head, 60, "the change is in force")
    newest = local.ask("config", "status")["newest"]
    assert _done(local, "config", "wait", "--revision", str(newest)) == f"revision {newest} runs in all 5 services\n"
    assert "in force and pinned" in _done(local, "config", "rollback", str(head), "--reason", "the relay bounced")
    pinned = local.ask("config", "status")
    assert (pinned["pinned"], pinned["pin_reason"], pinned["newest"]) == (True, "the relay bounced", newest)
    told = _done(local, "config", "status")
    assert f"revision {head} is in force: 1 gateway, 1 domain, 2 accounts, 7 transports" in told
    assert f"pinned (the relay bounced); the newest, {newest} (1 gateway, 1 domain, 2 accounts, 8 transports" in told
    assert "pinned" in _done(local, "config", "history")
    assert local.ask("config", "wait")["head"] == head  # exactly that one, although all ran a newer
    later = local.run("config", "wait", "--revision", str(newest), "--timeout", "0")
    assert (later.exit_code, "is pinned: `mailrail config unpin`" in later.stderr) == (1, True)
    assert "is in force" in _done(local, "config", "unpin")
    status = local.ask("config", "status")
    assert (status["pinned"], status["pin_reason"]) == (False, "")
    assert status["head"] > head
    [key] = local.ask("config", "keys")
    assert key["values"] >= key["head_values"] > 0
    assert local.run("config", "rollback", "999999").exit_code == 1


def test_ingress_and_outbound_tell_what_they_are_doing(local: Installation) -> None:
    with smtplib.SMTP("127.0.0.1", local.port(SMTP), timeout=30) as client:
        client.ehlo("looking.example")
        sessions = local.ask("ingress", "sessions")
        assert [s["client_name"] for s in sessions["sessions"]] == ["looking.example"]
    resolved = local.ask("ingress", "resolve", "alice@example.org")
    assert resolved["code"] == 250
    # Captive, 1025 takes any recipient (design 10); a login may send to anybody, captive or not.
    assert local.ask("ingress", "resolve", "bob@elsewhere.example")["code"] == 250
    assert local.ask("ingress", "resolve", "nobody@example.org")["recipients"][0]["how"] == "captive"
    assert local.run("ingress", "resolve", "nobody@example.org", "--login", "alice@example.org").exit_code == 1
    assert local.ask("outbound", "connections") == []


def test_the_services_may_be_named_instead_of_a_state_folder(local: Installation) -> None:
    client = json.loads((local.state / "client.json").read_text())
    servers = ",".join(f"{role}={target}" for role, target in client["targets"].items())
    done = local.run("--server", servers, "--tls-dir", client["tls_dir"], "queue", "stats", "--json")
    assert done.exit_code == 0, done.stderr
    wrong = local.run("--server", client["targets"]["config"], "--tls-dir", client["tls_dir"], "queue", "stats")
    assert wrong.exit_code == 3, "config does not prove to be queue"
