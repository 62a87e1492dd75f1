"""MailAccount: a login and a mailbox, with the addresses that it receives for and may send as (design 5)."""

from typing import Annotated, Literal

from pydantic import Field

from mailrail.core.resources.base import (
    AddressOrAll,
    AddressOrLocalPart,
    Login,
    NamespacedRef,
    Part,
    PasswordSecretRef,
    Resource,
)
from mailrail.core.resources.rules import CelCondition, UniqueBy


class AccountLimitsSpec(Part):
    """What one account may send; counted when mail is accepted (ACC-08)."""

    messages_per_day: Annotated[int, Field(ge=0, le=100_000_000)] | None = Field(
        default=None, description="Messages in 24 hours; 0 allows none. Default: no limit."
    )
    recipients_per_day: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = Field(
        default=None, description="Recipients in 24 hours; 0 allows none. Default: no limit."
    )
    message_bytes: Annotated[int, Field(ge=1024, le=2 * 1024**3)] | None = Field(
        default=None, description="Largest message in octets. Default: the gateway's limit, which also holds here."
    )


class MailAccountSpec(Part):
    """A login and a mailbox. What is made again under the same namespace and name finds the mail that was there."""

    RULES = (
        UniqueBy("addresses"),
        UniqueBy("receive"),
        UniqueBy("send_as"),
        CelCondition(
            "set addresses, receive or sendAs: an account needs an address",
            " || ".join(f"has(self.{f}) && self.{f}.size() > 0" for f in ("addresses", "receive", "sendAs")),
            lambda m: bool(m.addresses or m.receive or m.send_as),
        ),
        CelCondition(
            "set login: an account that has no address but @ has no default login",
            "has(self.login) || "
            + " || ".join(f"has(self.{f}) && self.{f}.exists(a, a != '@')" for f in ("addresses", "receive", "sendAs")),
            lambda m: m.login is not None or any(a != "@" for a in (*m.addresses, *m.receive, *m.send_as)),
        ),
    )
    domain_ref: NamespacedRef = Field(description="The MailDomain that the addresses belong to.")
    login: Login | None = Field(
        default=None,
        description="Name to log in with; with an @ it must be an address of the domain. Default: the first address.",
    )
    addresses: Annotated[tuple[AddressOrLocalPart, ...], Field(max_length=256)] = Field(
        default=(),
        description="Local parts or addresses of the domain that the account receives mail for and may send as. "
        "Default: none.",
    )
    receive: Annotated[tuple[AddressOrAll, ...], Field(max_length=256)] = Field(
        default=(),
        description="Those that it only receives mail for; @ stands for every address of the domain that does not "
        "exist otherwise. Default: none.",
    )
    send_as: Annotated[tuple[AddressOrAll, ...], Field(max_length=256)] = Field(
        default=(),
        description="Those that it only may send as; several accounts may name one. @ stands for every address of the "
        "domain. Default: none.",
    )
    credentials_secret_ref: PasswordSecretRef | None = Field(
        default=None,
        description="Secret with a password; without one, with verifiers under scram-sha-256 and/or scram-sha-1. "
        "Default: the account cannot log in.",
    )
    limits: AccountLimitsSpec | None = Field(
        default=None, description="Limits on what the account may send. Default: none."
    )


class MailAccount(Resource):
    """A login and a mailbox. What is made again under the same namespace and name finds the mail that was there."""

    PLURAL = "mailaccounts"
    SHORT = "macct"
    kind: Literal["MailAccount"]
    spec: MailAccountSpec
