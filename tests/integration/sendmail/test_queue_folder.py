"""The queue folder of sendmail: what is kept, for whom, with which status, and what a crash leaves of it."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testkit.conditions import wait_until
from testkit.next_hop import NextHop
from testkit.sendmail import Sendmail, scripted

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such thing")


@pytest.fixture
def hop() -> Iterator[NextHop]:
    with NextHop(address="127.0.0.1") as hop:
        yield hop


@contextlib.contextmanager
def nobody() -> Iterator[int]:
    """A port that nobody listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def at(folder: Path, port: int, **more: object) -> Sendmail:
    more = {"sender": "ada@home.test", **more}
    return Sendmail(folder, server="127.0.0.1", port=port, tls="none", **more)


def waiting(folder: Path, hop: NextHop, *recipients: str) -> Sendmail:
    """An installation with a message for each recipient in its queue, whose server is there now."""
    with nobody() as port:
        sendmail = at(folder, port)
        sendmail.beat()
        for each in recipients:
            assert sendmail.here(each) == 0
    sendmail.configure(server="127.0.0.1", port=hop.port, tls="none", sender="ada@home.test")
    return sendmail


def change(sendmail: Sendmail, **values: object) -> None:
    """As if time had passed, or more, for all that waits."""
    for path in (sendmail.queue / "queue").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_bytes()) | values))


def test_out_of_reach_is_75_and_failed_where_nobody_will_send_it_SML_06(tmp_path: Path) -> None:
    with nobody() as port:
        sendmail = at(tmp_path, port)
        done = sendmail.call("bob@away.test")
    assert done.status == 75
    (kept,) = sendmail.kept("failed")
    assert sendmail.kept("queue") == []
    assert str(sendmail.queue / "failed" / f"{kept['id']}.eml") in done.err
    assert "cannot be reached" in done.err
    assert kept["recipients"][0]["address"] == "bob@away.test"
    assert sendmail.text(kept, "failed").endswith(b"\r\n\r\nHello Bob\r\n")
    if os.name != "nt":
        assert sendmail.queue.stat().st_mode & 0o777 == 0o700
        assert {each.stat().st_mode & 0o077 for each in sendmail.queue.rglob("*")} == {0}


@pytest.mark.parametrize(
    ("ago", "status", "where"), [(0, 0, "queue"), (3500, 0, "queue"), (3700, 75, "failed"), (-900, 75, "failed")]
)
def test_a_heartbeat_of_the_last_hour_makes_it_0_SML_06(tmp_path: Path, ago: int, status: int, where: str) -> None:
    with nobody() as port:
        sendmail = at(tmp_path, port)
        sendmail.beat(ago)
        done = sendmail.call("bob@away.test")
    assert done.status == status
    assert (not done.err) == (status == 0)
    assert len(sendmail.kept(where)) == 1
    assert len(sendmail.kept("queue") + sendmail.kept("failed")) == 1


def test_what_failed_is_never_sent_by_itself_SML_06(tmp_path: Path, hop: NextHop) -> None:
    with nobody() as port:
        sendmail = at(tmp_path, port)
        assert sendmail.call("bob@away.test").status == 75
    sendmail.configure(server="127.0.0.1", port=hop.port, tls="none", sender="ada@home.test")
    assert sendmail.call("-q").status == 0
    assert hop.messages == []
    assert len(sendmail.kept("failed")) == 1


def test_a_refused_recipient_is_kept_and_the_others_get_it_SML_07(tmp_path: Path, hop: NextHop) -> None:
    hop.refuse("bob@away.test", "550 5.1.1 no such user")
    hop.refuse("dan@away.test", "450 4.2.0 later")
    sendmail = at(tmp_path, hop.port)
    sendmail.beat()
    done = sendmail.call("ann@away.test", "bob@away.test", "dan@away.test")
    assert done.status == 67
    assert "bob@away.test: 550 5.1.1 no such user" in done.err
    assert hop.messages[0].recipients == ("ann@away.test",)
    (failed,), (later,) = sendmail.kept("failed"), sendmail.kept("queue")
    assert [(each["address"], each["reply"]) for each in failed["recipients"]] == [
        ("bob@away.test", "550 5.1.1 no such user")
    ]
    assert [each["address"] for each in later["recipients"]] == ["dan@away.test"]
    hop.accept("dan@away.test")
    assert sendmail.call("-q").status == 0
    assert hop.messages[1].recipients == ("dan@away.test",)
    assert sendmail.kept("queue") == []


