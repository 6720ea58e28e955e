"""Goal: a run's name says what it is, and is one safe part of a path whatever the job is called."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.runs.names import make_full_name


@pytest.mark.parametrize(
    ("job", "stage", "name"),
    [
        ("ko-en news", "sft", "ko-en-news-sft"),
        ("KO-EN / news (v2)", "sft", "ko-en-news-v2-sft"),
        ("한국어 번역", "dpo", "한국어-번역-dpo"),
        ("हिन्दी", "sft", "हिन्दी-sft"),
        ("sft", "sft", "sft"),
        ("news-sft", "sft", "news-sft"),
        ("newssft", "sft", "newssft-sft"),
        ("🎉", "evaluate", "evaluate"),
        ("../../etc/passwd", "sft", "etc-passwd-sft"),
        ("a" * 200, "sft", "a" * 40 + "-sft"),
    ],
)
def test_the_name_has_the_words_of_the_job_and_the_stage(job: str, stage: str, name: str) -> None:
    assert make_full_name(job, stage) == name


@given(st.text(min_size=1, max_size=200), st.from_regex(r"\A[a-z0-9][a-z0-9_-]{0,62}\Z"))
def test_every_name_is_one_short_part_of_a_path(job: str, stage: str) -> None:
    name = make_full_name(job, stage)
    assert name.strip("-.") and "/" not in name and "\0" not in name
    assert len(f"{name}-12345678".encode()) <= 255
