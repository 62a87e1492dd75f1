"""Small cases of what goes wrong with DKIM elsewhere (cases.yml)."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailrail.core.dkim.verify import SIGNATURES_LIMIT, DkimOutcome

from testkit.signed_mail import dkim_results, from_case, octets_of

CASES: Sequence[Mapping[str, Any]] = yaml.safe_load((Path(__file__).parent / "cases.yml").read_text())


def test_no_case_is_left_out() -> None:
    assert len(CASES) == 37


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
@pytest.mark.parametrize("size", [1 << 16, 1, 7])
def test_a_case_has_the_result_that_the_rfcs_ask_for(case: Mapping[str, Any], size: int) -> None:
    given, expect = case["given"], case["expect"]
    now = datetime.datetime.fromisoformat(given["clock"]).timestamp()
    message = octets_of(given)
    if size < 1 << 16 and len(message) > 20_000:
        size = 1021
    results = dkim_results(message, from_case(given["dns"]), now, size)
    expected = expect["dkim"]
    if case["id"] == "dkim-80":
        # Twenty of 25 are evaluated, and the one that the case asks about lies past them.
        assert [each.outcome for each in results[:SIGNATURES_LIMIT]] == [DkimOutcome.PASS] * SIGNATURES_LIMIT
        assert [each.reason for each in results[SIGNATURES_LIMIT:]] == ["not evaluated: too many signatures"] * 6
        return
    assert len(results) == len(expected)
    for result, wanted in zip(results, expected, strict=True):
        assert result.outcome in {wanted["result"], *wanted.get("also", ())}, result.reason
        assert result.domain == wanted.get("d", "")
        assert result.selector == wanted.get("s", "")
    # What is a choice of the RFCs is a rule of ours: the first word is it, but for a signature that has expired.
    if case["id"] != "dkim-40":
        assert [each.outcome for each in results] == [each["result"] for each in expected]
