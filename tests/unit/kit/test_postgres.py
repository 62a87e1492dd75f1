"""How a service is told where its tables live."""

from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from mailrail.kit.postgres import SESSION, database_of, session, unreadable
from mailrail.kit.settings import BadSettings, DatabaseSettings, load


def test_a_url_alone_is_taken_as_it_is() -> None:
    assert database_of(DatabaseSettings(database_url="postgresql://a:b@db/mail")) == "postgresql://a:b@db/mail"


def test_user_and_password_come_from_mounted_files_and_are_never_shown_CFG_07(tmp_path: Path) -> None:
    (tmp_path / "username").write_text("mailrail\n")
    (tmp_path / "password").write_text("it's @ secret/\n")
    settings = load(
        DatabaseSettings,
        "queue",
        {
            "MAILRAIL_DATABASE_URL": "postgresql://db.example/mail",
            "MAILRAIL_DATABASE_USER_FILE": str(tmp_path / "username"),
            "MAILRAIL_DATABASE_PASSWORD_FILE": str(tmp_path / "password"),
        },
    )
    assert conninfo_to_dict(database_of(settings)) == {
        "host": "db.example",
        "dbname": "mail",
        "user": "mailrail",
        "password": "it's @ secret/",
    }
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    "password",
    ["open@sesame/w", "open@sesame", "open/sesame", "o@pen?sesame", "%sesame", "open sesame", "o@pen:sesame/"],
)
def test_a_password_that_cuts_the_url_short_is_shown_nowhere_and_what_to_do_is_said(password: str) -> None:
    with pytest.raises(BadSettings) as refused:
        database_of(DatabaseSettings(database_url=f"postgresql://user:{password}@db.example/mail"))
    text = str(refused.value)
    assert "percent-encoded (@ is %40, / is %2F" in text
    assert "MAILRAIL_DATABASE_PASSWORD" in text
    assert "sesame" not in text
    assert "open" not in text


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:p%40ss%2Fw%3Ard%25%23%3F%20%C3%A9@db.example:5432/mail",
        "postgresql://user:a:b?c#d@[::1]/mail",
        "postgresql://user%40tenant:secret@db.example/mail%40home",
        "postgresql://a,b:5433/mail?target_session_attrs=read-write&options=-c%20search_path%3Dx",
        "postgresql:///mail?host=/run/postgresql",
        "host=/run/postgresql dbname=mail password='it\\'s @ secret/'",
        "host=db user=me@tenant password=a@b",
        "",
    ],
)
def test_urls_that_libpq_reads_as_they_are_meant_are_left_alone(url: str) -> None:
    assert unreadable(url) is None


def test_a_port_of_a_url_that_is_none_is_refused_before_libpq_shows_it() -> None:
    with pytest.raises(BadSettings, match="MAILRAIL_DATABASE_URL is not the URL"):
        database_of(DatabaseSettings(database_url="postgresql://user:secret@db.example:²/mail"))


def test_a_session_is_asked_for_nothing_that_an_older_server_does_not_know_DBS_02() -> None:
    assert "transaction_timeout" not in session(150000).as_string()
    assert "transaction_timeout" in session(170000).as_string()
    assert all(f"'{name}'" in session(170000).as_string() for name in SESSION)


def test_what_a_caller_wants_of_its_own_stands_over_what_is_common() -> None:
    said = session(180000, "queue", statement_timeout="30s").as_string()
    assert "set_config('statement_timeout', '30s', false)" in said
    assert said.count("statement_timeout") == 1
    assert """set_config('search_path', '"queue"', false)""" in said
