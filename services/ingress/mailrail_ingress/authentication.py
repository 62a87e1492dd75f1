"""Who the client of a session is: logins, by all mechanisms, and who has to wait for another try (AUTH-01..07)."""

import asyncio
import os
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from mailrail.core.revision.revision import Account
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
from mailrail.core.smtp.events import AuthCancelled, AuthRequested, AuthResponse
from mailrail.core.smtp.reply import Reply
from mailrail.core.smtp.server import ServerSession
from mailrail_ingress import metrics
from mailrail_ingress.active_config import ActiveConfig, ListenerConfig
from mailrail_ingress.ports import (
    Wire,
)
from mailrail_ingress.throttle import neighbourhood

WRONG_CREDENTIALS: Final = Reply.of(535, "5.7.8", "login or password is wrong")
WAIT_TO_LOGIN: Final = Reply.of(454, "4.7.0", "too many failed logins from your address; try again later")
LOGIN_UNAVAILABLE: Final = Reply.of(454, "4.7.0", "the login cannot be checked for now; try again later")
LOGIN_UNDER_ATTACK: Final = Reply.of(454, "4.7.0", "too many failed logins with this name; try again later")
NO_INITIAL_RESPONSE: Final = Reply.of(501, "5.7.0", "this mechanism takes no initial response")


