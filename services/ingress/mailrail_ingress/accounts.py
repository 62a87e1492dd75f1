"""Logins of one revision: who exists, what proves it, and which mechanisms anybody could use (design 5, CFG-03).

Secrets are parsed when first asked for. A password that was right once is remembered as a keyed digest, so that a
client which opens a connection a message pays for the verifier's iterations once.
"""

import hmac
import secrets
from collections.abc import Mapping

from mailrail.core.revision.revision import Account, Revision, SecretRef
from mailrail.core.sasl.server import fake_verifier, prepared
from mailrail.core.sasl.verifiers import InvalidCredentials, ScramVerifier

REMEMBERED_LIMIT = 10_000
"""Passwords remembered as digests."""


class Accounts:
    """The `Credentials` of the SASL mechanisms, for one revision. `fake_key` stays the same over revisions.

    Every `name` is a login as it is compared: `core.sasl.server.prepared` made it, once an exchange.
    """

    def __init__(self, revision: Revision, sealed: Mapping[str, bytes], fake_key: bytes) -> None:
        self._secrets = sealed
        self._by_login: dict[str, Account] = {}
        self._verifiers: dict[str, ScramVerifier | None] = {}
        self._fake_key = fake_key
        self._memory_key = secrets.token_bytes(32)
        self._remembered: dict[bytes, None] = {}
        for account in revision.accounts:
            self._by_login.setdefault(prepared(account.login), account)
        held = {name for account in revision.accounts for name, _ in account.scram}
        usable = set(held)
        usable |= {f"{name}-PLUS" for name in held}
        if held:
            usable |= {"PLAIN", "LOGIN"}
        if any(account.password is not None for account in revision.accounts):
            usable.add("CRAM-MD5")
        self.usable = frozenset(usable)
        """Mechanisms that at least one account could use; EHLO lists no others, and never by user (design 5)."""

    def find(self, name: str) -> Account | None:
        """The account of a login."""
        return self._by_login.get(name)

    def verifier(self, name: str, mechanism: str) -> ScramVerifier:
        """What SCRAM checks against; a fake for logins that do not exist or have none."""
        account = self.find(name)
        if account is not None:
            for kept, ref in account.scram:
                if kept == mechanism:
                    found = self._parsed(ref)
                    if found is not None:
                        return found
        return fake_verifier(name, mechanism, self._fake_key)

    def _parsed(self, ref: SecretRef) -> ScramVerifier | None:
        path = ref.path
        if path not in self._verifiers:
            try:
                self._verifiers[path] = ScramVerifier.parse(self._secrets[path].decode())
            except (KeyError, UnicodeDecodeError, InvalidCredentials):
                self._verifiers[path] = None
        return self._verifiers[path]

    def password(self, name: str) -> str:
        """For CRAM-MD5 alone. A login without a password gets a random one, so that the exchange looks the same."""
        account = self.find(name)
        if account is not None and account.password is not None:
            value = self._secrets.get(account.password.path)
            if value is not None:
                return value.decode("utf-8", "replace")
        return hmac.new(self._fake_key, name.encode("utf-8", "surrogatepass"), "sha256").hexdigest()

    def lacks_secret(self, name: str, mechanism: str) -> bool:
        """Whether the login cannot be checked because its secret was not delivered to ingress (AUTH-05a)."""
        account = self.find(name)
        if account is None:
            return False
        if mechanism == "CRAM-MD5":
            return account.password is not None and account.password.path not in self._secrets
        if mechanism in ("PLAIN", "LOGIN"):
            refs = [ref for _, ref in account.scram[:1]]
        else:
            refs = [ref for kept, ref in account.scram if kept == mechanism.removesuffix("-PLUS")]
        return any(self._parsed(ref) is None for ref in refs)

    def recall(self, name: str, password: str) -> bool:
        """Whether just this password was right before, under this revision."""
        return self._digest(name, password) in self._remembered

    def remember(self, name: str, password: str) -> None:
        """The password was right."""
        while len(self._remembered) >= REMEMBERED_LIMIT:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[self._digest(name, password)] = None

    def _digest(self, name: str, password: str) -> bytes:
        # Lengths are part of it, so that no login and password run into each other.
        who, word = name.encode(), password.encode("utf-8", "surrogatepass")
        return hmac.digest(self._memory_key, b"%d:" % len(who) + who + word, "sha256")

    def admits(self, name: str, password: str) -> bool:
        """Whether the password is the login's. Takes a millisecond, whether the login exists or not (AUTH-05a)."""
        account = self.find(name)
        mechanism = account.scram[0][0] if account is not None and account.scram else "SCRAM-SHA-256"
        return self.verifier(name, mechanism).admits(password) and account is not None
