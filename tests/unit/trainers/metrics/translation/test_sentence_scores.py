"""Sentence scores equal those of sacrebleu's command, and are plausible on real sentence pairs."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainers.configs.rewards import TargetLanguage
from trainers.metrics.translation.sentence_scores import TOKENIZERS, sentence_bleu, sentence_chrf

ENGLISH = "The cat sat quietly on the old mat today."
KOREAN = "고양이가 오늘 낡은 매트 위에 조용히 앉았다."


@pytest.mark.parametrize("language", TargetLanguage)
def test_reference_itself_is_worth_one_and_nothing_is_worth_nothing(language: TargetLanguage) -> None:
    for sentence in (ENGLISH, KOREAN, "a"):
        assert sentence_bleu(sentence, sentence, language) == pytest.approx(1)
        assert (
            sentence_chrf(sentence, sentence)
            == sentence_chrf(sentence, sentence, word_order=2)
            == pytest.approx(1)
        )
    assert (
        sentence_bleu("", ENGLISH, language)
        == sentence_chrf("", ENGLISH)
        == sentence_chrf("\n", ENGLISH)
        == 0
    )


@pytest.mark.parametrize("metric", ["bleu", "chrf"])
def test_figures_are_those_of_the_sacrebleu_command(metric: str, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    reference.write_text(ENGLISH)
    hypothesis = "The cat sat on an old mat today."
    command = [sys.executable, "-m", "sacrebleu", str(reference), "-sl", "-m", metric, "-b", "-w", "6"]
    printed = subprocess.run(command, input=hypothesis, capture_output=True, text=True, check=True).stdout
    ours = (
        sentence_bleu(hypothesis, ENGLISH, TargetLanguage.en)
        if metric == "bleu"
        else sentence_chrf(hypothesis, ENGLISH)
    )
    assert 100 * ours == pytest.approx(float(printed.split()[-1]), abs=1e-4)


def test_korean_particle_costs_less_by_characters_than_by_words() -> None:
    changed = KOREAN.replace("매트 위에", "매트에")
    by_words = sentence_bleu(changed, KOREAN, TargetLanguage.other)
    assert 0.5 < sentence_bleu(changed, KOREAN, TargetLanguage.ko) < 1
    assert by_words < sentence_bleu(changed, KOREAN, TargetLanguage.ko)


def test_worse_translation_is_never_worth_more() -> None:
    dice = random.Random(3)
    words = ENGLISH.split()
    for _ in range(50):
        kept = dice.sample(range(len(words)), k=dice.randint(1, 6))
        text = " ".join(words[i] if i in kept else "dog" for i in range(len(words)))
        for value in (sentence_chrf(text, ENGLISH), sentence_bleu(text, ENGLISH, TargetLanguage.en)):
            assert 0 < value < 1


def test_runaway_completion_is_cut_before_it_is_counted() -> None:
    started = time.process_time()
    assert sentence_chrf("매트 " * 300_000, KOREAN) < 0.05
    assert sentence_bleu("mat " * 300_000, ENGLISH, TargetLanguage.en) < 0.05
    assert time.process_time() - started < 1


def test_every_language_has_a_tokenizer_that_needs_no_download() -> None:
    assert set(TOKENIZERS) == set(TargetLanguage)
    assert set(TOKENIZERS.values()) <= {"13a", "char", "zh", "intl", "none"}
