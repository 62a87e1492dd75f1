"""The flags of sendmail, as its callers give them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.smtp.parameters import BodyType, Notify, Return
from mailrail.core.tlspolicy.facts import Requirement
from mailrail.sendmail.flags import BODIES, NOTIFICATIONS, RETURNS, Invocation, SendmailMode, read_flags
from mailrail.sendmail.status import ExitStatus, Stop

EIGHT = BodyType.EIGHT_BIT_MIME


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        # cron, PHP, git, mutt, s-nail, logwatch, unattended-upgrades, smartd
        (
            "-FCronDaemon -i -B8BITMIME -oem root",
            Invocation(full_name="CronDaemon", dot_is_text=True, body=EIGHT, recipients=("root",)),
        ),
        ("-t -i -fweb@example.org", Invocation(from_header=True, dot_is_text=True, sender="web@example.org")),
        ("-f a@b.test -i c@d.test", Invocation(sender="a@b.test", dot_is_text=True, recipients=("c@d.test",))),
        (
            "-oem -oi -f a@b.test -B8BITMIME -N failure,delay -R hdrs -- c@d.test e@f.test",
            Invocation(
                dot_is_text=True,
                sender="a@b.test",
                body=EIGHT,
                notify=("FAILURE", "DELAY"),
                ret="HDRS",
                recipients=("c@d.test", "e@f.test"),
            ),
        ),
        ("-i -r a@b.test -- c@d.test", Invocation(dot_is_text=True, sender="a@b.test", recipients=("c@d.test",))),
        ("-t", Invocation(from_header=True)),
        ("-oi -t", Invocation(dot_is_text=True, from_header=True)),
        ("a@b.test", Invocation(recipients=("a@b.test",))),
        # in groups, attached and apart
        ("-tif a@b.test", Invocation(from_header=True, dot_is_text=True, sender="a@b.test")),
        ("-itvfa@b.test", Invocation(from_header=True, dot_is_text=True, verbose=True, sender="a@b.test")),
        ("-f <> a@b.test", Invocation(sender="", recipients=("a@b.test",))),
        ("-F Ada a@b.test", Invocation(full_name="Ada", recipients=("a@b.test",))),
        ("-bm a@b.test", Invocation(recipients=("a@b.test",))),
        ("-b m a@b.test", Invocation(recipients=("a@b.test",))),
        ("-bs", Invocation(mode=SendmailMode.SMTP)),
        ("-bp", Invocation(mode=SendmailMode.LIST)),
        ("-bi", Invocation(mode=SendmailMode.ALIASES)),
        ("-q", Invocation(mode=SendmailMode.FLUSH)),
        ("-q --heartbeat", Invocation(mode=SendmailMode.FLUSH, heartbeat=True)),
        ("-q15m", Invocation(mode=SendmailMode.STAY, every=900.0)),
        ("-q1h30m", Invocation(mode=SendmailMode.STAY, every=5400.0)),
        ("-q30", Invocation(mode=SendmailMode.STAY, every=1800.0)),
        ("-B 7bit a@b.test", Invocation(body=BodyType.SEVEN_BIT, recipients=("a@b.test",))),
        ("-N never a@b.test", Invocation(notify=("NEVER",), recipients=("a@b.test",))),
        ("-R full -V id=1 a@b.test", Invocation(ret="FULL", envid="id+3D1", recipients=("a@b.test",))),
        ("-oeq a@b.test", Invocation(quiet=True, recipients=("a@b.test",))),
        ("-em a@b.test", Invocation(recipients=("a@b.test",))),
        ("-C /etc/x a@b.test", Invocation(config="/etc/x", privileged="-C", recipients=("a@b.test",))),
        # passed over together with their arguments
        (
            "-Am -G -h 5 -L tag -m -n -O Timeout=1 -odb -U -p smtp -d0.1 -X /dev/null a@b.test",
            Invocation(privileged="-X", recipients=("a@b.test",)),
        ),
        ("-oMr smtp -oMs host.test -oo a@b.test", Invocation(recipients=("a@b.test",))),
        ("-v -- -t@b.test", Invocation(verbose=True, recipients=("-t@b.test",))),
        ("--tls-requirement=required a@b.c", Invocation(tls_requirement=Requirement.REQUIRED, recipients=("a@b.c",))),
        ("--tls-requirement no a@b.test", Invocation(tls_requirement=Requirement.NO, recipients=("a@b.test",))),
        ("--install /opt", Invocation(mode=SendmailMode.INSTALL, install="/opt")),
        ("--version", Invocation(mode=SendmailMode.VERSION)),
    ],
)  # fmt: skip
def test_each_form_of_a_call_is_understood_SML_01(words: str, expected: Invocation) -> None:
    assert read_flags(words.split()) == expected


def test_the_words_of_notifications_and_bodies_are_those_of_the_core() -> None:
    assert set(NOTIFICATIONS) == set(Notify)
    assert set(RETURNS) == set(Return)
    assert set(BODIES) == {BodyType.SEVEN_BIT, BodyType.EIGHT_BIT_MIME}


def test_an_empty_sender_is_the_null_sender_SML_01() -> None:
    assert read_flags(["-f", "", "a@b.test"]) == Invocation(sender="", recipients=("a@b.test",))


@pytest.mark.parametrize(("name", "mode"), [("mailq", SendmailMode.LIST), ("newaliases", SendmailMode.ALIASES)])
def test_the_name_of_the_command_chooses_what_it_does_SML_01(name: str, mode: SendmailMode) -> None:
    assert read_flags([], called=name).mode is mode


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("-Z a@b.test", "-Z is no flag of sendmail"),
        ("-tZ", "-Z is no flag"),
        ("--frobnicate", "--frobnicate is no flag"),
        ("-bv a@b.test", "mailrail explain"),
        ("-bt", "mailrail explain"),
        ("-bd", "mailrail local"),
        ("-bl", "mailrail local"),
        ("-bX", "-bX is no mode"),
        ("-f", "-f needs an argument"),
        ("-N sometimes a@b.test", "never, or some of"),
        ("-N never,success a@b.test", "never, or some of"),
        ("-R some a@b.test", "full or hdrs"),
        ("-B BINARYMIME a@b.test", "7BIT or 8BITMIME"),
        ("-oex a@b.test", "one of e, m, p, q and w"),
        ("-qR", "write -q to send all"),
        ("-q1s", "between 10s and 1w"),
        ("-q 5 a@b.test", "takes no recipients"),
        ("a@b.test -t", "write flags before the recipients"),
        ("-bp a@b.test", "takes no recipients"),
        ("-bs -t", "exclude each other"),
        ("--heartbeat a@b.test", "belongs to -q"),
        ("--tls-requirement perhaps", "required or no"),
        ("--install=", "needs a folder"),
        ("-V " + "x" * 101, "at most 100"),
    ],
)
def test_what_is_wrong_with_a_call_is_said_with_status_64_SML_09(words: str, said: str) -> None:
    with pytest.raises(Stop, match=said.replace(".", r"\.")) as caught:
        read_flags(words.split())
    assert caught.value.status is ExitStatus.USAGE


def read_or_refused(words: list[str]) -> Invocation | Stop:
    try:
        return read_flags(words)
    except Stop as stop:
        return stop


FLAGS = st.sampled_from(["-t", "-i", "--", "-f", "-o", "-b", "-q", "-N", "-C"])


@given(st.lists(st.one_of(st.text(max_size=8), FLAGS), max_size=8))
def test_any_words_are_understood_or_refused_in_words(words: list[str]) -> None:
    found = read_or_refused(words)
    if isinstance(found, Stop):
        assert found.status is ExitStatus.USAGE
        assert all(c.isprintable() for c in str(found))
    else:
        assert found.mode in SendmailMode
