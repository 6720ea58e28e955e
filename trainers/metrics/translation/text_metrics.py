"""Metrics of translations without a library: length, language, and the numbers of the source."""

from collections.abc import Sequence

from trainers.configs.metrics.translation import LengthRatio, NumbersKept, WrongLanguage
from trainers.metrics.metric import CorpusStatistics, EvaluatedRow, MetricValues
from trainers.metrics.translation.languages import detect_language, is_in_language
from trainers.metrics.translation.metrics import TextMetric
from trainers.metrics.translation.number_values import find_numbers, share_kept
from trainers.metrics.translation.texts import describe_cleaning, read_texts, sign

MAX_NAMED_ROWS = 100


class LengthRatioMetric(TextMetric[LengthRatio]):
    """How equal the lengths of responses and references are, in characters."""

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Compare the sums over all rows; a row's value compares its own texts."""
        texts = read_texts(rows, self._config)
        statistics = [[float(len(text.response)), float(len(text.reference))] for text in texts]
        responses, references = (sum(column) for column in zip(*statistics, strict=True))
        return MetricValues(
            value=_agreement([responses, references]),
            row_values=[_agreement(row) for row in statistics],
            signature=sign("length_ratio|unit:characters", self._config),
            corpus=CorpusStatistics(statistics, _agreement),
            details={"ratio": responses / references, **describe_cleaning(texts)},
        )


class WrongLanguageMetric(TextMetric[WrongLanguage]):
    """Share of the responses in another script than that of the language."""

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Judge each response; a row whose reference has no letters, such as a date, does not count.

        A response without letters, or an empty one, is in no language, so it is wrong where the reference has
        letters.
        """
        texts = read_texts(rows, self._config)
        language = self._config.language or detect_language(text.reference for text in texts)
        values = [
            None
            if is_in_language(text.reference, language) is None
            else float(not is_in_language(text.response, language))
            for text in texts
        ]
        wrong = [text.row for text, value in zip(texts, values, strict=True) if value]
        return MetricValues(
            value=_mean(values),
            row_values=values,
            signature=sign(f"wrong_language|language:{language}", self._config),
            higher_is_better=False,
            is_share=True,
            details={"language": language, "rows": wrong[:MAX_NAMED_ROWS], **describe_cleaning(texts)},
        )


class NumbersKeptMetric(TextMetric[NumbersKept]):
    """Share of the source's numbers that the response contains."""

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Compare the numbers of each row; one whose source has none does not count.

        The same share of the references is in the details: what a human translation reaches.
        """
        texts = read_texts(rows, self._config)
        sources = [find_numbers(text.source) for text in texts]
        values = [share_kept(source, text.response) for source, text in zip(sources, texts, strict=True)]
        references = [share_kept(source, text.reference) for source, text in zip(sources, texts, strict=True)]
        return MetricValues(
            value=_mean(values),
            row_values=values,
            signature=sign("numbers_kept|version:1", self._config),
            details={"references": _mean(references), **describe_cleaning(texts)},
        )


def _agreement(lengths: Sequence[float]) -> float:
    """Return the shorter length by the longer."""
    longer = max(lengths)
    return min(lengths) / longer if longer else 1.0


def _mean(values: Sequence[float | None]) -> float:
    """Return the mean of the rows that count; 0 without any, whose score has an n of 0."""
    counted = [value for value in values if value is not None]
    return sum(counted) / len(counted) if counted else 0.0