def refused(step: str, reply: str) -> dict[str, Any]:
    return {"replies": {step: reply}}


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (refused("END", "554 5.6.0 not this"), 65),
        (refused("RCPT", "550 5.1.1 no such user"), 67),
        (refused("RCPT", "554 5.7.1 not here"), 69),
        (refused("DATA", "554 no"), 69),
        (refused("MAIL", "553 5.7.1 not you"), 77),
        (refused("END", "451 later"), 75),
        (refused("MAIL", "421 closing"), 75),
        (refused("GREETING", "HTTP/1.1 400 Bad Request"), 76),
        (refused("GREETING", "554 go away"), 69),
    ],
)
def test_each_refusal_has_its_status_and_loses_nothing_SML_09(
    tmp_path: Path, options: dict[str, Any], status: int
) -> None:
    with scripted(**options) as peer:
        sendmail = at(tmp_path, peer.port)
        done = sendmail.call("bob@away.test")
    assert done.status == status, done.err
    assert done.err.count("\n") == 2
    assert len(sendmail.kept("failed")) == 1
    assert "kept as" in done.err


def test_a_call_that_cannot_work_has_its_status_and_sends_nothing_SML_09(tmp_path: Path, hop: NextHop) -> None:
    sendmail = at(tmp_path, hop.port)
    assert sendmail.call("-Z", "bob@away.test").status == 64
    assert sendmail.call().status == 64
    assert sendmail.call("-t", message=b"Subject: x\n\n").status == 64
    assert sendmail.call("-t", message=b"To: <broken\n\n").status == 65
    assert sendmail.call("root").status == 67
    assert sendmail.call("-C", "/nowhere", "bob@away.test").status == 78
    with (tmp_path / "empty").open("wb") as full:
        assert sendmail.call("-oeq", "-Z", stdout=full).status == 64
    assert hop.messages == []
    assert list(sendmail.queue.rglob("*.eml")) == []


@POSIX
def test_input_that_cannot_be_read_is_66_SML_09(tmp_path: Path, hop: NextHop) -> None:
    sendmail = at(tmp_path, hop.port)
    closed = sendmail.call(
        "bob@away.test", command=("/bin/sh", "-c", f'exec {sys.executable} -m mailrail.sendmail "$@" <&-', "sh")
    )
    assert closed.status == 66, closed.err
    assert hop.messages == []


@POSIX
def test_a_server_name_that_does_not_exist_is_68_SML_09(tmp_path: Path) -> None:
    code = (
        "import socket, sys\n"
        "def absent(*_, **__): raise socket.gaierror(socket.EAI_NONAME, 'unknown')\n"
        "socket.getaddrinfo = absent\n"
        "from mailrail.sendmail import main; sys.exit(main(called='sendmail'))"
    )
    sendmail = Sendmail(tmp_path, server="absent.test", sender="ada@home.test")
    done = sendmail.call("bob@away.test", command=(sys.executable, "-c", code))
    assert done.status == 68
    assert "there is no host absent.test: mend `server`" in done.err
    assert len(sendmail.kept("failed")) == 1


def test_a_mistake_of_ours_is_70_and_the_message_kept_SML_09(tmp_path: Path, hop: NextHop) -> None:
    code = (
        "import sys, mailrail.sendmail.dialogue as d\n"
        "def broken(*_): raise ZeroDivisionError('oops')\n"
        "d.SubmissionClient.send = broken\n"
        "from mailrail.sendmail import main; sys.exit(main(called='sendmail'))"
    )
    sendmail = at(tmp_path, hop.port)
    done = sendmail.call("bob@away.test", command=(sys.executable, "-c", code))
    assert done.status == 70
    assert "ZeroDivisionError: oops. Please report it" in done.err
    assert len(sendmail.kept("failed")) == 1


