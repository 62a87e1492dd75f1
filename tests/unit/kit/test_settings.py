"""Settings from the environment: defaults that work, and no silent typo."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from mailrail.kit.settings import BadSettings, ServiceSettings, host_port, load


@dataclass(frozen=True, kw_only=True)
class Example(ServiceSettings):
    limit: int = 5
    names: tuple[str, ...] = ()
    ratio: float = 0.5
    folder: Path | None = None


def test_an_empty_environment_gives_the_defaults() -> None:
    assert load(Example, "example", {}) == Example()


def test_values_of_every_type_are_read() -> None:
    settings = load(
        Example,
        "example",
        {
            "MAILRAIL_EXAMPLE_LIMIT": "7",
            "MAILRAIL_EXAMPLE_NAMES": "a, b,",
            "MAILRAIL_EXAMPLE_RATIO": "0.25",
            "MAILRAIL_EXAMPLE_FOLDER": "/x",
            "MAILRAIL_EXAMPLE_PLAINTEXT": "yes",
        },
    )
    assert settings == Example(limit=7, names=("a", "b"), ratio=0.25, folder=Path("/x"), plaintext=True)


def test_a_services_own_variable_wins_over_the_common_one() -> None:
    env = {"MAILRAIL_LOG_LEVEL": "error", "MAILRAIL_EXAMPLE_LOG_LEVEL": "debug"}
    assert load(Example, "example", env).log_level == "debug"
    assert load(Example, "other", env).log_level == "error"


def test_an_empty_optional_is_absent() -> None:
    assert load(Example, "example", {"MAILRAIL_EXAMPLE_FOLDER": ""}).folder is None


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("MAILRAIL_EXAMPLE_LIMIT", "many", "MAILRAIL_EXAMPLE_LIMIT='many': must be a whole number"),
        ("MAILRAIL_EXAMPLE_RATIO", "x", "must be a number"),
        ("MAILRAIL_EXAMPLE_PLAINTEXT", "perhaps", "must be true or false"),
        ("MAILRAIL_EXAMPLE_LIMTI", "7", "MAILRAIL_EXAMPLE_LIMTI: example has no such setting; it has"),
    ],
)
def test_a_bad_value_or_name_is_refused_with_what_it_takes(variable: str, value: str, words: str) -> None:
    with pytest.raises(BadSettings) as caught:
        load(Example, "example", {variable: value})
    assert words in str(caught.value)


def test_a_value_may_stand_in_a_file_that_its_variable_names(tmp_path: Path) -> None:
    path = tmp_path / "limit"
    path.write_text("7\n", encoding="utf-8")
    assert load(Example, "example", {"MAILRAIL_EXAMPLE_LIMIT_FILE": str(path)}).limit == 7
    assert load(Example, "example", {"MAILRAIL_LIMIT_FILE": str(path)}).limit == 7
    assert load(Example, "example", {"MAILRAIL_LIMIT_FILE": str(path), "MAILRAIL_EXAMPLE_LIMIT": "8"}).limit == 8


def test_a_file_that_cannot_be_read_is_named_and_its_content_never_repeated(tmp_path: Path) -> None:
    path = tmp_path / "limit"
    with pytest.raises(BadSettings, match=r"MAILRAIL_EXAMPLE_LIMIT_FILE=.*No such file"):
        load(Example, "example", {"MAILRAIL_EXAMPLE_LIMIT_FILE": str(path)})
    path.write_text("a secret", encoding="utf-8")
    with pytest.raises(BadSettings, match="is not a valid value") as caught:
        load(Example, "example", {"MAILRAIL_EXAMPLE_LIMIT_FILE": str(path)})
    assert "a secret" not in str(caught.value)


def test_addresses_are_split_and_refused_with_their_text() -> None:
    assert host_port("127.0.0.1:25") == ("127.0.0.1", 25)
    assert host_port("[::1]:25") == ("::1", 25)
    for wrong in (
        "localhost",
        "localhost:",
        "localhost:65536",
        "localhost:²",
        "localhost:٢",
        "localhost:" + "1" * 5000,
    ):
        with pytest.raises(BadSettings, match="must be HOST:PORT"):
            host_port(wrong)


def test_a_setting_of_all_services_may_begin_like_one_of_the_config_services_own() -> None:
    environment = {"MAILRAIL_CONFIG_TARGET": "config:7001", "MAILRAIL_CONFIG_NODE_ID": "one"}
    settings = load(ServiceSettings, "config", environment)
    assert (settings.config_target, settings.node_id) == ("config:7001", "one")
