"""Commits in line: small mail goes ahead of large mail, which has its turn all the same (ACC-03, ACC-07)."""

import math
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from mailrail.core.limits import SMALL_LIMIT
from mailrail.pb.queue.v1 import enqueue_pb2
from mailrail_queue.accept.line import CommitLine
from mailrail_queue.accept.pending import PendingCommit

LARGE = 1024 * 1024


def pending(name: bytes, octets: int, since: float = 0.0) -> PendingCommit:
    body = bytes(octets)
    return PendingCommit(name, enqueue_pb2.Commit(), b"", body, 0, cast("Any", name), octets, since)


def line_of(*commits: PendingCommit) -> CommitLine:
    line = CommitLine()
    for commit in commits:
        line.add(commit)
    return line


def taken(line: CommitLine, messages: int = 256, octets: int = 4 * LARGE) -> list[bytes]:
    return [one.id for one in line.take(messages, octets)]


def test_small_commits_go_ahead_of_large_ones_that_came_before_them_ACC_07() -> None:
    line = line_of(*(pending(b"large %d" % n, LARGE) for n in range(20)), pending(b"small", 2048))
    assert taken(line) == [b"small", b"large 0", b"large 1", b"large 2"]
    line.add(pending(b"another", SMALL_LIMIT))
    assert taken(line) == [b"another", b"large 3", b"large 4", b"large 5"]


def test_each_batch_has_a_large_commit_however_many_small_ones_wait_ACC_07() -> None:
    line = line_of(
        *(pending(b"%d" % n, 60_000) for n in range(1000)), *(pending(b"large %d" % n, LARGE) for n in (0, 1))
    )
    assert taken(line)[-1] == b"large 0"
    assert taken(line, messages=2)[1:] == [b"large 1"]


def test_one_that_exceeds_a_batch_goes_alone_ACC_03() -> None:
    line = line_of(pending(b"a", 3 * LARGE), pending(b"b", 10))
    assert taken(line, octets=LARGE) == [b"b"]
    assert taken(line, octets=LARGE) == [b"a"]


def test_the_same_id_twice_is_one_commit_with_two_callers_ACC_04() -> None:
    line = line_of(pending(b"a", 10), pending(b"a", 10))
    (one,) = line.take(10, LARGE)
    assert cast("Any", one.duplicates) == (b"a",)


def test_those_that_wait_longest_can_be_taken_out() -> None:
    line = line_of(pending(b"a", 10, 1.0), pending(b"b", LARGE, 2.0), pending(b"c", 10, 3.0))
    assert [one.id for one in line.take_older(2.5)] == [b"a", b"b"]
    assert [one.id for one in line.take_older(math.inf)] == [b"c"]
    assert len(line) == 0


@given(st.lists(st.sampled_from([10, SMALL_LIMIT, SMALL_LIMIT + 1, LARGE, 3 * LARGE]), max_size=40), st.integers(1, 9))
def test_all_come_out_once_in_batches_of_bounded_size_ACC_03(sizes: list[int], messages: int) -> None:
    line = line_of(*(pending(b"%d" % n, size) for n, size in enumerate(sizes)))
    out: list[bytes] = []
    while line:
        batch = line.take(messages, 4 * LARGE)
        assert 0 < len(batch) <= messages
        assert len(batch) == 1 or sum(one.size for one in batch) <= 4 * LARGE
        out += [one.id for one in batch]
    assert sorted(out) == sorted(b"%d" % n for n in range(len(sizes)))
