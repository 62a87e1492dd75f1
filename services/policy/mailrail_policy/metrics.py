"""Series of the policy service."""

from mailrail.kit.metrics import Tally

REQUESTS = Tally(
    "mailrail_policy_requests_total",
    "Requests; result is `served`, `unknown_host`, `unknown_path`, `bad_method`, `bad_request`, `not_ready` (no "
    "configuration yet) or `ended` (too slow, or too many others)",
    ["result"],
)
for _result in ("served", "unknown_host", "unknown_path", "bad_method", "bad_request", "not_ready", "ended"):
    REQUESTS.of(_result)  # there from 0 on, so that the first one is a rise
