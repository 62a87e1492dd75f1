"""The configuration of sendmail."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.sasl.client import Mechanism
from mailrail.core.tlspolicy.facts import Requirement
from mailrail.sendmail.settings import (
    KEYS,
    Password,
    RewriteFrom,
    SubmissionSettings,
    SubmissionTls,
    Surroundings,
    check_server,
    load,
    read,
    read_password,
)
from mailrail.sendmail.status import ExitStatus, Stop

FULL = """
server = "mail.example.org"
port = 587
tls = "starttls"
ca_file = "/etc/ca.pem"
login = "web"
password = "s3cret"
mechanism = "scram-sha-256"
from = "web@example.org"
rewrite_from = "always"
default_domain = "example.org"
default_destination = "ops"
tls_requirement = "required"
queue = "/var/spool/x"
hello = "host.example.org"
input_limit = 1000
[aliases]
root = "ops@example.org"
team = ["a@example.org", "root"]
[timeouts]
connect = 5
reply = 6.5
total = 60
"""


@pytest.fixture
def around(tmp_path: Path) -> Surroundings:
    return Surroundings(
        {}, tmp_path / "home", superuser=False, system_file=tmp_path / "etc.toml", system_queue=tmp_path / "spool"
    )


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_every_key_of_the_file_counts_SML_02(around: Surroundings) -> None:
    write(around.system_file, FULL)
    settings = load(None, around)
    assert settings.server == "mail.example.org"
    assert (settings.port, settings.tls, settings.ca_file) == (587, SubmissionTls.STARTTLS, "/etc/ca.pem")
    assert (settings.login, settings.password.text, settings.mechanism) == ("web", "s3cret", Mechanism.SCRAM_SHA_256)
    assert str(settings.author) == "web@example.org"
    assert settings.rewrite_from is RewriteFrom.ALWAYS
    assert (settings.default_domain, settings.default_destination) == ("example.org", "ops")
    assert settings.aliases == {"root": ("ops@example.org",), "team": ("a@example.org", "root")}
    assert settings.tls_requirement is Requirement.REQUIRED
    assert settings.queue == Path("/var/spool/x")
    assert (settings.hello, settings.input_limit) == ("host.example.org", 1000)
    assert (settings.connect_seconds, settings.reply_seconds, settings.total_seconds) == (5, 6.5, 60)


def test_a_variable_stands_above_each_key_SML_02(around: Surroundings) -> None:
    write(around.system_file, FULL)
    environ = {
        "SERVER": "other.example.org",
        "PORT": "465",
        "TLS": "implicit",
        "CA_FILE": "/x",
        "LOGIN": "cron",
        "PASSWORD_FILE": "/secret",
        "MECHANISM": "PLAIN",
        "FROM": "cron@example.org",
        "REWRITE_FROM": "never",
        "DEFAULT_DOMAIN": "example.net",
        "ALIASES": "root=a@example.net, root=b@example.net",
        "DEFAULT_DESTINATION": "all@example.net",
        "TLS_REQUIREMENT": "no",
        "QUEUE": "/q",
        "HELLO": "h.example.net",
        "TIMEOUTS_REPLY": "7",
        "INPUT_LIMIT": "2000",
    }
    settings = load(
        None, replace(around, environ={f"MAILRAIL_SENDMAIL_{key}": value for key, value in environ.items()})
    )
    assert settings.server == "other.example.org"
    assert (settings.port, settings.tls, settings.ca_file) == (465, SubmissionTls.IMPLICIT, "/x")
    assert (settings.login, settings.password) == ("cron", Password(file="/secret"))
    assert (settings.mechanism, str(settings.author)) == (Mechanism.PLAIN, "cron@example.org")
    assert settings.rewrite_from is RewriteFrom.NEVER
    assert settings.aliases == {"root": ("a@example.net", "b@example.net")}
    assert (settings.default_domain, settings.default_destination) == ("example.net", "all@example.net")
    assert settings.tls_requirement is Requirement.NO
    assert (settings.queue, settings.hello) == (Path("/q"), "h.example.net")
    assert (settings.connect_seconds, settings.reply_seconds, settings.input_limit) == (5, 7, 2000)
    names = {key.removesuffix("_reply").lower() for key in environ} | {"timeouts", "password", "password_command"}
    assert set(KEYS) <= names, "a key that no variable was tried for"


def test_the_first_file_that_is_found_counts_SML_02(around: Surroundings, tmp_path: Path) -> None:
    config = tmp_path / "config"
    system = write(around.system_file, 'server = "system.test"')
    assert load(None, around).server == "system.test"
    write(around.home / ".config/mailrail/sendmail.toml", 'server = "home.test"')
    assert load(None, around).server == "home.test"
    write(config / "mailrail/sendmail.toml", 'server = "xdg.test"')
    found = replace(around, environ={"XDG_CONFIG_HOME": str(config)})
    assert load(None, found).server == "xdg.test"
    variable = write(tmp_path / "v.toml", 'server = "variable.test"')
    found = replace(found, environ={**found.environ, "MAILRAIL_SENDMAIL_CONFIG": str(variable)})
    assert load(None, found).server == "variable.test"
    flag = write(tmp_path / "f.toml", 'server = "flag.test"')
    assert load(str(flag), found).server == "flag.test"
    assert load(str(flag), found).source == str(flag)
    assert load(None, replace(found, setgid=True)).server == "system.test", "setgid: SML-10"
    system.unlink()
    assert load(None, replace(found, setgid=True)).server == ""


@pytest.mark.parametrize("by", ["-C", "MAILRAIL_SENDMAIL_CONFIG"])
def test_a_file_that_was_named_must_be_there_SML_02(around: Surroundings, by: str) -> None:
    named = "/nowhere.toml" if by == "-C" else None
    environ = {} if by == "-C" else {by: "/nowhere.toml"}
    with pytest.raises(Stop, match=f"{by} names /nowhere.toml") as caught:
        load(named, replace(around, environ=environ))
    assert caught.value.status is ExitStatus.CONFIG


def test_without_a_server_it_says_where_to_write_one(around: Surroundings) -> None:
    with pytest.raises(Stop, match=r"/etc/mailrail/sendmail\.toml") as caught:
        check_server(load(None, around))
    assert caught.value.status is ExitStatus.CONFIG


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("server = ", "is no TOML"),
        ("server = 5", "server in .* is a text"),
        ('server = "a b"', "is a host name or an IP address"),
        ('server = "mail.test:587"', "without a port"),
        ('serfer = "x"', "has the key 'serfer'"),
        ("port = 70000", "is a number from 0 to 65535"),
        ("port = true", "is a number"),
        ("port = 1.5", "is a whole number"),
        ('tls = "maybe"', "is one of implicit, starttls, none"),
        ('server = "mail.test"\ntls = "none"', "only to this machine"),
        ('server = "127.0.0.1"\ntls = "none"\nlogin = "a"\npassword = "b"', "has a login and tls = none"),
        ('server = "127.0.0.1"\ntls = "none"\ntls_requirement = "required"', "cannot be required"),
        ('login = "a"', "lacks a password"),
        ('password = "a"', "lacks login"),
        ('login = "a"\npassword = "b"\npassword_file = "c"', "has several passwords"),
        ('mechanism = "NTLM"', "is one of SCRAM-SHA-256-PLUS"),
        ('from = "nobody"', "is an address, as in"),
        ('rewrite_from = "often"', "is one of never, local, always"),
        ('default_domain = "a b"', "is a domain name"),
        ('tls_requirement = "yes"', "is required or no"),
        ('aliases = "root"', "is a table"),
        ("[aliases]\nroot = 5", "has 'root'"),
        ("[timeouts]\nlunch = 5", "has 'lunch'"),
        ("[timeouts]\ntotal = 9999", "is a number from 1 to 240"),
        ('server = "a\\nb"', "has a control character"),
        ('password_command = [1]\nlogin = "a"', "is a list of texts"),
        ('password_command = "echo \'x"\nlogin = "a"', "cannot be split into words"),
        ("a = " + "[" * 5000, "is no TOML"),
        ("#" + "x" * 300_000, "is larger than"),
    ],
)
def test_each_mistake_is_named_with_its_key_SML_02(around: Surroundings, text: str, said: str) -> None:
    write(around.system_file, text)
    with pytest.raises(Stop, match=said) as caught:
        load(None, around)
    assert caught.value.status is ExitStatus.CONFIG


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such modes")
@pytest.mark.parametrize(
    ("mode", "taken"), [(0o600, True), (0o640, True), (0o644, False), (0o606, False), (0o660, False)]
)
def test_a_file_with_a_password_that_others_can_read_is_refused_SML_02(
    around: Surroundings, mode: int, taken: bool
) -> None:
    write(around.system_file, FULL, mode)
    secret = write(around.home / "secret", "pw\n", mode)
    if taken:
        assert load(None, around).password.text == "s3cret"
        assert read_password(Password(file=str(secret)), "x") == "pw"
    else:
        with pytest.raises(Stop, match="others can read or change it: run `chmod"):
            load(None, around)
        with pytest.raises(Stop, match="others can read or change it"):
            read_password(Password(file=str(secret)), "x")


def test_without_a_password_others_may_read_the_file_SML_02(around: Surroundings) -> None:
    write(around.system_file, 'server = "mail.test"\nlogin = "a"\npassword_file = "/x"', 0o644)
    assert load(None, around).password.file == "/x"


def test_a_password_comes_from_a_command_and_its_first_line_SML_02() -> None:
    command = (sys.executable, "-c", "print('pä55'.encode().decode('latin-1') and 'pass word'); print('more')")
    assert read_password(Password(command=command), "x") == "pass word"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ((sys.executable, "-c", "raise SystemExit(3)"), "ended with status 3"),
        ((sys.executable, "-c", ""), "must be one line"),
        (("/nonexistent/command",), "cannot be run"),
        ((sys.executable, "-c", "print('x' * 5000)"), "must be one line"),
    ],
)
def test_a_command_that_gives_no_password_is_named_without_one_SML_02(command: tuple[str, ...], said: str) -> None:
    with pytest.raises(Stop, match=said) as caught:
        read_password(Password(command=command), "x")
    assert caught.value.status is ExitStatus.CONFIG


def test_passwords_are_in_no_text_of_the_settings(around: Surroundings) -> None:
    write(around.system_file, FULL)
    assert "s3cret" not in repr(load(None, around))


@pytest.mark.parametrize(
    ("values", "port", "tls"),
    [
        ({}, 465, SubmissionTls.IMPLICIT),
        ({"port": 587}, 587, SubmissionTls.STARTTLS),
        ({"port": 1465}, 1465, SubmissionTls.IMPLICIT),
        ({"tls": "starttls"}, 587, SubmissionTls.STARTTLS),
        ({"tls": "none", "server": "127.0.0.1"}, 25, SubmissionTls.NONE),
        ({"tls": "none", "server": "[::1]"}, 25, SubmissionTls.NONE),
        ({"tls": "none", "server": "localhost"}, 25, SubmissionTls.NONE),
    ],
)
def test_port_and_tls_follow_each_other(
    around: Surroundings, values: dict[str, object], port: int, tls: SubmissionTls
) -> None:
    settings = read(values, "x", around)
    assert (settings.port, settings.tls) == (port, tls)


def test_the_queue_is_the_system_s_for_root_and_the_user_s_for_others_SML_06(around: Surroundings) -> None:
    def queue(surroundings: Surroundings) -> Path:
        return read({}, "x", surroundings).queue

    assert queue(replace(around, superuser=True)) == around.system_queue
    if os.name != "nt":
        assert queue(around) == around.home / ".local/state/mailrail/sendmail"
        state = replace(around, environ={"XDG_STATE_HOME": "/state"})
        assert queue(state) == Path("/state/mailrail/sendmail")
        assert queue(replace(state, setgid=True)) == around.home / ".local/state/mailrail/sendmail", "SML-10"


def read_or_refused(found: dict[str, object]) -> SubmissionSettings | Stop:
    try:
        return read(found, "x", Surroundings({}, Path("/home"), superuser=False))
    except Stop as stop:
        return stop


SIMPLE = st.one_of(st.text(max_size=8), st.integers(), st.floats(), st.booleans(), st.lists(st.text(max_size=3)))
VALUES = st.one_of(SIMPLE, st.dictionaries(st.text(max_size=4), SIMPLE, max_size=2))


@given(st.dictionaries(st.sampled_from(KEYS), VALUES))
def test_any_values_are_settings_or_a_named_mistake(found: dict[str, object]) -> None:
    settings = read_or_refused(found)
    assert isinstance(settings, SubmissionSettings) or settings.status is ExitStatus.CONFIG
