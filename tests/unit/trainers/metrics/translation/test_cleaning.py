"""Wrapping is removed from responses, and no translation without wrapping is changed."""

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import QUICK
from tests.shared_data import SharedData
from trainers.metrics.translation.cleaning import QUOTES, Cleaning, CleanResponse, clean_response

KOREAN, ENGLISH = "고양이가 매트 위에 앉았다.", "The cat sat on the mat."


@pytest.mark.parametrize(
    ("response", "cleaning"),
    [
        (f"<think>\nA cat…\n</think>\n\n{ENGLISH}", Cleaning.thinking),
        (f"A cat, so…\n</think>\n{ENGLISH}", Cleaning.thinking),
        (f"```\n{ENGLISH}\n```", Cleaning.code_fence),
        (f"```text\n{ENGLISH}\n```", Cleaning.code_fence),
        (f"```{ENGLISH}```", Cleaning.code_fence),
        (f"{KOREAN}\n{ENGLISH}", Cleaning.repeated_source),
        (f"원문: {KOREAN}\n\n{ENGLISH}", Cleaning.repeated_source),
        (f'"{KOREAN}" → {ENGLISH}', Cleaning.repeated_source),
        (f"Translation: {ENGLISH}", Cleaning.label),
        (f"**English translation:** {ENGLISH}", Cleaning.label),
        (f"번역: {ENGLISH}", Cleaning.label),
        (f"영어 번역：{ENGLISH}", Cleaning.label),
        (f"English: {ENGLISH}", Cleaning.label),
        (f"Here is the translation:\n\n{ENGLISH}", Cleaning.label),
        (f"Sure! Here's the English translation of the text:\n{ENGLISH}", Cleaning.label),
        (f"The translation is: {ENGLISH}", Cleaning.label),
        (f"다음은 번역입니다:\n{ENGLISH}", Cleaning.label),
        (f"네, 다음은 요청하신 문장의 영어 번역문입니다.\n\n{ENGLISH}", Cleaning.label),
        (f"번역은 다음과 같습니다: {ENGLISH}", Cleaning.label),
        (f"### Translation\n{ENGLISH}", Cleaning.label),
        (f'"{ENGLISH}"', Cleaning.quotes),
        (f"「{ENGLISH}」", Cleaning.quotes),
    ],
)
@pytest.mark.parametrize(
    "source", [KOREAN, f"Translate into English:\n\n{KOREAN}", f"Korean: {KOREAN}\nEnglish:"]
)
def test_wrapping_is_removed(response: str, cleaning: Cleaning, source: str) -> None:
    # A repeated source is found only where the source is known apart from the request.
    cleaned = clean_response(response, KOREAN if cleaning is Cleaning.repeated_source else source)
    assert (cleaned.text, cleaned.cleanings) == (ENGLISH, (cleaning,))


@pytest.mark.parametrize(
    ("source", "response"),
    [
        ("“간다.”", "“I am going.”"),
        ("그는 “간다”고 말했다.", '"I am going."'),
        (KOREAN, '"I go," he said. "Now."'),
        (KOREAN, "'Twas the cat's"),
        ("번역: 김철수", "Translation: Kim Cheol-su"),
        ("정답: 3번", "Answer: number 3"),
        ("영어: 세계의 언어", "English: the language of the world"),
        ("A note on translation: it is hard.", "번역에 대한 메모: 어렵다."),
        (KOREAN, "그는 번역에 대해 이렇게 말했다: 어렵다."),
        ("```\ncode\n```", "```\ncode\n```"),
        ("<think> 태그를 쓴다.", "<think> is the tag."),
        (KOREAN, KOREAN),
        (KOREAN, f"{KOREAN} {ENGLISH}"),
        (KOREAN, "Translation:"),
        (KOREAN, '""'),
        (KOREAN, "  leading white space, and trailing \n"),
        ("OK", "OK"),
    ],
)
def test_clean_text_is_unchanged(source: str, response: str) -> None:
    assert clean_response(response, source) == CleanResponse(response)


def test_no_reference_of_the_news_is_changed(shared_data: SharedData) -> None:
    changed = []
    for part in ("train", "test"):
        korean, english = (
            (shared_data.news / f"{part}.{name}").read_text("utf-8").splitlines() for name in ("ko", "en")
        )
        for one, other in zip(korean, english, strict=True):
            for source, reference in ((one, other), (other, one)):
                for request in (source, f"Translate into the other language.\n\n{source}"):
                    if clean_response(reference, request).cleanings:
                        changed.append((source, reference))
    # One pair is misaligned: the source is the title of a list, the reference a quotation.
    assert {source for source, _ in changed} <= {"영한사전 약어표 / 한영사전 약어표"}


# Without the characters and words of wrapping.
LETTERS = st.characters(
    categories=("L", "N", "Zs", "P", "So"), exclude_characters="\"'`“”‘’„«»「」『』<>:：→⇒=_*#"
)
TEXTS = st.text(LETTERS, min_size=1, max_size=60).map(str.strip).filter(bool)
WRAPPINGS: dict[Cleaning, list[Callable[[str], str]]] = {
    Cleaning.thinking: [lambda text: f'<think>because: "x"</think>\n{text}'],
    Cleaning.code_fence: [lambda text: f"```\n{text}\n```"],
    Cleaning.label: [
        lambda text: f"Translation: {text}",
        lambda text: f"번역: {text}",
        lambda text: f"Here is the translation:\n{text}",
    ],
    Cleaning.quotes: [lambda text, pair=pair: f"{pair[0]}{text}{pair[1]}" for pair in QUOTES.items()],  # type: ignore[misc]
}


@QUICK
@given(TEXTS, TEXTS)
def test_text_without_signs_of_wrapping_is_never_changed(text: str, source: str) -> None:
    assert clean_response(text, source).text == text


@QUICK
@given(
    TEXTS,
    TEXTS,
    st.lists(st.sampled_from(sorted(WRAPPINGS)), unique=True, min_size=1),
    st.integers(min_value=0, max_value=7),
)
def test_nested_wrapping_is_removed_whatever_its_order(
    text: str, source: str, kinds: list[Cleaning], choice: int
) -> None:
    wrapped = text
    for kind in kinds:
        if kind is not Cleaning.thinking:
            wrapped = WRAPPINGS[kind][choice % len(WRAPPINGS[kind])](wrapped)
    if Cleaning.thinking in kinds:
        wrapped = WRAPPINGS[Cleaning.thinking][0](wrapped)
    cleaned = clean_response(wrapped, source)
    assert cleaned.text == text
    assert set(cleaned.cleanings) == set(kinds)


@QUICK
@given(st.text(max_size=80), st.text(max_size=40))
def test_cleaning_twice_changes_nothing_more(response: str, source: str) -> None:
    cleaned = clean_response(response, source).text
    assert clean_response(cleaned, source).text.strip() == cleaned.strip()


@pytest.mark.parametrize(
    "part",
    ["<think>", "</think>", "```\n", "Translation: ", "Here is the ", "번역: ", '"', "「", " ", "* ", "a:\n"],
)
def test_endless_text_takes_little_time(part: str) -> None:
    endless = part * 50_000
    started = time.process_time()
    clean_response(endless, endless)
    clean_response(endless, KOREAN)
    assert time.process_time() - started < 2
