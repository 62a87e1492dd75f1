"""MailAccount: a login and a mailbox, with the addresses that it receives for and may send as (design 5)."""

from typing import Annotated, Literal

from pydantic import Field

from mailrail.core.resources.base import AccountAddress, LocalRef, Login, NamespacedRef, Part, Resource
from mailrail.core.resources.rules import CelCondition, UniqueBy


class AccountLimitsSpec(Part):
    """What one account may send; counted when mail is accepted (ACC-08)."""

    messages_per_day: Annotated[int, Field(ge=0, le=100_000_000)] | None = Field(
        default=None, description="Messages in 24 hours; 0: none at all."
    )
    recipients_per_day: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = Field(
        default=None, description="Recipients in 24 hours; 0: none at all."
    )
    message_bytes: Annotated[int, Field(ge=1024, le=2 * 1024**3)] | None = Field(
        default=None, description="Largest message, if smaller than the gateway's."
    )


class MailAccountSpec(Part):
    """A login and a mailbox."""

    RULES = (
        UniqueBy("addresses"),
        CelCondition(
            "login is required, for no address says how to log in",
            "has(self.login) || self.addresses.exists(a, !a.startsWith('@'))",
            lambda m: m.login is not None or any(not a.startswith("@") for a in m.addresses),
        ),
    )
    domain_ref: NamespacedRef = Field(description="The MailDomain of its addresses.")
    login: Login | None = Field(default=None, description="Name to log in with. Default: the first full address.")
    addresses: Annotated[tuple[AccountAddress, ...], Field(min_length=1, max_length=256)] = Field(
        description="Local parts, or addresses of the domain; @ for every address of it that nobody else has. "
        "It receives for them and may send as them."
    )
    credentials_secret_ref: LocalRef | None = Field(
        default=None,
        description="Secret with password, or with scram-sha-256 and/or scram-sha-1 verifiers. Without it: no login.",
    )
    limits: AccountLimitsSpec | None = Field(default=None, description="What it may send.")


class MailAccount(Resource):
    """A login and a mailbox."""

    PLURAL = "mailaccounts"
    SHORT = "macct"
    kind: Literal["MailAccount"]
    spec: MailAccountSpec
