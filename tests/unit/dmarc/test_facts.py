"""What a sealer had found about DMARC."""

import pytest

from mailrail.core.authres.read import read_arc_results
from mailrail.core.dmarc.facts import sealed_dmarc


@pytest.mark.parametrize(
    ("results", "found"),
    [
        ("dmarc=pass header.from=example.com", "pass"),
        ("spf=fail; dmarc=pass (p=reject) header.from=EXAMPLE.com; dkim=pass header.d=example.com", "pass"),
        ("dmarc=fail header.from=example.com", "fail"),
        ("dmarc=pass header.from=example.com; dmarc=fail header.from=example.com", "fail"),
        ("dmarc=fail header.from=example.com; dmarc=pass header.from=example.com", "fail"),
        ("dmarc=pass header.from=evil.example", ""),
        ("dmarc=pass header.from=sub.example.com", ""),
        ("dmarc=pass", ""),
        ("none", ""),
    ],
)
def test_only_what_was_found_for_the_author_counts_DMRC_16(results: str, found: str) -> None:
    _, field = read_arc_results(f"i=1; mx.lists.example; {results}".encode())
    assert sealed_dmarc(field, "example.com") == found


def test_results_that_cannot_be_read_say_nothing_DMRC_16() -> None:
    assert sealed_dmarc(None, "example.com") == ""
