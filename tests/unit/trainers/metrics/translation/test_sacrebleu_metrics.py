"""Corpus scores equal those of sacreBLEU's own command to the last digit, with the statistics of each row."""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from sacrebleu.metrics.bleu import BLEU

from tests.shared_data import SharedData
from trainers.configs.metrics import AnyMetric, MetricConfig
from trainers.configs.metrics.translation import BleuTokenizer
from trainers.configs.rewards import TargetLanguage
from trainers.metrics.metric import EvaluatedRow, MetricValues
from trainers.metrics.table import make_metric
from trainers.metrics.translation import languages
from trainers.metrics.translation.languages import TokenizerUnavailable, choose_tokenizer, detect_language

WIDTH = 12


def config(kind: str, **options: Any) -> MetricConfig:
    parsed: MetricConfig = TypeAdapter(AnyMetric).validate_python({"metric": kind, **options})
    return parsed


def make_rows(sources: Sequence[str], responses: Sequence[str | None], references: Sequence[str]) -> Any:
    return [
        EvaluatedRow(row, [{"role": "user", "content": source}], reference, (response,))
        for row, (source, response, reference) in enumerate(
            zip(sources, responses, references, strict=True), start=1
        )
    ]


def score(kind: str, rows: list[EvaluatedRow], **options: Any) -> MetricValues:
    return make_metric(config(kind, **options)).score(rows)


def damage(sentence: str, dice: random.Random) -> str:
    """Return a sentence as a model might translate it: words left out, repeated or in another order."""
    words = [word for word in sentence.split() if dice.random() > 0.15]
    if dice.random() < 0.3:
        words.insert(dice.randint(0, len(words)), dice.choice(sentence.split()))
    if len(words) > 4 and dice.random() < 0.3:
        words[1], words[3] = words[3], words[1]
    return " ".join(words)


@pytest.fixture
def news(shared_data: SharedData) -> dict[str, list[str]]:
    return {
        name: (shared_data.news / f"test.{name}").read_text("utf-8").splitlines()[:60]
        for name in ("ko", "en")
    }


@pytest.mark.parametrize(
    ("target", "arguments"),
    [("ko", ["-tok", "ko-mecab", "--ter-normalized", "--ter-asian-support"]), ("en", [])],
)
def test_scores_and_signatures_are_those_of_the_command(
    target: str, arguments: list[str], news: dict[str, list[str]], tmp_path: Path
) -> None:
    dice = random.Random(5)
    references = news[target]
    responses = [damage(sentence, dice) for sentence in references]
    (tmp_path / "reference").write_text("\n".join(references) + "\n")
    (tmp_path / "response").write_text("\n".join(responses) + "\n")
    rows = make_rows([""] * len(references), responses, references)
    for word_order, kinds in ((0, ("bleu", "chrf", "ter")), (2, ("chrf_plus_plus",))):
        names = ["bleu", "chrf", "ter"] if word_order == 0 else ["chrf"]
        command = [sys.executable, "-m", "sacrebleu", "reference", "-i", "response", "-m", *names]
        command += ["--chrf-word-order", str(word_order), "-f", "json", "-w", str(WIDTH), *arguments]
        printed = json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout)
        for kind, theirs in zip(kinds, printed if isinstance(printed, list) else [printed], strict=True):
            ours = score(kind, rows, clean=False)
            assert f"{ours.value:.{WIDTH}f}" == f"{theirs['score']:.{WIDTH}f}"
            assert ours.signature == theirs["signature"]


@pytest.mark.parametrize("kind", ["bleu", "chrf", "chrf_plus_plus", "ter", "length_ratio"])
def test_sums_of_the_statistics_give_the_corpus_value(kind: str, news: dict[str, list[str]]) -> None:
    dice = random.Random(6)
    references = news["ko"]
    responses = [damage(sentence, dice) for sentence in references]
    values = score(kind, make_rows(news["en"], responses, references))
    assert values.corpus is not None and len(values.corpus.rows) == len(values.row_values) == len(references)

    def resample(chosen: Sequence[int]) -> float:
        assert values.corpus is not None
        return values.corpus.compute(
            [sum(column) for column in zip(*(values.corpus.rows[i] for i in chosen), strict=True)]
        )

    assert resample(range(len(references))) == values.value
    # A sample with repetition is worth what the metric gives for its texts.
    chosen = [dice.randrange(len(references)) for _ in references]
    texts = [[texts[i] for i in chosen] for texts in (news["en"], responses, references)]
    tokenizer = {"tokenizer": "ko-mecab"} if kind == "bleu" else {}
    assert resample(chosen) == score(kind, make_rows(*texts), **tokenizer).value