@POSIX
def test_what_cannot_be_kept_is_73_and_what_can_be_sent_is_sent_SML_09(tmp_path: Path, hop: NextHop) -> None:
    sendmail = at(tmp_path, hop.port)
    sendmail.queue.write_text("no folder")
    assert sendmail.call("bob@away.test").status == 0
    assert len(hop) == 1
    with nobody() as port:
        sendmail.configure(server="127.0.0.1", port=port, tls="none", sender="ada@home.test")
        done = sendmail.call("bob@away.test")
    assert done.status == 73
    assert "the message is not kept" in done.err
    sendmail.queue.unlink()
    sendmail.queue.mkdir(mode=0o755)
    with nobody() as port:
        done = sendmail.call("bob@away.test")
    assert done.status == 73
    assert "open to others" in done.err


@POSIX
def test_a_full_disk_is_73_and_sends_nothing_SML_12(tmp_path: Path, hop: NextHop) -> None:
    import resource

    sendmail = at(tmp_path, hop.port)
    full = 100_000

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (full, full))

    done = sendmail.call("bob@away.test", message=b"Subject: x\n\n" + b"x\n" * full, preexec_fn=small)
    assert done.status == 73, done.err
    assert hop.messages == []
    assert list(sendmail.queue.rglob("*.eml")) == []


@POSIX
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_answer_that_cannot_be_written_is_74_SML_12(tmp_path: Path, hop: NextHop) -> None:
    sendmail = at(tmp_path, hop.port)
    with Path("/dev/full").open("wb") as full:
        assert sendmail.call("-bp", stdout=full).status == 74
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as broken:
        assert sendmail.call("-bp", stdout=broken).status == 74


def test_a_server_that_never_answers_is_left_in_time_SML_12(tmp_path: Path) -> None:
    from testkit.smtp_peer import Drip

    with scripted(replies={"EHLO": Drip()}) as peer:
        sendmail = at(tmp_path, peer.port, timeouts={"reply": 0.5})
        done = sendmail.call("bob@away.test")
    assert done.status == 75
    assert "did not answer HELLO in time" in done.err


