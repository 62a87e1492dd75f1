"""The logins of a session, by all mechanisms, and their throttle (AUTH-01..07)."""

import asyncio
import os
from typing import Final

from mailrail.core.sasl.server import (
    Challenge,
    CheckPassword,
    ClaimedIdentity,
    CramMd5,
    Failure,
    LoginMechanism,
    Plain,
    Scram,
    ServerExchange,
    Step,
    Success,
    UnexpectedInitialResponse,
)
from mailrail.core.smtp.events import AuthRequested, AuthResponse
from mailrail.core.smtp.reply import Reply
from mailrail_ingress import metrics
from mailrail_ingress.ports import Wire
from mailrail_ingress.session_facts import SessionFacts
from mailrail_ingress.throttle import neighbourhood

WRONG_CREDENTIALS: Final = Reply.of(535, "5.7.8", "login or password is wrong")
WAIT_TO_LOGIN: Final = Reply.of(454, "4.7.0", "too many failed logins from your address; try again later")
LOGIN_UNAVAILABLE: Final = Reply.of(454, "4.7.0", "the login cannot be checked for now; try again later")
LOGIN_UNDER_ATTACK: Final = Reply.of(454, "4.7.0", "too many failed logins with this name; try again later")
NO_INITIAL_RESPONSE: Final = Reply.of(501, "5.7.0", "this mechanism takes no initial response")


class Authentication:
    """The logins of one session."""

    __slots__ = ("_facts", "_mechanism", "_mechanism_name", "_wire")

    def __init__(self, facts: SessionFacts, wire: Wire) -> None:
        self._facts = facts
        self._wire = wire
        self._mechanism: ServerExchange | None = None
        self._mechanism_name = ""

    def begin(self, event: AuthRequested) -> None:
        """AUTH: start an exchange."""
        name = event.mechanism
        now = asyncio.get_running_loop().time()
        if self._facts.active_config.throttle.blocks(neighbourhood(self._facts.client), now):
            metrics.LOGINS.inc(name, "throttled")
            self._facts.protocol.refuse(WAIT_TO_LOGIN)
            return
        self._mechanism_name = name
        self._mechanism = self._make_mechanism(name)
        self._step(self._mechanism.start(event.initial))

    def _make_mechanism(self, name: str) -> ServerExchange:
        config = self._facts.config
        if name == "PLAIN":
            return Plain()
        if name == "LOGIN":
            return LoginMechanism()
        if name == "CRAM-MD5":
            now = self._facts.active_config.clock()
            number = int.from_bytes(os.urandom(8), "big")
            return CramMd5(config.accounts, f"<{number}.{now:.6f}@{config.gateway.hostname}>")
        plus = self._facts.protocol.tls is not None and any(m.endswith("-PLUS") for m in config.options.mechanisms)
        return Scram(name, config.accounts, os.urandom(18).hex(), self._facts.bindings, plus_offered=plus)

    def respond(self, event: AuthResponse) -> None:
        """The client answers a challenge."""
        assert self._mechanism is not None
        self._step(self._mechanism.respond(event.data))

    def _step(self, step: Step) -> None:
        match step:
            case Challenge(data):
                # What SCRAM says next tells whether the guess was right.
                if not (isinstance(self._mechanism, Scram) and self._must_wait(self._mechanism.login)):
                    self._facts.protocol.challenge(data)
            case Success(login):
                if isinstance(self._mechanism, Scram) or not self._must_wait(login):
                    self._admit(login)
            case CheckPassword(login, password):
                if not self._must_wait(login):
                    self._check_password(login, password)
            case UnexpectedInitialResponse():
                metrics.LOGINS.inc(self._mechanism_name, "malformed")
                self._facts.protocol.refuse(NO_INITIAL_RESPONSE)
            case Failure(reason, login):
                if not self._must_wait(login):  # else 454 would say that a guess was right
                    self._reject(login, reason)

    def _must_wait(self, login: ClaimedIdentity | None) -> bool:
        """Whether too many guess at this login to hear of another guess; that is answered then (AUTH-05c)."""
        if login is None:
            return False
        throttle = self._facts.active_config.throttle
        now = asyncio.get_running_loop().time()
        if not throttle.blocks_login(login.name, neighbourhood(self._facts.client), now):
            return False
        self._mechanism = None
        metrics.LOGINS.inc(self._mechanism_name, "throttled")
        self._facts.log(
            "login refused", mechanism=self._mechanism_name, attempted=login.text[:200], reason="too many guess at it"
        )
        self._facts.protocol.refuse(LOGIN_UNDER_ATTACK)
        return True

    def _check_password(self, login: ClaimedIdentity, password: str) -> None:
        accounts, name = self._facts.config.accounts, login.name
        if accounts.recall(name, password):
            self._admit(login)
            return

        def done(checked: "asyncio.Future[bool]") -> None:
            if self._facts.protocol.closed:
                return
            if not checked.cancelled() and checked.exception() is None and checked.result():
                accounts.remember(name, password)
                self._admit(login)
            else:
                self._reject(login, "wrong login or password")
            self._wire.pump()

        # A millisecond of hashing without the GIL: in a thread, so that other clients do not wait for it.
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, accounts.admits, name, password).add_done_callback(done)

    def _admit(self, login: ClaimedIdentity) -> None:
        self._mechanism = None
        account = self._facts.config.accounts.find(login.name)
        if account is None:  # the account went away between the exchange's steps
            self._reject(login, "no such account any more")
            return
        self._facts.account = account
        now = asyncio.get_running_loop().time()
        self._facts.active_config.throttle.record_success(login.name, neighbourhood(self._facts.client), now)
        metrics.LOGINS.inc(self._mechanism_name, "accepted")
        self._facts.log("logged in", mechanism=self._mechanism_name)
        self._facts.protocol.authenticate(account.login)

    def _reject(self, login: ClaimedIdentity | None, reason: str) -> None:
        self._mechanism = None
        if login is not None and self._facts.config.accounts.lacks_secret(login.name, self._mechanism_name):
            metrics.LOGINS.inc(self._mechanism_name, "unavailable")
            self._facts.active_config.log.error(
                "cannot check login: ingress has no secret for it", login=login.text[:200]
            )
            self._facts.protocol.refuse(LOGIN_UNAVAILABLE)
            return
        self._count_failure(login, reason)
        self._facts.protocol.refuse(WRONG_CREDENTIALS)

    def _count_failure(self, login: ClaimedIdentity | None, reason: str) -> None:
        now = asyncio.get_running_loop().time()
        self._facts.active_config.throttle.record_failure(
            login.name if login is not None else "", neighbourhood(self._facts.client), now
        )
        metrics.LOGINS.inc(self._mechanism_name, "refused")
        attempted = login.text[:200] if login is not None else ""
        self._facts.log("login refused", mechanism=self._mechanism_name, attempted=attempted, reason=reason)

    def cancel(self) -> None:
        """The client gives the exchange up."""
        self._drop_exchange("the client cancelled the exchange")

    def _drop_exchange(self, reason: str) -> None:
        """An exchange ends unfinished: a failed login, if the client has learned something about one from it."""
        mechanism, self._mechanism = self._mechanism, None
        if mechanism is not None and mechanism.guess is not None:
            self._count_failure(mechanism.guess, reason)

    def reset(self) -> None:
        """TLS begins: what the client said before it is void (AUTH-07)."""
        self._facts.account = None
        self._mechanism = None

    def hang_up(self) -> None:
        """The client is gone."""
        self._drop_exchange("the client left during the exchange")
