"""Small cases of what goes wrong with DMARC elsewhere (cases.yml)."""

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import yaml

from mailrail.core.dmarc.authors import author_domains
from mailrail.core.dmarc.disposition import EnforcementRules, dispose
from mailrail.core.dmarc.evaluate import evaluate
from mailrail.core.dmarc.facts import DkimFact, SpfFact
from mailrail.core.lookups import NO_DATA, NO_NAME, DnsOutcome, DnsQuestion, LookupAnswer, answered
from mailrail.core.message.header import Header

CASES: Sequence[Mapping[str, Any]] = yaml.safe_load((Path(__file__).parent / "cases.yml").read_text("utf-8"))


class Dns:
    """The records of a case, and what was asked of them."""

    def __init__(self, records: Sequence[Mapping[str, Any]]) -> None:
        self._records = records
        self.dmarc_queries: list[str] = []

    def answer(self, question: DnsQuestion) -> LookupAnswer:
        if question.name.startswith("_dmarc."):
            self.dmarc_queries.append(question.name)
        at = [one for one in self._records if one["name"] == question.name]
        codes = [one["rcode"] for one in at if "rcode" in one and one["type"] in ("ANY", question.kind)]
        if codes:
            trouble = LookupAnswer(DnsOutcome.TROUBLE, text=codes[0])
            return {"NXDOMAIN": NO_NAME, "NODATA": NO_DATA}.get(codes[0], trouble)
        found = [one for one in at if one["type"] == question.kind]
        if question.kind == "TXT" and found:
            texts = tuple("".join(one["strings"]).encode("latin-1") for one in found)
            return LookupAnswer(DnsOutcome.FOUND, texts)
        if found:
            return LookupAnswer(DnsOutcome.FOUND, tuple(IPv4Address(data) for one in found for data in one["data"]))
        below = any(one["name"].endswith(f".{question.name}") for one in self._records)
        return NO_DATA if at or below else NO_NAME


def test_all_cases_are_evaluations() -> None:
    assert {case["when"] for case in CASES} == {"evaluate DMARC"}
    assert len(CASES) == 35


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_a_message_is_evaluated_as_the_rfc_says(case: Mapping[str, Any]) -> None:
    given, expect = case["given"], dict(case["expect"])
    fields = given["from_field"] if isinstance(given["from_field"], list) else [given["from_field"]]
    block = "".join(fields).encode("utf-8" if "UTF-8" in case.get("note", "") else "latin-1")
    authors = author_domains(Header(block).named(b"from"))
    dns = Dns(given["dns"])
    spf = given["auth"]["spf"]
    evaluation = answered(
        evaluate(
            authors,
            SpfFact(spf["result"], spf["domain"]),
            [DkimFact(one["result"], one["d"]) for one in given["auth"]["dkim"]],
        ),
        dns.answer,
    )
    result = expect.pop("dmarc")
    if result == "not evaluated":
        assert evaluation.result is None
        assert dispose(evaluation, EnforcementRules()).reply is None
        assert (authors.refusal is not None) is (len(fields) > 1)
        assert not expect
        return
    (verdict,) = evaluation.verdicts
    assert (verdict.result, evaluation.result) == (result, result)
    found = {
        "author": verdict.author,
        "policy": verdict.asked,
        "org": verdict.organizational_domain,
        "record_at": verdict.policy_domain,
        "spf_aligned": verdict.spf_aligned,
        "dkim_aligned": verdict.dkim_aligned,
        "dmarc_queries": dns.dmarc_queries,
        "reports": bool(verdict.record and verdict.record.rua),
        "reason": next((one.type for one in dispose(evaluation, EnforcementRules()).reasons), None),
    }
    assert {name: found[name] for name in expect} == expect
