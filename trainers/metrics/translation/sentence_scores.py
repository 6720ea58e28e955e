"""Sentence chrF and BLEU by sacreBLEU as rewards: scaled to 0 to 1, and the same on every host.

Korean is split into characters: words would require the packages of the `ko-mecab` tokenizer, and subwords a
vocabulary from the network. Scores of one language are comparable with each other, not with published scores.
"""

from functools import lru_cache

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from trainers.configs.metrics.translation import BleuTokenizer
from trainers.configs.rewards import TargetLanguage
from trainers.metrics.translation.sacrebleu_metrics import make_chrf, make_sentence_bleu
from trainers.metrics.translation.texts import as_line

TOKENIZERS = {
    TargetLanguage.en: BleuTokenizer.v13a,
    TargetLanguage.ko: BleuTokenizer.char,
    TargetLanguage.ja: BleuTokenizer.char,
    TargetLanguage.zh: BleuTokenizer.zh,
    TargetLanguage.other: BleuTokenizer.v13a,
}
# Counting the n-grams of an endless completion would take seconds, and its score is near 0 in any case.
MAX_CHARACTERS = 10_000


def sentence_chrf(completion: str, reference: str, word_order: int = 0) -> float:
    """Return sentence chrF / 100; with `word_order` 2, chrF++ / 100."""
    return float(_chrf(word_order).sentence_score(_truncate(completion), [_truncate(reference)]).score) / 100


def sentence_bleu(completion: str, reference: str, language: TargetLanguage) -> float:
    """Return sentence BLEU / 100 with exponential smoothing, over the n-gram orders that the sentence has."""
    metric = _bleu(TOKENIZERS[language])
    # sacrebleu returns 100.00000000000004 for an exact match.
    return min(1.0, float(metric.sentence_score(_truncate(completion), [_truncate(reference)]).score) / 100)


@lru_cache
def _chrf(word_order: int) -> CHRF:
    return make_chrf(word_order)


@lru_cache
def _bleu(tokenizer: BleuTokenizer) -> BLEU:
    return make_sentence_bleu(tokenizer)


def _truncate(text: str) -> str:
    return as_line(text.strip()[:MAX_CHARACTERS])
