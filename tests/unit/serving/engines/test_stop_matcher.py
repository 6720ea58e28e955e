"""No part of a stop string is emitted."""

import pytest

from serving.engines.decoding.text import StopMatcher


@pytest.mark.parametrize("stop", ["셋", "둘 셋", "aab", "ab", "END"])
@pytest.mark.parametrize("size", [1, 2, 5, 50])
def test_no_part_of_a_stop_string_leaks_with_any_piece_size(stop: str, size: int) -> None:
    text = "하나 둘 셋 aaab END rest"
    matcher = StopMatcher((stop,))
    emitted = ""
    for start in range(0, len(text), size):
        emitted += matcher.push(text[start : start + size])
        if matcher.matched:
            break
    assert emitted == text[: text.index(stop)]


def test_the_earliest_of_several_stop_strings_wins() -> None:
    matcher = StopMatcher(("cd", "b"))
    assert (matcher.push("abcd"), matcher.matched) == ("a", True)
