"""sendmail as a process: what it loads, and what it may do with the rights of a group."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit.next_hop import NextHop
from testkit.sendmail import MESSAGE, Sendmail

HEAVY = ("grpc", "pydantic", "typer", "rich", "scramp", "asyncio", "cryptography", "google.protobuf", "idna")


@pytest.fixture
def hop() -> Iterator[NextHop]:
    with NextHop(address="127.0.0.1") as hop:
        yield hop


@pytest.mark.parametrize("called", ["mailrail.sendmail", "mailrail.cli"])
def test_a_message_goes_without_the_heavy_libraries_SML_11a(tmp_path: Path, hop: NextHop, called: str) -> None:
    sendmail = Sendmail(tmp_path, server="127.0.0.1", port=hop.port, tls="none", sender="ada@home.test")
    words = "['mailrail', 'sendmail', 'bob@away.test']" if called == "mailrail.cli" else "['sendmail', 'bob@away.test']"
    code = (
        f"import sys; sys.argv[:] = {words}\n"
        f"from {called} import main\n"
        "try:\n    status = main()\nexcept SystemExit as end:\n    status = end.code\n"
        f"print(status, sorted(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = sendmail.call(command=(sys.executable, "-c", code))
    assert done.out == "0 []\n", done.err
    assert len(hop) == 1


def test_what_comes_after_the_message_is_loaded_after_it_SML_11b() -> None:
    later = (
        "ssl",
        "json",
        "tempfile",
        "subprocess",
        "tomllib",
        "mailrail.core.smtp.client",
        "mailrail.core.smtp.parameters",
    )
    code = f"import sys, mailrail.sendmail.command; print([name for name in {later!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_scramp_is_loaded_for_a_password_that_needs_it_alone_SML_11a() -> None:
    code = (
        "import sys\n"
        "from mailrail.core.sasl.client import *\n"
        "for password in ('plain', 'schlüssel'):\n"
        "    start(Mechanism.SCRAM_SHA_256, Credentials('ada', password), nonce='n' * 24).initial()\n"
        "    print('scramp' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False\nTrue\n"


# Becomes a process with a group that its caller has not, as a setgid program of the administrator's would.
_SETGID = """
import os, sys
group = int(sys.argv[1])
os.setgroups([])
os.setresgid(65534, group, group)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""
_RUN = """
import sys, pathlib
from mailrail.sendmail import command
before = command.surroundings
def surroundings():
    import dataclasses
    home = pathlib.Path({home!r})
    return dataclasses.replace(before(), system_file=pathlib.Path({file!r}), home=home, superuser=False)
command.surroundings = surroundings
import mailrail.sendmail.dialogue as dialogue
opened = dialogue.SubmissionClient.open
def watched(self):
    import os
    print("groups", os.getegid(), os.getgid(), sorted(os.environ), file=sys.stderr)
    return opened(self)
dialogue.SubmissionClient.open = watched
from mailrail.sendmail import main
sys.exit(main(called="sendmail"))
"""
ROOT = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to take another group")


@ROOT
def test_installed_setgid_it_reads_the_system_file_alone_and_gives_the_group_up_SML_10(
    tmp_path: Path, hop: NextHop
) -> None:
    group = 54321
    home = tmp_path / "home"
    file = tmp_path / "sendmail.toml"
    file.write_text(f'server = "127.0.0.1"\nport = {hop.port}\ntls = "none"\nfrom = "ada@home.test"\n')
    os.chown(file, 0, group)
    file.chmod(0o640)
    code = _RUN.format(file=str(file), home=str(home))

    def call(*words: str, isolated: bool = True) -> subprocess.CompletedProcess[bytes]:
        flags = ["-I"] if isolated else []
        return subprocess.run(
            [sys.executable, "-c", _SETGID, str(group), *flags, "-c", code, *words],
            input=MESSAGE,
            capture_output=True,
            env={**os.environ, "MAILRAIL_SENDMAIL_SERVER": "192.0.2.1", "NAME": "Mallory"},
            timeout=120,
            check=False,
        )

    done = call("bob@away.test")
    assert done.returncode == 0, done.stderr
    assert b"groups 65534 65534 ['PATH']" in done.stderr
    assert len(hop) == 1
    for words in (("-C", "/etc/passwd", "bob@away.test"), ("-X", "/tmp/log", "bob@away.test")):
        refused = call(*words)
        assert refused.returncode == 64
        assert b"is refused where sendmail is installed setgid" in refused.stderr
    unsafe = call("bob@away.test", isolated=False)
    assert unsafe.returncode == 78
    assert b"python -I" in unsafe.stderr
    assert len(hop) == 1


@ROOT
def test_every_other_command_refuses_the_rights_of_a_group_SML_10() -> None:
    for words in (["version"], ["queue", "list"], ["serve", "queue"], ["local"]):
        done = subprocess.run(
            [sys.executable, "-c", _SETGID, "54321", "-m", "mailrail.cli", *words],
            capture_output=True,
            timeout=120,
            check=False,
            cwd="/",
        )
        assert done.returncode == 2
        assert b"only `sendmail` may be installed setgid" in done.stderr