class Authentication:
    """One client's session, seen from who it is."""

    __slots__ = (
        "_mechanism",
        "_mechanism_name",
        "_wire",
        "account",
        "active_config",
        "client",
        "client_text",
        "config",
        "protocol",
    )

    def __init__(
        self,
        active_config: ActiveConfig,
        config: ListenerConfig,
        protocol: ServerSession,
        wire: Wire,
        client: IPv4Address | IPv6Address,
    ) -> None:
        self.active_config = active_config
        self.config = config
        self.protocol = protocol
        self.client = client
        self.client_text = str(client)
        self.account: Account | None = None
        self._wire = wire
        self._mechanism: ServerExchange | None = None
        self._mechanism_name = ""

    def _login(self, event: AuthRequested) -> None:
        name = event.mechanism
        if self.active_config.throttle.blocks(neighbourhood(self.client), asyncio.get_running_loop().time()):
            metrics.count(metrics.LOGINS, name, "throttled")
            self.protocol.refuse(WAIT_TO_LOGIN)
            return
        self._mechanism_name = name
        self._mechanism = self._make_mechanism(name)
        self._step(self._mechanism.start(event.initial))

    def _make_mechanism(self, name: str) -> ServerExchange:
        config = self.config
        if name == "PLAIN":
            return Plain()
        if name == "LOGIN":
            return LoginMechanism()
        if name == "CRAM-MD5":
            now = self.active_config.clock()
            number = int.from_bytes(os.urandom(8), "big")
            return CramMd5(config.accounts, f"<{number}.{now:.6f}@{config.gateway.hostname}>")
        plus = self.protocol.tls is not None and any(m.endswith("-PLUS") for m in config.options.mechanisms)
        bindings = config.bindings if self.protocol.tls is not None else {}
        return Scram(name, config.accounts, os.urandom(18).hex(), bindings, plus_offered=plus)

    def _response(self, event: AuthResponse) -> None:
        assert self._mechanism is not None
        self._step(self._mechanism.respond(event.data))

    def _step(self, step: Step) -> None:
        match step:
            case Challenge(data):
                # What SCRAM says next tells whether the guess was right.
                if not (isinstance(self._mechanism, Scram) and self._has_to_wait(self._mechanism.login)):
                    self.protocol.challenge(data)
            case Success(login):
                if isinstance(self._mechanism, Scram) or not self._has_to_wait(login):
                    self._logged_in(login)
            case CheckPassword(login, password):
                if not self._has_to_wait(login):
                    self._check_password(login, password)
            case UnexpectedInitialResponse():
                metrics.count(metrics.LOGINS, self._mechanism_name, "malformed")
                self.protocol.refuse(NO_INITIAL_RESPONSE)
            case Failure(reason, login):
                if not self._has_to_wait(login):  # else 454 would say that a guess was right
                    self._not_logged_in(login, reason)

    def _has_to_wait(self, login: ClaimedIdentity | None) -> bool:
        """Whether too many guess at this login to hear of another guess; that is answered then (AUTH-05c)."""
        if login is None:
            return False
        throttle = self.active_config.throttle
        now = asyncio.get_running_loop().time()
        if not throttle.blocks_login(login.name, neighbourhood(self.client), now):
            return False
        self._mechanism = None
        metrics.count(metrics.LOGINS, self._mechanism_name, "throttled")
        self._log(
            "login refused", mechanism=self._mechanism_name, attempted=login.text[:200], reason="too many guess at it"
        )
        self.protocol.refuse(LOGIN_UNDER_ATTACK)
        return True

    def _check_password(self, login: ClaimedIdentity, password: str) -> None:
        accounts, name = self.config.accounts, login.name
        if accounts.recall(name, password):
            self._logged_in(login)
            return

        def done(checked: "asyncio.Future[bool]") -> None:
            if self.protocol.closed:
                return
            if not checked.cancelled() and checked.exception() is None and checked.result():
                accounts.remember(name, password)
                self._logged_in(login)
            else:
                self._not_logged_in(login, "wrong login or password")
            self._wire.pump()

        # A millisecond of hashing without the GIL: in a thread, so that other clients do not wait for it.
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, accounts.admits, name, password).add_done_callback(done)

    def _logged_in(self, login: ClaimedIdentity) -> None:
        self._mechanism = None
        account = self.config.accounts.find(login.name)
        if account is None:  # the account went away between the exchange's steps
            self._not_logged_in(login, "no such account any more")
            return
        self.account = account
        now = asyncio.get_running_loop().time()
        self.active_config.throttle.record_success(login.name, neighbourhood(self.client), now)
        metrics.count(metrics.LOGINS, self._mechanism_name, "accepted")
        self._log("logged in", mechanism=self._mechanism_name)
        self.protocol.authenticate(account.login)

    def _not_logged_in(self, login: ClaimedIdentity | None, reason: str) -> None:
        self._mechanism = None
        if login is not None and self.config.accounts.lacks_secret(login.name, self._mechanism_name):
            metrics.count(metrics.LOGINS, self._mechanism_name, "unavailable")
            self.active_config.log.error("cannot check login: ingress has no secret for it", login=login.text[:200])
            self.protocol.refuse(LOGIN_UNAVAILABLE)
            return
        self._count_failure(login, reason)
        self.protocol.refuse(WRONG_CREDENTIALS)

    def _count_failure(self, login: ClaimedIdentity | None, reason: str) -> None:
        now = asyncio.get_running_loop().time()
        self.active_config.throttle.record_failure(
            login.name if login is not None else "", neighbourhood(self.client), now
        )
        metrics.count(metrics.LOGINS, self._mechanism_name, "refused")
        attempted = login.text[:200] if login is not None else ""
        self._log("login refused", mechanism=self._mechanism_name, attempted=attempted, reason=reason)

    def _login_cancelled(self, _: AuthCancelled) -> None:
        self._drop_login("the client gave the exchange up")

    def _drop_login(self, reason: str) -> None:
        """An exchange ends unfinished. If it has told the client something of a login, it was a guess at it."""
        mechanism, self._mechanism = self._mechanism, None
        if mechanism is not None and mechanism.guess is not None:
            self._count_failure(mechanism.guess, reason)

    def complete_tls(self) -> None:
        """Whatever was known of the client before TLS is void (AUTH-07)."""
        self.account = None
        self._mechanism = None

    def hang_up(self) -> None:
        """The client is gone."""
        self._drop_login("the client left in the middle of the exchange")

    def _log(self, event: str, **fields: object) -> None:
        self.active_config.log.info(
            event,
            listener=self.config.listener.name,
            client=self.client_text,
            hello=self.protocol.hello,
            login=self.account.login if self.account is not None else None,
            tls=self.protocol.tls.version if self.protocol.tls is not None else None,
            **fields,
        )
