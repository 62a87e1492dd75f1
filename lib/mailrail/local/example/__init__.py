"""The resources that first start writes: a gateway, a domain, two accounts, one transport of each kind, and routes.

The files beside this module are what people get, comments included. Only the password of the example account differs:
it is drawn for each folder, because a well-known one would open a relay as soon as somebody listens beyond loopback.
"""

import secrets
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import yaml

LOGIN = "alice@example.org"
_ACCOUNTS = "30-accounts.yaml"
_PLACEHOLDER = "@PASSWORD@"
_SECRET = "alice-login"  # noqa: S105 - the name of a Secret
_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"
"""None that look alike."""


@dataclass(frozen=True, slots=True)
class ExampleLogin:
    """What to type into a mail client."""

    login: str
    password: str


def files() -> dict[str, str]:
    """Name and text of each file, with the placeholder for the password still in it."""
    return {
        entry.name: entry.read_text("utf-8")
        for entry in sorted(resources.files(__name__).iterdir(), key=lambda e: e.name)
        if entry.name.endswith(".yaml")
    }


def write(folder: Path) -> ExampleLogin:
    """Make the folder with the example in it. Existing files stay as they are. Raises OSError."""
    password = "-".join("".join(secrets.choice(_LETTERS) for _ in range(5)) for _ in range(3))
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        path = folder / name
        try:
            path.touch(mode=0o600 if name == _ACCOUNTS else 0o644, exist_ok=False)  # one holds a password
        except FileExistsError:
            continue
        path.write_text(text.replace(_PLACEHOLDER, password), encoding="utf-8", newline="\n")
    return ExampleLogin(LOGIN, password)


def login(folder: Path) -> ExampleLogin | None:
    """The example account's login as it is written in the folder now; None when the example is gone or was changed."""
    try:
        documents = list(yaml.safe_load_all((folder / _ACCOUNTS).read_text("utf-8")))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    for document in documents:
        if not isinstance(document, dict) or document.get("kind") != "Secret":
            continue
        values, metadata = document.get("stringData"), document.get("metadata")
        if isinstance(values, dict) and isinstance(metadata, dict) and metadata.get("name") == _SECRET:
            password = values.get("password")
            return ExampleLogin(LOGIN, password) if isinstance(password, str) else None
    return None
