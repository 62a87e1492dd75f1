"""What `mailrail config wait` waits for, and what `mailrail config status` says of a service."""

from mailrail.cli.configuration import not_yet_live, problem_of
from mailrail.pb.config.v1.config_pb2 import Consumer, ListConsumersResponse, Problem


def found(head: int, *runs: int, pinned: bool = False, live: bool = True) -> ListConsumersResponse:
    rows = [Consumer(process=f"node-{n}", role="queue", revision=r, live=live) for n, r in enumerate(runs, 1)]
    return ListConsumersResponse(head=head, pinned=pinned, consumers=rows)


def test_the_revision_in_force_is_live_once_every_living_service_runs_exactly_it() -> None:
    assert not_yet_live(found(7, 7, 7)) == []
    assert not_yet_live(found(7, 7, 6)) == ["node-2 (queue) runs 6"]
    assert not_yet_live(found(7, 7, 8)) == ["node-2 (queue) runs 8"]  # after a rollback


def test_a_named_revision_is_live_under_a_newer_one_too() -> None:
    assert not_yet_live(found(9, 9, 8), 8) == []
    assert not_yet_live(found(9, 9, 7), 8) == ["node-2 (queue) runs 7"]
    assert not_yet_live(found(7, 7), 8) == ["revision 7 is the newest yet"]
    assert not_yet_live(found(7, 7, pinned=True), 8) == ["revision 7 is pinned: `mailrail config unpin`"]


def test_a_service_that_went_silent_is_not_waited_for_and_none_at_all_is_not_success() -> None:
    both = found(7, 7)
    both.consumers.add(process="gone", role="queue", revision=3, live=False)
    assert not_yet_live(both) == []
    assert not_yet_live(found(7, 7, live=False)) == ["no service has reported yet"]
    assert not_yet_live(found(0)) == ["nothing has been published yet"]


def test_a_refusal_is_told_with_its_reason() -> None:
    one = found(7, 6)
    one.consumers[0].rejected, one.consumers[0].error = 7, "no such key"
    assert not_yet_live(one) == ["node-1 (queue) runs 6 and refused 7: no such key"]


def test_status_says_what_a_service_refused_and_what_it_cannot_carry_out() -> None:
    port = Problem(
        kind="MailGateway", namespace="mail", name="main", part="listeners/mx", reason="PortConflict", message="why"
    )
    assert problem_of(Consumer(revision=7)) == ""
    assert problem_of(Consumer(rejected=8, error="no such key", problems=[port])) == (
        "refused 8: no such key; MailGateway mail/main listeners/mx: why (PortConflict)"
    )