@POSIX
def test_a_process_that_is_ended_in_the_middle_keeps_the_message_SML_06(tmp_path: Path) -> None:
    from testkit.smtp_peer import Hang

    with scripted(replies={"MAIL": Hang()}) as peer:
        sendmail = at(tmp_path, peer.port)
        process = subprocess.Popen(
            [sys.executable, "-m", "mailrail.sendmail", "bob@away.test"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=sendmail.environment,
        )
        assert process.stdin is not None
        process.stdin.write(b"Subject: x\n\nhi\n")
        process.stdin.close()
        wait_until(lambda: any(line.startswith("MAIL") for line in peer.commands), 60, "MAIL was said")
        process.terminate()
        assert process.stderr is not None
        said = process.stderr.read().decode()
        process.stderr.close()
        assert process.wait(60) == 75
    assert "ended while the message was being sent" in said
    assert len(sendmail.kept("failed")) == 1


@POSIX
@pytest.mark.timeout(600)
def test_a_kill_while_it_is_kept_loses_no_message_that_was_answered_0_SML_06(tmp_path: Path, hop: NextHop) -> None:
    """A caller that was told 0 can rely on it; one whose call was killed was told nothing, and may find one copy."""
    steps = 0
    for step in range(1, 30):
        folder = tmp_path / str(step)
        folder.mkdir()
        with nobody() as port:
            sendmail = at(folder, port)
            sendmail.beat()
            done = sendmail.killed_at(step, "bob@away.test")
        sendmail.configure(server="127.0.0.1", port=hop.port, tls="none", sender="ada@home.test")
        before = len(hop)
        for _ in range(2):
            assert sendmail.here("-q") == 0
        copies = len(hop) - before
        assert copies <= 1
        if done.status == 0:
            assert copies == 1
            steps = step
            break
        assert done.status == -9
    assert steps > 5


@POSIX
@pytest.mark.timeout(600)
def test_a_kill_while_it_is_sent_loses_nothing_and_sends_twice_only_after_the_dot_SML_08(
    tmp_path: Path, hop: NextHop
) -> None:
    twice = []
    for step in range(1, 30):
        folder = tmp_path / str(step)
        folder.mkdir()
        before = len(hop)
        sendmail = waiting(folder, hop, "bob@away.test")
        done = sendmail.killed_at(step, "-q")
        sent = len(hop) - before
        assert sendmail.here("-q") == 0
        copies = hop.messages[before:]
        assert 1 <= len(copies) <= 1 + sent, "again only what the server had taken before the kill"
        assert len({message.header("Message-ID") for message in copies}) == 1
        assert sendmail.kept("queue") == sendmail.kept("failed") == []
        twice.append(len(copies) == 2)
        if done.status == 0:
            break
        assert done.status == -9
    assert done.status == 0
    assert twice[0] is False


@POSIX
@pytest.mark.timeout(600)
def test_a_kill_while_it_fails_keeps_it_and_tells_once_SML_08(tmp_path: Path, hop: NextHop) -> None:
    hop.refuse("bob@away.test", "550 5.1.1 no such user")
    for step in range(1, 40):
        folder = tmp_path / str(step)
        folder.mkdir()
        before = len(hop)
        sendmail = waiting(folder, hop, "bob@away.test")
        done = sendmail.killed_at(step, "-q")
        for _ in range(2):
            assert sendmail.here("-q") == 0
        (kept,) = sendmail.kept("failed")
        assert [each["reply"] for each in kept["recipients"]] == ["550 5.1.1 no such user"]
        assert sendmail.text(kept, "failed").endswith(b"Hello Bob\r\n")
        assert sendmail.kept("queue") == []
        (notice,) = hop.messages[before:]
        assert (notice.sender, notice.recipients) == ("", ("ada@home.test",))
        if done.status == 0:
            break
        assert done.status == -9
    assert done.status == 0


def test_what_waits_is_sent_oldest_first_on_one_connection_SML_08(tmp_path: Path, hop: NextHop) -> None:
    sendmail = waiting(tmp_path, hop, "a@away.test", "b@away.test", "c@away.test")
    assert sendmail.call("-q").status == 0
    assert [message.recipients for message in hop.messages] == [("a@away.test",), ("b@away.test",), ("c@away.test",)]
    assert hop.connections == 1
    assert sendmail.kept("queue") == []


def test_each_message_has_its_backoff_unless_it_is_asked_for_by_hand_SML_08(tmp_path: Path) -> None:
    with scripted(replies={"RCPT": "450 4.2.0 later"}) as peer, nobody() as port:
        sendmail = at(tmp_path, port)
        sendmail.beat()
        begun = time.time()
        assert sendmail.call("bob@away.test").status == 0
        sendmail.configure(server="127.0.0.1", port=peer.port, tls="none", sender="ada@home.test")
        (fresh,) = sendmail.kept("queue")
        assert begun + 300 <= fresh["next_try"] <= time.time() + 300
        change(sendmail, next_try=time.time() + 1_000_000)
        before = sendmail.kept("queue")
        assert sendmail.call("-q", "--heartbeat").status == 0
        assert sendmail.kept("queue") == before, "it is not its time yet"
        change(sendmail, next_try=time.time() - 1)
        begun = time.time()
        assert sendmail.call("-q", "--heartbeat").status == 0
        (kept,) = sendmail.kept("queue")
        assert kept["attempts"] == 2
        assert begun + 600 <= kept["next_try"] <= time.time() + 600
        assert kept["recipients"][0]["reply"] == "450 4.2.0 later"
        assert sendmail.call("-q").status == 0
        assert sendmail.kept("queue")[0]["attempts"] == 3


@POSIX
def test_one_process_at_a_time_sends_what_waits_SML_08(tmp_path: Path, hop: NextHop) -> None:
    import fcntl

    sendmail = waiting(tmp_path, hop, "bob@away.test")
    with (sendmail.queue / "lock").open("a+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = sendmail.call("-q")
        assert done.status == 0
        assert "another process sends what waits" in done.err
        assert hop.messages == []
    command = [sys.executable, "-m", "mailrail.sendmail", "-q"]
    both = [subprocess.Popen(command, env=sendmail.environment, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert len(hop) == 1


def test_after_five_days_it_fails_and_the_sender_is_told_SML_08(tmp_path: Path, hop: NextHop) -> None:
    with nobody() as port:
        sendmail = at(tmp_path, port)
        sendmail.beat()
        assert sendmail.call("bob@away.test", "eve@away.test").status == 0
        assert sendmail.call("carl@away.test").status == 0
        change(sendmail, created=time.time() - 5 * 86_400 - 60)
        assert sendmail.call("-q", "--heartbeat").status == 75
        assert len(sendmail.kept("failed")) == 2, "also those that were not tried in this pass"
    sendmail.configure(server="127.0.0.1", port=hop.port, tls="none", sender="ada@home.test")
    assert sendmail.call("-q").status == 0
    assert len(hop) == 2
    notice = hop.messages[0]
    assert (notice.sender, notice.recipients) == ("", ("ada@home.test",))
    text = notice.parsed.get_content()
    assert "bob@away.test" in text
    assert "eve@away.test" in text
    assert "cannot be reached" in text
    assert "Subject: hello" in text
    assert sendmail.kept("queue") == []


def test_a_notice_that_fails_tells_nobody_SML_08(tmp_path: Path, hop: NextHop) -> None:
    hop.refuse("bob@away.test", "550 no")
    hop.refuse("ada@home.test", "550 no")
    sendmail = waiting(tmp_path, hop, "bob@away.test")
    for _ in range(3):
        assert sendmail.call("-q").status == 0
    assert hop.messages == []
    assert sendmail.kept("queue") == []
    assert sorted(each["notice"] for each in sendmail.kept("failed")) == [False, True]


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[" * 100_000, b'{"format": 2}', b"\xff", b'{"format": 1, "recipients": 5}']
)
def test_a_file_that_is_no_envelope_is_named_and_left_alone_SML_08(tmp_path: Path, hop: NextHop, text: bytes) -> None:
    sendmail = waiting(tmp_path, hop, "bob@away.test")
    strange = sendmail.queue / "queue" / f"{'0' * 20}-{'a' * 16}.json"
    strange.write_bytes(text)
    done = sendmail.call("-q")
    assert done.status == 0
    assert strange.stem in done.err
    assert len(hop) == 1
    assert strange.exists()
    assert strange.stem in sendmail.call("-bp").out


def test_mailq_lists_what_waits_and_what_failed_SML_01(tmp_path: Path, hop: NextHop) -> None:
    sendmail = at(tmp_path, hop.port)
    assert sendmail.call("-bp").out == "The queue is empty\n"
    sendmail = waiting(tmp_path, hop, "bob@away.test")
    hop.refuse("eve@away.test", "550 5.1.1 \x1b[31mno")
    assert sendmail.call("eve@away.test").status == 67
    listed = sendmail.call("-bp").out
    assert " waiting " in listed
    assert " failed " in listed
    assert "bob@away.test" in listed
    assert "\x1b" not in listed
    assert "550 5.1.1" in listed


@POSIX
def test_the_names_that_others_call_are_linked_and_nothing_is_replaced_SML_01(tmp_path: Path) -> None:
    if not (Path(sys.executable).parent / "mailrail-sendmail").exists():
        pytest.skip("needs the installed command: make install")
    sendmail = Sendmail(tmp_path)
    target = tmp_path / "sbin"
    assert sendmail.call("--install", str(target)).status == 64
    target.mkdir()
    (target / "mailq").write_text("another")
    assert sendmail.call("--install", str(target)).status == 73
    assert not (target / "sendmail").exists()
    (target / "mailq").unlink()
    for _ in range(2):
        assert sendmail.call("--install", str(target)).status == 0
    assert sendmail.call(command=(str(target / "mailq"),)).out == "The queue is empty\n"
    assert "nothing to rebuild" in sendmail.call(command=(str(target / "newaliases"),)).out
