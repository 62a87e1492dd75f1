"""How many rows of large bodies FetchContent reads at once (`mailrail_queue.rpc.lease`)."""

from contextlib import ExitStack

from mailrail_queue.rpc.lease import ReadAhead


def test_a_body_is_read_eight_rows_at_once_and_never_past_its_end() -> None:
    ahead = ReadAhead()
    for wanted, read in ((40, 8), (8, 8), (3, 3), (1, 1)):
        with ahead.rows(wanted) as rows:
            assert rows == read


def test_rows_that_are_not_handed_on_are_bounded_and_every_call_gets_one() -> None:
    ahead = ReadAhead()
    with ExitStack() as slow:
        read = [slow.enter_context(ahead.rows(40)) for _ in range(100)]
        assert read == [8] * 9 + [2] + [1] * 90
        assert sum(read) - len(read) == 64
    with ahead.rows(40) as rows:
        assert rows == 8
