"""What a reply or a failure means (SOUT-10, SOUT-13, AUTH-09, DSN-05, reference H29, H30, H42)."""

import itertools

import pytest

from mailrail.core.delivery.outcome import HopKind, Outcome, Scope, backoff_reason, of_reply, of_trouble
from mailrail.core.smtp.answer import OUR_OWN, Stage, Trouble
from mailrail.core.smtp.reply import Reply

D, F, R = Outcome.DEFERRED, Outcome.FAILED, Outcome.RELAYED


@pytest.mark.parametrize(
    ("code", "enhanced", "stage", "outcome", "scope", "status"),
    [
        (250, "2.0.0", Stage.END, R, Scope.RECIPIENT, "2.0.0"),
        (250, None, Stage.END, R, Scope.RECIPIENT, "2.0.0"),
        (550, "5.1.1", Stage.RCPT, F, Scope.RECIPIENT, "5.1.1"),
        (550, None, Stage.RCPT, F, Scope.RECIPIENT, "5.0.0"),
        (450, "4.2.0", Stage.RCPT, D, Scope.RECIPIENT, "4.2.0"),
        (452, "4.5.3", Stage.RCPT, D, Scope.RECIPIENT, "4.5.3"),
        (552, "5.5.3", Stage.RCPT, D, Scope.RECIPIENT, "4.5.3"),
        (552, "5.3.4", Stage.END, F, Scope.RECIPIENT, "5.3.4"),
        (552, "5.3.4", Stage.MAIL, F, Scope.RECIPIENT, "5.3.4"),
        (554, "5.7.1", Stage.DATA, F, Scope.RECIPIENT, "5.7.1"),
        (421, "4.3.2", Stage.MAIL, D, Scope.SITE, "4.3.2"),
        (421, None, Stage.RCPT, D, Scope.SITE, "4.0.0"),
        (421, None, Stage.GREETING, D, Scope.SITE, "4.0.0"),
        (554, "5.7.1", Stage.GREETING, D, Scope.SITE, "4.7.1"),
        (550, None, Stage.HELLO, D, Scope.SITE, "4.0.0"),
        (530, "5.7.0", Stage.MAIL, F, Scope.RECIPIENT, "5.7.0"),
    ],
)
def test_a_reply_of_a_destination_SOUT_13(
    code: int, enhanced: str | None, stage: Stage, outcome: Outcome, scope: Scope, status: str
) -> None:
    verdict = of_reply(Reply.of(code, enhanced, "text"), stage=stage)
    assert (verdict.outcome, verdict.scope, str(verdict.status)) == (outcome, scope, status)
    assert verdict.final is (outcome is not D)


@pytest.mark.parametrize(("code", "outcome"), [(521, F), (554, F), (550, D), (420, D)])
def test_greetings_are_final_only_if_every_host_says_521_or_554_SOUT_13(code: int, outcome: Outcome) -> None:
    assert of_reply(Reply(code), stage=Stage.GREETING, every_host=True).outcome is outcome
    assert of_reply(Reply(code), stage=Stage.GREETING, every_host=False).outcome is D
    assert of_reply(Reply(code), stage=Stage.GREETING, hop=HopKind.OWN, every_host=True).outcome is D


@pytest.mark.parametrize("stage", [Stage.AUTH, Stage.HANDSHAKE, Stage.MAIL])
@pytest.mark.parametrize("code", [530, 534, 535, 538])
def test_a_refused_password_of_our_own_smarthost_never_bounces_mail_AUTH_09(stage: Stage, code: int) -> None:
    verdict = of_reply(Reply.of(code, "5.7.8", "no"), stage=stage, hop=HopKind.OWN)
    assert (verdict.outcome, str(verdict.status), verdict.scope) == (D, "4.3.5", Scope.TRANSPORT)


def test_bad_tls_of_our_own_smarthost_is_our_trouble_and_of_an_mx_the_site_s() -> None:
    own = of_trouble(Trouble.TLS, stage=Stage.HANDSHAKE, hop=HopKind.OWN)
    assert (own.outcome, str(own.status), own.scope) == (D, "4.3.5", Scope.TRANSPORT)
    foreign = of_trouble(Trouble.TLS, stage=Stage.HANDSHAKE)
    assert (foreign.outcome, str(foreign.status), foreign.scope) == (D, "4.7.5", Scope.SITE)


def test_a_hop_with_dsn_takes_over_and_lmtp_is_final_delivery_DSN_05() -> None:
    ok = Reply.of(250, "2.0.0", "ok")
    assert of_reply(ok, stage=Stage.END).outcome is R
    passed = of_reply(ok, stage=Stage.END, passes_dsn=True)
    assert (passed.outcome, passed.dsn_passed_on) == (Outcome.DELIVERED, True)
    lmtp = of_reply(ok, stage=Stage.END, hop=HopKind.FINAL)
    assert (lmtp.outcome, lmtp.dsn_passed_on) == (Outcome.DELIVERED, False)


def test_a_connection_lost_before_the_message_blames_the_site_and_after_it_the_message() -> None:
    assert of_trouble(Trouble.CLOSED, stage=Stage.MAIL).scope is Scope.SITE
    assert of_trouble(Trouble.CLOSED, stage=Stage.END).scope is Scope.RECIPIENT


@pytest.mark.parametrize("trouble", list(Trouble))
def test_every_trouble_has_a_status_whose_class_agrees_with_its_outcome_H42(trouble: Trouble) -> None:
    for hop in HopKind:
        verdict = of_trouble(trouble, hop=hop, detail="x")
        assert verdict.status.category == (5 if verdict.outcome is F else 4)
        assert verdict.reply is None
        assert verdict.text == "x" if trouble in OUR_OWN else verdict.text.endswith(": x")


@pytest.mark.parametrize("hop", list(HopKind))
def test_class_and_permanence_agree_for_every_code_and_only_2yz_to_the_dot_delivers_H42(hop: HopKind) -> None:
    for code, stage in itertools.product(range(200, 600), Stage):
        verdict = of_reply(Reply(code), stage=stage, hop=hop)
        if stage is Stage.END and code < 300:
            assert verdict.outcome in (R, Outcome.DELIVERED)
        else:
            assert verdict.outcome in (D, F)
            assert verdict.status.category == (5 if verdict.outcome is F else 4)


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        (535, "4.3.5", "login_refused"),
        (530, "4.3.5", "login_refused"),
        (454, "4.3.5", "refused"),
        (421, "4.3.2", "refused"),
        (0, "4.3.5", "setup_failed"),
        (0, "4.4.1", "no_answer"),
        (0, "", "no_answer"),
    ],
)
def test_why_a_transport_is_in_backoff_is_one_word(code: int, status: str, reason: str) -> None:
    assert backoff_reason(code, status) == reason
