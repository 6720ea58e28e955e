"""The classes of the metrics of translations. sacreBLEU is imported when a metric scores."""

from collections.abc import Sequence
from typing import Final, Generic, TypeVar

from trainers.configs.metrics.translation import Bleu, Chrf, ChrfPlusPlus, Ter, TranslationMetric
from trainers.metrics.metric import EvaluatedRow, MetricValues
from trainers.metrics.translation.languages import choose_tokenizer, detect_language, require_tokenizer
from trainers.metrics.translation.texts import check_texts, read_texts

C = TypeVar("C", bound=TranslationMetric)

# TER aligns response and reference in a time that grows with the square of their lengths.
MAX_TER_WORDS: Final = 500


class TextMetric(Generic[C]):
    """A metric of source, response and reference."""

    def __init__(self, config: C) -> None:
        self._config = config

    def check_row(self, row: EvaluatedRow) -> str | None:
        """Return that the reference or the source is missing, if so."""
        return check_texts(row, self._config)


class BleuMetric(TextMetric[Bleu]):
    """Corpus BLEU."""

    def check_host(self, rows: Sequence[EvaluatedRow]) -> None:
        """Raise TokenizerUnavailable if the packages of the tokenizer are missing."""
        language = detect_language(row.reference for row in rows)
        require_tokenizer(choose_tokenizer(self._config.tokenizer, language))

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Score the first response of each row."""
        from trainers.metrics.translation.sacrebleu_metrics import score_bleu

        texts = read_texts(rows, self._config)
        return score_bleu(self._config, texts, detect_language(text.reference for text in texts))


class ChrfMetric(TextMetric[Chrf | ChrfPlusPlus]):
    """Corpus chrF or chrF++."""

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Score the first response of each row."""
        from trainers.metrics.translation.sacrebleu_metrics import score_chrf

        return score_chrf(self._config, read_texts(rows, self._config))


class TerMetric(TextMetric[Ter]):
    """Translation edit rate."""

    def check_row(self, row: EvaluatedRow) -> str | None:
        """Return that the reference is missing or longer than a text that TER can align, if so."""
        n_words = len(row.reference.split())
        if n_words > MAX_TER_WORDS:
            return f"has a reference of {n_words} words; TER aligns up to {MAX_TER_WORDS}"
        return super().check_row(row)

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Score the first response of each row."""
        from trainers.metrics.translation.sacrebleu_metrics import score_ter

        texts = read_texts(rows, self._config)
        return score_ter(self._config, texts, detect_language(text.reference for text in texts))
