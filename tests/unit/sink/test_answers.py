"""What a sink was told to answer."""

from mailrail.sink import Answers


def test_an_address_goes_before_its_domain_and_the_domain_before_all() -> None:
    answers = Answers()
    answers.give("RCPT", "450 all")
    answers.give("RCPT", "451 domain", to="@example.org")
    answers.give("RCPT", "550 address", to="A@example.org")
    given = [answers.take("RCPT", to) for to in ("a@example.org", "b@Example.ORG", "c@example.net", "postmaster")]
    assert given == ["550 address", "451 domain", "450 all", "450 all"]


def test_the_null_sender_has_the_domain_of_no_name() -> None:
    answers = Answers()
    answers.give("MAIL", "451 all")
    answers.give("MAIL", "550 no bounces", to="@")
    assert [answers.take("MAIL", sender) for sender in ("", "a@example.org")] == ["550 no bounces", "451 all"]


def test_an_answer_that_is_given_twice_is_the_usual_one_at_the_third_time() -> None:
    answers = Answers()
    answers.give("MAIL", "451 later", to="a@example.org", times=2)
    assert [answers.take("MAIL", "a@example.org") for _ in range(3)] == ["451 later", "451 later", None]


def test_a_withdrawn_answer_uncovers_the_one_for_the_domain() -> None:
    answers = Answers()
    answers.give("END", "550 no", to="a@example.org")
    answers.give("END", "450 later", to="@example.org")
    answers.withdraw("END", to="a@example.org")
    answers.withdraw("RCPT", to="a@example.org")
    assert answers.take("END", "a@example.org") == "450 later"


def test_each_step_and_address_has_its_own_count_and_answers() -> None:
    answers = Answers()
    answers.give("DATA", "451 later")
    assert (answers.take("DATA"), answers.take("EHLO"), answers.take("RCPT", "a@b.test")) == ("451 later", None, None)
    assert (answers.asked("RCPT", "A@b.test"), answers.asked("RCPT", "c@b.test"), answers.asked("DATA", "")) == (
        1,
        0,
        1,
    )
