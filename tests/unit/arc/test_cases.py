"""Small cases of what goes wrong with ARC elsewhere (cases.yml), and the collection of ValiMail."""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from testkit.signed_mail import arc_result, crlf, from_case, from_table, octets_of

CASES: Sequence[Mapping[str, Any]] = yaml.safe_load((Path(__file__).parent / "cases.yml").read_text())
VALIMAIL = Path(__file__).parents[4] / "shared" / "data" / "arc" / "valimail" / "arc-draft-validation-tests.yml"


def test_no_case_is_left_out() -> None:
    assert len(CASES) == 10


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
@pytest.mark.parametrize("size", [1 << 16, 7])
def test_a_case_has_the_result_that_the_rfcs_ask_for_ARC_01a(case: Mapping[str, Any], size: int) -> None:
    given, expect = case["given"], case["expect"]
    now = datetime.datetime.fromisoformat(given["clock"]).timestamp()
    result = arc_result(octets_of(given), from_case(given["dns"]), now, size)
    assert result.outcome == expect["arc"], result.reason
    if "oldest_pass" in expect:
        assert result.oldest_pass == expect["oldest_pass"]
    if "aar" in expect:
        findings = result.sealed[0].findings
        assert findings is not None
        assert findings.authserv_id == expect["aar"]["authserv_id"]
        assert [{"method": each.method, "result": each.result} for each in findings.results] == expect["aar"]["results"]


def _valimail() -> list[Any]:
    if not VALIMAIL.exists():
        return []
    scenarios = list(yaml.safe_load_all(VALIMAIL.read_text()))
    return [pytest.param(each, name, id=name) for each in scenarios for name in each["tests"]]


# The messages are those of a draft. RFC 8617 4.1.2 takes the tags from RFC 6376 3.5: h= has no empty name there, and
# without c= the form is simple, in which the third one was not signed.
STRICTER = {"ams_fields_h_empty", "ams_fields_h_mis_hdr", "ams_fields_c_na"}


@pytest.mark.skipif(not VALIMAIL.exists(), reason="the messages of ValiMail are not here (../shared/data/arc)")
@pytest.mark.parametrize(("scenario", "name"), _valimail())
def test_the_messages_of_valimail_have_their_results_ARC_01a(scenario: Mapping[str, Any], name: str) -> None:
    test = scenario["tests"][name]
    keys = {host: text.replace(" ", "") for host, text in scenario["txt-records"].items()}
    result = arc_result(crlf(test["message"].encode()), from_table(keys), 1_500_000_000.0)
    expected = {None: "none", "": "fail"}.get(test["cv"], str(test["cv"]).lower())
    assert result.outcome == ("fail" if name in STRICTER else expected), result.reason
