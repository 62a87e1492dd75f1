"""`make check` finds tests whose names differ from process to process."""

from check_collection import differences


def test_the_same_names_in_the_same_order_are_no_difference() -> None:
    assert differences(["a::b[1]", "a::c"], ["a::b[1]", "a::c"]) == []


def test_another_name_another_order_and_a_test_too_many_are_shown() -> None:
    assert differences(["a::b[1]", "a::c"], ["a::b[2]", "a::c", "a::d"]) == [
        "one process finds a::b[1], another a::b[2]",
        "one process finds nothing, another a::d",
    ]
    assert len(differences(["a::b", "a::c"], ["a::c", "a::b"])) == 2
