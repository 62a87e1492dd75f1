"""The check of docs/spec against code and tests."""

import check_rules
import pytest
from check_rules import Citations, cited_in_name, cited_in_text, differences, named_tests, read_rules

FAMILIES = ["LSE", "SIN", "SUB"]
PAGE = """# Rules
- SIN-02 MUST · ingress · built: end of data is only CRLF.CRLF.
- SIN-22 SHOULD · n/a: dropped: no listener is closed for good.
- SUB-02 MUST · ingress: domains are fully qualified.
  - SUB-02a MUST · ingress · built: those of the envelope.
  - SUB-02b MUST · ingress · not built: those of the header.
- LSE-08 · built (test alone): duplicates only where a final dot was sent.
"""
TESTS = {"SIN-02": ["t"], "SUB-02a": ["t"], "LSE-08": ["t"]}
CODE = {"SIN-02": ["c"], "SUB-02a": ["c"], "SUB-02": ["c"]}


def found(page: str = PAGE, *, tests: dict[str, list[str]] = TESTS, code: dict[str, list[str]] = CODE) -> list[str]:
    rules, wrong = read_rules({"page": page})
    return wrong + differences(rules, Citations(code, tests, {}))


def test_a_page_that_agrees_with_code_and_tests_has_no_differences() -> None:
    assert found() == []


@pytest.mark.parametrize(
    ("tests", "code", "expected"),
    [
        ({"SIN-02": []}, {}, "page:2: SIN-02 is built, and no test cites it in its name or docstring"),
        ({}, {"SIN-02": []}, "page:2: SIN-02 is built, and no code cites it"),
        ({"LSE-08": []}, {}, "page:7: LSE-08 is built, and no test cites it in its name or docstring"),
        ({"SUB-02b": ["t"]}, {}, "page:6: SUB-02b is marked 'not built', and t cites it"),
        ({"SIN-22": ["t"]}, {}, "page:3: SIN-22 is marked 'n/a', and t cites it"),
        ({"SUB-02": ["t"]}, {}, "t cites SUB-02, which has clauses; cite the clause"),
        ({}, {"SIN-99": ["c"]}, f"c: SIN-99 is in none of {', '.join(check_rules.PAGES)}"),
    ],
)
def test_each_difference_is_named(tests: dict[str, list[str]], code: dict[str, list[str]], expected: str) -> None:
    assert found(tests=TESTS | tests, code=CODE | code) == [expected]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("- SIN-03 MUST · ingress: no mark", "page:8: SIN-03 has no mark; write one of"),
        ("- SIN-02 MUST · ingress · built: again", "page:8: SIN-02 is there twice, first at page:2"),
        ("  - SIN-02a MUST · ingress · built: a clause", "page:2: SIN-02 has clauses, so its mark belongs to them"),
        ("  - SIN-07a MUST · ingress · n/a: a clause", "page:8: SIN-07a is a clause of a rule that is not there"),
    ],
)
def test_what_is_wrong_with_a_page_is_named(line: str, expected: str) -> None:
    assert any(wrong.startswith(expected) for wrong in found(PAGE + line))


def test_ranges_cite_nothing_and_lists_cite_each() -> None:
    assert cited_in_text("SIN-02..21, SIN-03 to SIN-05; LSE-01, SUB-02a", FAMILIES) == {"LSE-01", "SUB-02a"}
    assert cited_in_text("XSIN-02 SIN-021 CVE-2023-51764", FAMILIES) == set()
    assert cited_in_name("test_an_end_SIN_02_SUB_02a", FAMILIES) == {"SIN-02", "SUB-02a"}


def test_tests_are_found_with_their_docstrings_wherever_they_stand() -> None:
    source = """
def test_a():
    '''LSE-01.'''

class T:
    async def test_b(self): ...

def helper():
    '''SIN-02.'''
"""
    assert sorted(named_tests(source)) == [("test_a", "LSE-01."), ("test_b", "")]


def test_the_real_pages_can_be_read() -> None:
    pages = {page: (check_rules.ROOT / page).read_text(encoding="utf-8") for page in check_rules.PAGES}
    rules, wrong = read_rules(pages)
    assert wrong == []
    assert len(rules) > 300
