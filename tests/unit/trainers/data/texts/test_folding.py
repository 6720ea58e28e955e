"""Goal: texts that look the same are equal once folded, and texts that look different are not."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.data.texts.folding import fold_text, is_blank


@pytest.mark.parametrize(
    "variant",
    [
        unicodedata.normalize("NFD", "사과는 몇 개인가?"),
        "사과는 몇 개인가？",
        "사과는\u200b 몇 개인가?\ufeff",
        "사과는\u00a0몇\r\n개인가? ",
        "  사과는\u3000\t몇 개인가?",
        "사\u2060과는 몇 개인가?",
    ],
    ids=["decomposed", "fullwidth", "zero-width", "no-break and CRLF", "ideographic", "word joiner"],
)
def test_variants_of_a_text_are_equal(variant: str) -> None:
    assert fold_text(variant) == "사과는 몇 개인가?"


@pytest.mark.parametrize(
    ("left", "right"), [("3 apples", "4 apples"), ("A", "a"), ("사과", "사파"), ("a b", "ab"), ("-1", "1")]
)
def test_texts_that_look_different_stay_different(left: str, right: str) -> None:
    assert fold_text(left) != fold_text(right)


@given(st.text())
def test_folding_a_folded_text_changes_nothing(text: str) -> None:
    folded = fold_text(text)
    assert fold_text(folded) == folded


@given(st.text(st.characters(max_codepoint=127)))
def test_the_shortcut_for_ascii_gives_the_general_result(text: str) -> None:
    assert fold_text(text) == fold_text(text + "\u200b")


@given(st.text(st.sampled_from(" \n\t\u00a0\u200b\u200d\ufeff\u3164a가")))
def test_a_text_is_blank_if_nothing_of_it_is_visible(text: str) -> None:
    assert is_blank(text) is not any(character in "a가" for character in text)
