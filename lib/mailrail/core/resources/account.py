"""MailAccount: a login and a mailbox, with the addresses that it receives for and may send as (design 5)."""

from typing import Annotated, Literal

from pydantic import Field

from mailrail.core.resources.base import AccountAddress, LocalRef, Login, NamespacedRef, Part, Resource
from mailrail.core.resources.rules import CelCondition, UniqueBy


class AccountLimitsSpec(Part):
    """What one account may send; counted when mail is accepted (ACC-08)."""

    messages_per_day: Annotated[int, Field(ge=0, le=100_000_000)] | None = Field(
        default=None, description="Messages in 24 hours; 0 allows none."
    )
    recipients_per_day: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = Field(
        default=None, description="Recipients in 24 hours; 0 allows none."
    )
    message_bytes: Annotated[int, Field(ge=1024, le=2 * 1024**3)] | None = Field(
        default=None, description="Largest message in octets, if smaller than the gateway's limit."
    )


class MailAccountSpec(Part):
    """A login and a mailbox."""

    RULES = (
        UniqueBy("addresses"),
        CelCondition(
            "set login: an account with only @ addresses has no default login",
            "has(self.login) || self.addresses.exists(a, !a.startsWith('@'))",
            lambda m: m.login is not None or any(not a.startswith("@") for a in m.addresses),
        ),
    )
    domain_ref: NamespacedRef = Field(description="The MailDomain that the addresses belong to.")
    login: Login | None = Field(default=None, description="Name to log in with. Default: the first full address.")
    addresses: Annotated[tuple[AccountAddress, ...], Field(min_length=1, max_length=256)] = Field(
        description="Local parts or addresses of the domain that the account receives mail for and may send as. "
        "@ stands for every address of the domain that no other account has."
    )
    credentials_secret_ref: LocalRef | None = Field(
        default=None,
        description="Secret with password, or with scram-sha-256 and/or scram-sha-1 verifiers. "
        "Without it the account cannot log in.",
    )
    limits: AccountLimitsSpec | None = Field(default=None, description="Limits on what the account may send.")


class MailAccount(Resource):
    """A login and a mailbox."""

    PLURAL = "mailaccounts"
    SHORT = "macct"
    kind: Literal["MailAccount"]
    spec: MailAccountSpec
