"""Overlap of response and reference: F1 of tokens as in SQuAD, and ROUGE-L."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version

from trainers.configs.metrics.general import RougeL, TextUnit, TokenF1
from trainers.metrics.metric import EvaluatedRow, MetricValues, missing_reference

# ROUGE-L compares each token with each: 4,096 tokens of both take a second.
MAX_ROUGE_TOKENS = 4096
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ASCII_PUNCTUATION = frozenset(string.punctuation)
# Letters and digits of any script: the default tokenizer of rouge-score drops all but a-z and 0-9.
_WORD = re.compile(r"[^\W_]+")


class TokenF1Metric:
    """Mean F1 of the tokens, with the normalization of SQuAD's script extended to all scripts.

    Text becomes lower case, and loses punctuation and the words a, an and the (Rajpurkar et al. 2016,
    `evaluate-v1.1.py`). Beyond that script, text is composed first (NFC, as Hangul may arrive in parts), and
    punctuation of any script is removed.
    """

    def __init__(self, config: TokenF1) -> None:
        self._unit = config.unit

    def check_row(self, row: EvaluatedRow) -> str | None:
        """Return that the reference is empty, if it is."""
        return missing_reference(row)

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Compare the first response of each row."""
        values = [self._score_pair(row.response, row.reference) for row in rows]
        signature = f"f1|norm:squad+unicode|unit:{self._unit}"
        return MetricValues(sum(values) / len(values), values, signature)

    def _score_pair(self, response: str, reference: str) -> float:
        found, expected = self._split(response), self._split(reference)
        # As in SQuAD 2: without tokens on a side, only two empty sides are equal.
        if not found or not expected:
            return float(found == expected)
        common = sum((Counter(found) & Counter(expected)).values())
        return 2 * common / (len(found) + len(expected))

    def _split(self, text: str) -> list[str]:
        text = unicodedata.normalize("NFC", text).lower()
        text = _ARTICLES.sub(" ", "".join(char for char in text if not _is_punctuation(char)))
        return text.split() if self._unit is TextUnit.words else list("".join(text.split()))


class RougeLMetric:
    """Mean ROUGE-L F-measure by rouge-score, with a tokenizer that keeps the words of all scripts."""

    def __init__(self, config: RougeL) -> None:
        self._config = config

    def check_row(self, row: EvaluatedRow) -> str | None:
        """Return that the reference is empty, if it is."""
        return missing_reference(row)

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Compare the first response of each row."""
        from rouge_score.rouge_scorer import RougeScorer

        tokenizer = UnicodeTokenizer(self._config.unit, self._config.stemmer)
        scorer = RougeScorer(["rougeL"], tokenizer=tokenizer)
        values = [float(scorer.score(row.reference, row.response)["rougeL"].fmeasure) for row in rows]
        signature = "|".join(
            [
                "rouge_l",
                f"tok:unicode-{self._config.unit}",
                f"stem:{'porter' if self._config.stemmer else 'no'}",
                f"version:rouge-score-{version('rouge-score')}",
            ]
        )
        details = {"truncated_texts": tokenizer.n_truncated} if tokenizer.n_truncated else {}
        return MetricValues(sum(values) / len(values), values, signature, details=details)


class UnicodeTokenizer:
    """The tokenizer of rouge-score for all scripts; for ASCII text the tokens are the same."""

    def __init__(
        self, unit: TextUnit = TextUnit.words, stemmer: bool = False, max_tokens: int = MAX_ROUGE_TOKENS
    ) -> None:
        self._unit = unit
        self._stem = _make_stemmer() if stemmer else None
        self._max_tokens = max_tokens
        self.n_truncated = 0

    def tokenize(self, text: str) -> list[str]:
        """Return the first words or characters."""
        words = _WORD.findall(unicodedata.normalize("NFC", text).lower())
        if self._stem is not None:
            # As in rouge-score, which keeps words of up to three characters.
            words = [self._stem(word) if len(word) > 3 else word for word in words]
        tokens = words if self._unit is TextUnit.words else list("".join(words))
        self.n_truncated += len(tokens) > self._max_tokens
        return tokens[: self._max_tokens]


def _make_stemmer() -> Callable[[str], str]:
    from nltk.stem.porter import PorterStemmer

    stem: Callable[[str], str] = PorterStemmer().stem
    return stem


def _is_punctuation(char: str) -> bool:
    return char in _ASCII_PUNCTUATION or unicodedata.category(char).startswith("P")
