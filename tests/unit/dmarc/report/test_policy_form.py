"""The form in which a policy is stored and sent."""

import pytest

from mailrail.core.dmarc.report.facts import ReportedDisposition, ReportedPolicy, decode_policy, encode_policy


@pytest.mark.parametrize(
    "policy",
    [
        ReportedPolicy("a.example", ReportedDisposition.NONE),
        ReportedPolicy(
            "a.example",
            ReportedDisposition.REJECT,
            ReportedDisposition.QUARANTINE,
            ReportedDisposition.NONE,
            strict_dkim=True,
            strict_spf=True,
            fo="1:d:s",
            testing=True,
            public_suffix_list=True,
        ),
    ],
)
def test_a_policy_is_read_as_it_was_written(policy: ReportedPolicy) -> None:
    assert decode_policy("a.example", encode_policy(policy)) == policy


@pytest.mark.parametrize("octets", [b"", b"{}", b"[]", b'["none"]', b"[1,2,3,4,5,6,7,8]", b"[" * 100_000])
def test_what_is_no_policy_is_refused(octets: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_policy("a.example", octets)
