"""Who signs what: the keys of a revision by the domain of their mail (DKIM-08a, DKIM-10a).

A private key is read when the first message needs it, since thousands of domains may have keys. One that cannot be read
signs nothing, and the mail goes unsigned: it is never lost for that.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mailrail.core.dkim.sign import SigningError, SigningKey, check_keys, signing_key
from mailrail.core.revision.revision import DkimKey, Domain, Revision


@dataclass(frozen=True, slots=True)
class _Known:
    """A key that was read."""

    path: str
    key: SigningKey


class Signers:
    """The keys that sign, of one revision."""

    def __init__(
        self,
        revision: Revision,
        secrets: Mapping[str, bytes],
        report: Callable[[str, str, str], None],
        before: "Signers | None" = None,
    ) -> None:
        """`secrets`: opened values by their paths. `report` is told domain and selector of a key that cannot sign, and
        why, once. `before`: of the last revision, so that its keys are not read again."""
        self._domains = {domain.name: domain for domain in revision.domains if domain.dkim or domain.also_sign_as}
        self._secrets = secrets
        self._report = report
        self._read: dict[tuple[str, str], _Known] = before._read if before is not None else {}
        self._keys: dict[str, tuple[SigningKey, ...]] = {}  # that sign mail from a domain
        self._own_keys: dict[str, tuple[SigningKey, ...]] = {}

    def __bool__(self) -> bool:
        """Whether any mail is signed."""
        return bool(self._domains)

    def of(self, domain: str) -> tuple[SigningKey, ...]:
        """The keys that sign mail from a domain: its own, then those of domains that sign, too. Empty: it is not
        signed, for it has no keys or none that can be read."""
        keys = self._keys.get(domain)
        if keys is None:
            found = self._domains.get(domain)
            if found is None:
                return ()
            names = dict.fromkeys((domain, *found.also_sign_as))
            keys = self._keys[domain] = tuple(key for name in names for key in self._own(name))
        return keys

    def aligned(self, host: str) -> tuple[SigningKey, ...]:
        """The keys for mail from an address at a host name of ours: those of the nearest domain of ours, the name
        itself or one above it, that has some. DMARC counts it as aligned, unless the domain asks for `adkim=s`."""
        labels = host.lower().rstrip(".").split(".")
        for at in range(len(labels)):
            keys = self._own(".".join(labels[at:]))
            if keys:
                return keys
        return ()

    def has_keys(self, domain: str) -> bool:
        """Whether mail from a domain is to be signed, by the configuration."""
        found = self._domains.get(domain)
        return found is not None and any(key.signs for key in found.dkim)

    def _own(self, domain: str) -> tuple[SigningKey, ...]:
        known = self._own_keys.get(domain)
        if known is None:
            found = self._domains.get(domain)
            if found is None:
                return ()
            known = self._own_keys[domain] = self._read_all(found)
        return known

    def _read_all(self, found: Domain) -> tuple[SigningKey, ...]:
        keys = tuple(key for each in found.dkim if each.signs and (key := self._key(found, each)) is not None)
        try:
            check_keys(keys)
        except SigningError as error:
            self._report(found.name, keys[0].name.selector, str(error))
            return ()
        return keys

    def _key(self, domain: Domain, each: DkimKey) -> SigningKey | None:
        place, path = (domain.name, each.selector), each.private_key.path
        known = self._read.get(place)
        if known is not None and known.path == path:
            return known.key
        try:
            key = signing_key(*place, self._secrets[path])
        except KeyError:
            self._report(*place, "its private key was not delivered")
            return None
        except SigningError as error:
            self._report(*place, str(error))
            return None
        self._read[place] = _Known(path, key)
        return key
