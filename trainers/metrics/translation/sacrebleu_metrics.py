"""BLEU, chrF, chrF++ and TER of a corpus by sacreBLEU, with the statistics of each sentence.

The values and signatures are those of sacreBLEU's command on files with a line for each row.
"""

from collections.abc import Sequence
from typing import Any

from sacrebleu.metrics.base import Metric as Scorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from trainers.configs.metrics.translation import (
    Bleu,
    BleuTokenizer,
    Chrf,
    ChrfPlusPlus,
    Ter,
    TranslationMetric,
)
from trainers.configs.rewards import TargetLanguage
from trainers.metrics.metric import CorpusStatistics, MetricValues
from trainers.metrics.translation.languages import ASIAN, choose_tokenizer, require_tokenizer
from trainers.metrics.translation.texts import TranslationText, describe_cleaning, sign

Statistics = list[list[float]]


def score_bleu(config: Bleu, texts: Sequence[TranslationText], language: TargetLanguage) -> MetricValues:
    """Return corpus BLEU; a row's value is its sentence BLEU over the n-gram orders that it has."""
    tokenizer = choose_tokenizer(config.tokenizer, language)
    require_tokenizer(tokenizer)
    scorer = BLEU(tokenize=tokenizer.value, lowercase=config.lowercase, force=True)
    sentence = make_sentence_bleu(tokenizer, config.lowercase)
    return _score(config, scorer, sentence, _extract(scorer, texts), texts)


def score_chrf(config: Chrf | ChrfPlusPlus, texts: Sequence[TranslationText]) -> MetricValues:
    """Return corpus chrF or chrF++; a row's value is that of its sentence."""
    scorer = make_chrf(2 if isinstance(config, ChrfPlusPlus) else 0, config.lowercase)
    return _score(config, scorer, scorer, _extract(scorer, texts), texts)


def score_ter(config: Ter, texts: Sequence[TranslationText], language: TargetLanguage) -> MetricValues:
    """Return corpus TER, which is above 100 where responses are much too long; lower is better."""
    is_asian = language in ASIAN
    scorer = TER(
        normalized=is_asian if config.normalized is None else config.normalized,
        asian_support=is_asian if config.asian_support is None else config.asian_support,
        case_sensitive=config.case_sensitive,
    )
    statistics, long_rows = _extract_edits(scorer, texts)
    details = {"long_responses": long_rows} if long_rows else {}
    return _score(config, scorer, scorer, statistics, texts, details, higher_is_better=False)


def make_sentence_bleu(tokenizer: BleuTokenizer, lowercase: bool = False) -> BLEU:
    """Return a scorer of sentences: exponential smoothing, over the n-gram orders that the sentence has."""
    return BLEU(
        tokenize=tokenizer.value, lowercase=lowercase, smooth_method="exp", effective_order=True, force=True
    )


def make_chrf(word_order: int, lowercase: bool = False) -> CHRF:
    """Return a scorer of chrF; with `word_order` 2, of chrF++."""
    return CHRF(word_order=word_order, lowercase=lowercase)


def _extract(scorer: Scorer, texts: Sequence[TranslationText]) -> Statistics:
    """Return the statistics of each row, which sacreBLEU sums for the corpus and for its own paired tests."""
    responses, references = [text.response for text in texts], [text.reference for text in texts]
    found: Statistics = scorer._extract_corpus_statistics(responses, [references])
    return found


def _extract_edits(scorer: TER, texts: Sequence[TranslationText]) -> tuple[Statistics, list[int]]:
    """Return edits and reference words of each row, and the rows whose response is too long to align.

    The time of an alignment grows with the product of both lengths: 60 s for 200 words against 2,000. Of a
    response that is more than twice as long as its reference, the words beyond are counted as insertions,
    which they nearly all are.
    """
    statistics, long_rows = [], []
    references = scorer._cache_references([[text.reference for text in texts]])
    for text, reference in zip(texts, references, strict=True):
        words = scorer._preprocess_segment(text.response).split()
        (reference_words,) = reference["ref_words"]
        limit = max(2 * len(reference_words), len(reference_words) + 64)
        edits, length = scorer._compute_segment_statistics(" ".join(words[:limit]), reference)
        statistics.append([edits + max(0, len(words) - limit), length])
        if len(words) > limit:
            long_rows.append(text.row)
    return statistics, long_rows


def _score(
    config: TranslationMetric,
    scorer: Scorer,
    sentence: Scorer,
    statistics: Statistics,
    texts: Sequence[TranslationText],
    details: dict[str, Any] | None = None,
    higher_is_better: bool = True,
) -> MetricValues:
    def compute(sums: Sequence[float]) -> float:
        return float(scorer._compute_score_from_stats(list(sums)).score)

    signature = scorer.get_signature().format()
    sums = [sum(column) for column in zip(*statistics, strict=True)]
    return MetricValues(
        value=compute(sums),
        row_values=[float(sentence._compute_score_from_stats(list(row)).score) for row in statistics],
        signature=sign(signature, config),
        higher_is_better=higher_is_better,
        corpus=CorpusStatistics(statistics, compute),
        details={
            "sacrebleu": signature,
            **_describe_lengths(scorer, sums),
            **describe_cleaning(texts),
            **(details or {}),
        },
    )


def _describe_lengths(scorer: Scorer, sums: Sequence[float]) -> dict[str, Any]:
    """Return what BLEU is the product of, and its lengths in tokens."""
    if not isinstance(scorer, BLEU):
        return {}
    score = scorer._compute_score_from_stats(list(sums))
    return {
        "precisions": score.precisions,
        "brevity_penalty": score.bp,
        "response_tokens": score.sys_len,
        "reference_tokens": score.ref_len,
    }
