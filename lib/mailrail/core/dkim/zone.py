"""The record of a key as it is published: its name, its value, and the line of a zone file (RFC 1035 5.1)."""

from dataclasses import dataclass

from mailrail.core.dkim.key import record_strings, write_key_record
from mailrail.core.dkim.published import PublicKey
from mailrail.core.dkim.signature import KeyName


@dataclass(frozen=True, slots=True)
class RecordToPublish:
    """A TXT record of a key of ours."""

    name: KeyName | None
    """None: nobody said."""
    value: str
    """All of it as one text, for forms that ask for a name and a value."""

    @property
    def data(self) -> str:
        """The value as a zone file has it."""
        return zone_data(self.value)

    @property
    def line(self) -> str:
        """The line of a zone file, without a TTL; without the name if nobody said."""
        return f"IN TXT {self.data}" if self.name is None else f"{self.name}. IN TXT {self.data}"


def zone_data(value: str) -> str:
    """A value as a zone file has it: strings of 255 octets at most, which verifiers join (RFC 6376 3.6.2.2)."""
    # What `write_key_record` writes has no quote and no backslash, which would need an escape.
    return " ".join(f'"{each}"' for each in record_strings(value))


def to_publish(name: KeyName | None, key: PublicKey) -> RecordToPublish:
    """The record of a public key."""
    return RecordToPublish(name, write_key_record(key))