def test_value_of_a_row_is_its_sentence_score(news: dict[str, list[str]]) -> None:
    dice = random.Random(7)
    responses = [damage(sentence, dice) for sentence in news["en"]]
    values = score("bleu", make_rows(news["ko"], responses, news["en"]))
    sentence = BLEU(effective_order=True)
    assert values.row_values == [
        sentence.sentence_score(response, [reference]).score
        for response, reference in zip(responses, news["en"], strict=True)
    ]


def test_cleaning_is_part_of_the_signature_and_counted() -> None:
    rows = make_rows(
        ["안녕하세요.", "잘 가."], ["Translation: Hello there.", "Bye."], ["Hello there.", "Bye."]
    )
    cleaned, raw = score("chrf", rows), score("chrf", rows, clean=False)
    assert raw.value < 99 < cleaned.value
    assert cleaned.details["cleaned"] == {"label": {"count": 1, "rows": [1]}}
    assert cleaned.signature == f"{raw.signature}|cleaning:1" == f"{cleaned.details['sacrebleu']}|cleaning:1"


@pytest.mark.parametrize(
    ("text", "language", "tokenizer"),
    [
        ("그는 서울에서 BBC 기자로 일했다.", TargetLanguage.ko, BleuTokenizer.ko_mecab),
        ("He worked in Seoul.", TargetLanguage.en, BleuTokenizer.v13a),
        ("他在首尔工作。", TargetLanguage.zh, BleuTokenizer.zh),
        ("彼はソウルで働いていました。", TargetLanguage.ja, BleuTokenizer.char),
        ("Он работал в Сеуле.", TargetLanguage.other, BleuTokenizer.v13a),
        ("2008. 5. 18.", TargetLanguage.other, BleuTokenizer.v13a),
    ],
)
def test_tokenizer_fits_the_language_of_the_references(
    text: str, language: TargetLanguage, tokenizer: BleuTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert detect_language([text]) is language
    monkeypatch.setitem(languages._PACKAGES, BleuTokenizer.ja_mecab, (("missing_package",), "ja"))
    assert choose_tokenizer(BleuTokenizer.auto, language) is tokenizer
    assert choose_tokenizer(BleuTokenizer.char, language) is BleuTokenizer.char


def test_missing_tokenizer_is_reported_before_anything_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(languages._PACKAGES, BleuTokenizer.ko_mecab, (("missing_package",), "ko"))
    rows = make_rows(["Hello."], [None], ["안녕하세요."])
    metric: Any = make_metric(config("bleu"))
    with pytest.raises(TokenizerUnavailable, match="ko-mecab needs the packages missing_package") as raised:
        metric.check_host(rows)
    assert raised.value.hint is not None and "sacrebleu[ko]" in raised.value.hint
    make_metric(config("bleu", tokenizer="char")).score(rows)


@pytest.mark.parametrize("kind", ["bleu", "chrf", "chrf_plus_plus", "ter"])
@pytest.mark.parametrize("response", [None, "", " \n", "\x00", "\ud800", "a\u2028b\r\nc", "매트 " * 50_000])
def test_any_response_has_a_score(kind: str, response: str | None) -> None:
    values = score(kind, make_rows(["The cat sat."], [response], ["고양이가 매트 위에 앉았다."]))
    assert values.value >= 0 and len(values.row_values) == 1
    if not (response or "").strip():
        assert values.value == (100 if kind == "ter" else 0)


def test_words_far_beyond_the_reference_are_insertions() -> None:
    dice = random.Random(1)
    reference = [
        "the",
        "cat",
        "sat",
        "on",
        "the",
        "mat",
        "and",
        "the",
        "dog",
        "ran",
        "to",
        "the",
        "park",
        "with",
        "a",
        "ball",
    ]
    response = [dice.choice(reference) for _ in range(3000)]
    values = score("ter", make_rows([""], [" ".join(response)], [" ".join(reference)]))
    assert values.value == pytest.approx(100 * (3000 - len(reference)) / len(reference), rel=0.01)
    assert values.details["long_responses"] == [1]


def test_reference_too_long_for_ter_is_refused() -> None:
    (row,) = make_rows(["x"], [None], ["word " * 501])
    reason = make_metric(config("ter")).check_row(row)
    assert reason == "has a reference of 501 words; TER aligns up to 500"
    assert make_metric(config("bleu")).check_row(row) is None


def test_row_without_reference_or_named_source_is_refused() -> None:
    (empty,) = make_rows(["x"], [None], [" "])
    assert make_metric(config("chrf")).check_row(empty) == "has no reference translation"
    (row,) = make_rows(["x"], [None], ["y"])
    reason = make_metric(config("chrf", source_field="korean")).check_row(row)
    assert reason is not None and "'korean'" in reason
