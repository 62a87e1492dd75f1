"""How a service is told where its tables live."""

from pathlib import Path

from psycopg.conninfo import conninfo_to_dict

from mailrail.kit.postgres import database_of
from mailrail.kit.settings import DatabaseSettings, load


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
