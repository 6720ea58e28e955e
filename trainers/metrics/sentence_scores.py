"""Sentence chrF and BLEU of sacrebleu as rewards from 0 to 1.

Korean is split into characters: words would need the packages of the `ko-mecab` tokenizer, and subwords a
vocabulary from the network. Rewards of one language compare with each other, not with published figures.
"""

from functools import lru_cache

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from trainers.configs.rewards import TargetLanguage

TOKENIZERS = {
    TargetLanguage.en: "13a",
    TargetLanguage.ko: "char",
    TargetLanguage.ja: "char",
    TargetLanguage.zh: "zh",
    TargetLanguage.other: "13a",
}
# Counting n-grams of a runaway completion would cost seconds; what is left scores near nothing anyway.
MAX_CHARACTERS = 10_000


def sentence_chrf(completion: str, reference: str, word_order: int = 0) -> float:
    """Sentence chrF / 100; `word_order` 2 makes it chrF++."""
    return float(_chrf(word_order).sentence_score(_cut(completion), [_cut(reference)]).score) / 100


def sentence_bleu(completion: str, reference: str, language: TargetLanguage) -> float:
    """Sentence BLEU / 100 with exponential smoothing, over no more n-gram orders than the sentence has."""
    metric = _bleu(TOKENIZERS[language])
    # An exact match comes out as 100.00000000000004.
    return min(1.0, float(metric.sentence_score(_cut(completion), [_cut(reference)]).score) / 100)


@lru_cache
def _chrf(word_order: int) -> CHRF:
    return CHRF(word_order=word_order)


@lru_cache
def _bleu(tokenizer: str) -> BLEU:
    return BLEU(tokenize=tokenizer, smooth_method="exp", effective_order=True)


def _cut(text: str) -> str:
    return text.strip()[:MAX_CHARACTERS]
