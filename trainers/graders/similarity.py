"""Similarity of two texts by libraries, each from 0 to 1.

| metric | computation |
| --- | --- |
| fuzzy_match | `rapidfuzz.fuzz.WRatio` in lower case, without punctuation, as in OpenAI's guide |
| bleu | sentence BLEU by sacreBLEU, tokenizer 13a, exponential smoothing, over the orders that the text has |
| gleu | `nltk.translate.gleu_score.sentence_gleu` of the words, orders 1 to 4 (Wu et al. 2016) |
| meteor | `nltk.translate.meteor_score` of the words, with its stages exact and stem |
| rouge_1 … rouge_5, rouge_l | F-measure by rouge-score, without stemming, with words of all scripts |

METEOR's third stage, synonyms of WordNet, is left out on every host, so that scores do not depend on a
download: NLTK fetches that data from the network.
"""

from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from trainers.configs.graders.text import SimilarityMetric
from trainers.metrics.general.overlap import UnicodeTokenizer

# Longer texts would take seconds: the libraries need time proportional to the product of both lengths.
MAX_SIMILARITY_CHARACTERS = 10_000
# METEOR and ROUGE-L compare each word with each, in Python: 1,500 words of both take half a second.
MAX_SIMILARITY_WORDS = 1500

_PACKAGES = {
    SimilarityMetric.fuzzy_match: "rapidfuzz",
    SimilarityMetric.bleu: "sacrebleu",
    SimilarityMetric.gleu: "nltk",
    SimilarityMetric.meteor: "nltk",
}


def text_similarity(metric: SimilarityMetric, text: str, reference: str) -> float:
    """Return the similarity of two texts, of which the first 10,000 characters and 1,500 words count.

    Raises ModuleNotFoundError where the metric's package is not installed. `cosine` is computed from
    embeddings: see `trainers.graders.embeddings`.
    """
    text, reference = text[:MAX_SIMILARITY_CHARACTERS], reference[:MAX_SIMILARITY_CHARACTERS]
    return min(1.0, max(0.0, _measure(metric)(text, reference)))


def similarity_package(metric: SimilarityMetric) -> str:
    """Return the package that computes a metric."""
    return _PACKAGES.get(metric, "rouge-score")


def is_installed(package: str) -> bool:
    """Return whether a package is installed in this environment."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def similarity_signature(metric: SimilarityMetric) -> str:
    """Return the metric with the package and its version, for signatures."""
    if metric is SimilarityMetric.cosine:
        return "cosine"
    package = similarity_package(metric)
    return f"{metric}|{package}-{version(package)}"


@lru_cache
def _measure(metric: SimilarityMetric) -> Callable[[str, str], float]:
    match metric:
        case SimilarityMetric.fuzzy_match:
            return _make_fuzzy_match()
        case SimilarityMetric.bleu:
            return _make_bleu()
        case SimilarityMetric.gleu:
            return _make_gleu()
        case SimilarityMetric.meteor:
            return _make_meteor()
        case _:
            return _make_rouge(metric)


def _make_fuzzy_match() -> Callable[[str, str], float]:
    from rapidfuzz import fuzz, utils

    return lambda text, reference: fuzz.WRatio(text, reference, processor=utils.default_process) / 100


def _make_bleu() -> Callable[[str, str], float]:
    from trainers.configs.rewards import TargetLanguage
    from trainers.metrics.translation.sentence_scores import sentence_bleu

    return lambda text, reference: sentence_bleu(text, reference, TargetLanguage.other)


def _make_gleu() -> Callable[[str, str], float]:
    from nltk.translate.gleu_score import sentence_gleu

    def measure(text: str, reference: str) -> float:
        words, expected = _split_words(text), _split_words(reference)
        return float(sentence_gleu([expected], words)) if words and expected else float(words == expected)

    return measure


def _make_meteor() -> Callable[[str, str], float]:
    from nltk.translate.meteor_score import single_meteor_score

    return lambda text, reference: float(
        single_meteor_score(_split_words(reference), _split_words(text), wordnet=_NoSynonyms())
    )


def _make_rouge(metric: SimilarityMetric) -> Callable[[str, str], float]:
    from rouge_score.rouge_scorer import RougeScorer

    kind = "rougeL" if metric is SimilarityMetric.rouge_l else f"rouge{metric.value[-1]}"
    scorer = RougeScorer([kind], tokenizer=UnicodeTokenizer(max_tokens=MAX_SIMILARITY_WORDS))
    return lambda text, reference: float(scorer.score(reference, text)[kind].fmeasure)


class _NoSynonyms:
    """A WordNet without entries, with which NLTK's METEOR has two stages."""

    def synsets(self, _word: str) -> list[Any]:
        return []


def _split_words(text: str) -> list[str]:
    from nltk.tokenize import wordpunct_tokenize

    words: list[str] = wordpunct_tokenize(text)
    return words[:MAX_SIMILARITY_WORDS]
