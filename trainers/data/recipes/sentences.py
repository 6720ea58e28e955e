"""Generated Korean-English sentence pairs, easy enough for a model of 0.1 million parameters.

The sides differ in word order, particles and counters: `민수가 사과 3개를 샀다.` is `Minsu bought 3 apples.`
Combinations are split by a hash, so that no held-out sentence occurs in training.
"""

import hashlib
import random
from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Final

from trainers.data.files.aligned import TranslationPair
from trainers.data.recipes.arithmetic import ProblemSplit

NAMES: Final = (("민수", "Minsu"), ("지훈", "Jihun"), ("유나", "Yuna"), ("서준", "Seojun"), ("하나", "Hana"))
# A thing in Korean, its counter, and its plural in English.
THINGS: Final = (
    ("사과", "개", "apples"),
    ("연필", "개", "pencils"),
    ("우산", "개", "umbrellas"),
    ("모자", "개", "hats"),
    ("책", "권", "books"),
    ("시계", "개", "clocks"),
)
VERBS: Final = (("샀다", "bought"), ("팔았다", "sold"), ("보았다", "saw"), ("찾았다", "found"))
NUMBERS: Final = range(2, 13)
HELD_OUT_PERIOD: Final = 4  # One combination in four is held out.


def generate_pairs(count: int, split: ProblemSplit, seed: int) -> list[TranslationPair]:
    """Return different pairs, numbered from 1; equal arguments give equal pairs.

    Raises ValueError if `count` is more than the split has.
    """
    pairs = list(_pairs(split))
    if count > len(pairs):
        raise ValueError(f"`count` is {count}: the split {split.value} has {len(pairs)} pairs.")
    chosen = random.Random(f"{split}-{seed}").sample(pairs, count)  # noqa: S311  # Not for security.
    return [TranslationPair(line, korean, english) for line, (korean, english) in enumerate(chosen, start=1)]


@cache
def _pairs(split: ProblemSplit) -> tuple[tuple[str, str], ...]:
    return tuple(
        pair
        for pair in _all_pairs()
        if (hashlib.sha256(pair[1].encode()).digest()[0] % HELD_OUT_PERIOD == 0)
        == (split is ProblemSplit.held_out)
    )


def _all_pairs() -> Iterator[tuple[str, str]]:
    for who, what, number, verb in product(NAMES, THINGS, NUMBERS, VERBS):
        name = f"{who[0]}{'이' if _ends_in_consonant(who[0]) else '가'}"
        counted = f"{number}{what[1]}{'을' if _ends_in_consonant(what[1]) else '를'}"
        yield (
            f"{name} {what[0]} {counted} {verb[0]}.",
            f"{who[1]} {verb[1]} {number} {what[2]}.",
        )


def _ends_in_consonant(word: str) -> bool:
    """Return whether the last syllable has a final consonant: there are 28 finals, the first of them none."""
    return (ord(word[-1]) - ord("가")) % 28 != 0
