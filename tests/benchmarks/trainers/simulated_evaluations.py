"""Simulated evaluations of two models, decided by the functions that decide real ones.

A discordant share of .1 means that the models' outputs differ on a tenth of the rows.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from trainers.metrics.metric import CorpusStatistics, MetricValues
from trainers.statistics.paired_tests.mcnemar import McNemarTest
from trainers.statistics.paired_tests.paired_test import PairedTest
from trainers.statistics.paired_tests.permutation import corpus_permutation_test, mean_permutation_test
from trainers.statistics.paired_tests.sparse import allow_for_unseen
from trainers.statistics.score_interval import score_interval
from trainers.statistics.sequential import decide_growth, grow_evidence

Array: TypeAlias = npt.NDArray[np.float64]
Generator: TypeAlias = np.random.Generator
Rate = tuple[float, float]
"""How often two models are called different, and how often the interval contains the true difference."""

# The level does not depend on the number of exchanges; few of them make the simulation fast.
RESAMPLES = 199
ALPHA = 0.05


def simulate_shares(n: int, discordant: float, difference: float, runs: int, seed: int = 0) -> Rate:
    """Simulate models whose shares of right rows differ by `difference`."""
    rng = np.random.default_rng(seed)
    m = rng.binomial(n, discordant, runs)
    wins = rng.binomial(m, (1 + difference / discordant) / 2)

    @cache
    def judge(wins: int, losses: int) -> tuple[bool, bool]:
        return _judge(McNemarTest(wins, losses, n), difference)

    return _rates(judge(int(w), int(k - w)) for w, k in zip(wins, m, strict=True))


def simulate_means(n: int, discordant: float, difference: float, runs: int, seed: int = 0) -> Rate:
    """Simulate row values between 0 and 1, most of them near the ends; a better model moves some to 1."""

    def draw(rng: Generator, run: int) -> PairedTest:
        differs = rng.random(n) < discordant
        a, b = rng.beta(0.5, 0.7, (2, n))
        # Of the values of the better model, the share p becomes 1: their mean rises by p (1 - mean).
        a = np.where(rng.random(n) < difference / discordant / (1 - 0.5 / 1.2), 1.0, a)
        differences = np.where(differs, a - b, 0.0)
        test = mean_permutation_test(differences, np.arange(n), seed=run, resamples=RESAMPLES)
        return allow_for_unseen(test, differs, np.concatenate([a, b]), np.arange(n))

    return _simulate(draw, difference, runs, seed)


def simulate_clusters(clusters: int, rows: int, runs: int, *, respected: bool, seed: int = 0) -> Rate:
    """Simulate equal models on documents with several questions, whose differences are correlated."""
    cluster_of: npt.NDArray[np.int64] = np.repeat(np.arange(clusters), rows)

    def draw(rng: Generator, run: int) -> PairedTest:
        differences = rng.normal(0, 1, clusters)[cluster_of] + rng.normal(0, 1, clusters * rows)
        units = cluster_of if respected else np.arange(len(differences))
        return mean_permutation_test(differences, units, seed=run, resamples=RESAMPLES)

    return _simulate(draw, 0.0, runs, seed)


def compute_bleu(sums: Array) -> Array:
    """Return BLEU of sums in sacreBLEU's order: both lengths, matches, n-grams."""
    with np.errstate(divide="ignore"):
        precisions = np.log(np.maximum(sums[:, 2:6], 0.5) / np.maximum(sums[:, 6:10], 1)).mean(axis=1)
    return np.asarray(100 * np.exp(precisions + np.minimum(0, 1 - sums[:, 1] / np.maximum(sums[:, 0], 1))))


def compute_chrf(sums: Array) -> Array:
    """Return chrF2 of sums in sacreBLEU's order: n-grams of response, of reference, matches, by order."""
    response, reference, match = (np.maximum(sums[:, part::3], 1e-9) for part in range(3))
    precision, recall = (match / response).mean(axis=1), (match / reference).mean(axis=1)
    return np.asarray(100 * 5 * precision * recall / (4 * precision + recall))


def compute_ter(sums: Array) -> Array:
    """Return TER of sums of edits and of words of the reference."""
    return np.asarray(100 * sums[:, 0] / sums[:, 1])


def simulate_corpus(metric: str, n: int, discordant: float, shift: float, runs: int, seed: int = 0) -> Rate:
    """Simulate sentences of different lengths and difficulties; `shift` is how much better one model is."""
    compute = CORPUS_METRICS[metric]
    a, b = draw_statistics(metric, np.random.default_rng(99), 400_000, discordant, shift)
    truth = float((compute(a.sum(axis=0)[None]) - compute(b.sum(axis=0)[None]))[0]) if shift else 0.0

    def draw(rng: Generator, run: int) -> PairedTest:
        a, b = draw_statistics(metric, rng, n, discordant, shift)
        return corpus_permutation_test(a, b, compute, np.arange(n), seed=run, resamples=RESAMPLES)

    return _simulate(draw, truth, runs, seed)


def draw_statistics(
    metric: str, rng: Generator, n: int, discordant: float, shift: float
) -> tuple[Array, Array]:
    """Return the statistics of n sentences of two models, equal on those that are not discordant."""
    words = np.clip(rng.lognormal(2.7, 0.6, n), 4, 80).astype(int)
    difficulty = rng.normal(0, 0.5, n)
    second = _draw_model(metric, rng, words, difficulty)
    first = _draw_model(metric, rng, words, difficulty + shift)
    return np.where((rng.random(n) < discordant)[:, None], first, second), second


def _draw_model(metric: str, rng: Generator, words: npt.NDArray[np.int64], quality: Array) -> Array:
    """Return the statistics of one model: (sentences, statistics)."""
    word = 1 / (1 + np.exp(-0.5 - quality - rng.normal(0, 0.6, len(words))))
    length = np.maximum(4, words + rng.integers(-2, 3, len(words)))
    if metric == "TER":
        return np.column_stack([rng.binomial(words, 1 - word), words]).astype(float)
    orders = range(1, 5) if metric == "BLEU" else range(1, 7)
    scale = 1 if metric == "BLEU" else 5
    totals = [np.maximum(scale * length - k + 1, 0) for k in orders]
    # A longer n-gram matches more rarely, but not independently of the shorter one in it.
    matches = [rng.binomial(total, word ** (0.6 * k + 0.4)) for k, total in zip(orders, totals, strict=True)]
    if metric == "BLEU":
        return np.column_stack([length, words, *matches, *totals]).astype(float)
    references = [np.maximum(scale * words - k + 1, 0) for k in orders]
    triples = zip(totals, references, matches, strict=True)
    return np.column_stack([part for triple in triples for part in triple]).astype(float)


CORPUS_METRICS: dict[str, Callable[[Array], Array]] = {
    "BLEU": compute_bleu,
    "chrF": compute_chrf,
    "TER": compute_ter,
}


def simulate_scores(kind: str, n: int, runs: int, seed: int = 0) -> float:
    """Return how often the interval of one model's score contains the true score."""
    rng = np.random.default_rng(seed)
    large = _draw_score(kind, np.random.default_rng(98), 400_000)
    contained = 0
    for _ in range(runs):
        lower, upper = score_interval(_draw_score(kind, rng, n)) or (0.0, 0.0)
        contained += lower <= large.value <= upper
    return contained / runs


def _draw_score(kind: str, rng: Generator, n: int) -> MetricValues:
    if kind == "BLEU":
        words = np.clip(rng.lognormal(2.7, 0.6, n), 4, 80).astype(int)
        rows = _draw_model(kind, rng, words, rng.normal(0, 0.5, n))
        return MetricValues(
            _compute_one_bleu(rows.sum(axis=0)),
            [0.0] * n,
            kind,
            corpus=CorpusStatistics(rows, _compute_one_bleu),
        )
    if kind == "mean":
        return MetricValues(0.5 / 1.2, rng.beta(0.5, 0.7, n).tolist(), kind)
    share = float(kind.removeprefix("share "))
    return MetricValues(share, (rng.random(n) < share).astype(float).tolist(), kind, is_share=True)


def _compute_one_bleu(sums: Sequence[float]) -> float:
    """Return the same as `compute_bleu`, without numpy's overhead for one line."""
    orders = zip(sums[2:6], sums[6:10], strict=True)
    precisions = sum(math.log(max(match, 0.5) / max(total, 1)) for match, total in orders) / 4
    return 100 * math.exp(precisions + min(0.0, 1 - sums[1] / max(sums[0], 1)))


def simulate_growth(
    n: int, discordant: float, difference: float, runs: int, margin: float = 0.0, seed: int = 0
) -> tuple[float, float]:
    """Return the share of models that pass a gate which looks after every row, and the median row."""
    rng = np.random.default_rng(seed)
    win, loss = (discordant + difference) / 2, (discordant - difference) / 2
    passing: list[int] = []
    for start in range(0, runs, 500):
        differences = rng.choice([1.0, -1.0, 0.0], (min(500, runs - start), n), p=[win, loss, 1 - discordant])
        reached = grow_evidence(differences, margin=margin) >= 1 / ALPHA
        passing += (np.argmax(reached, axis=1) + 1)[reached.any(axis=1)].tolist()
    return len(passing) / runs, float(np.median(passing)) if passing else np.nan


def simulate_early_stop(
    n: int, discordant: float, difference: float, runs: int, margin: float = 0.0, seed: int = 0
) -> tuple[dict[str, float], float]:
    """Return the share of each decision of an evaluation with looks every 50 rows, and its mean rows."""
    rng = np.random.default_rng(seed)
    win, loss = (discordant + difference) / 2, (discordant - difference) / 2
    counts, n_rows = Counter[str](), 0
    for _ in range(runs):
        differences = rng.choice([1.0, -1.0, 0.0], n, p=[win, loss, 1 - discordant])
        for done in range(50, n + 1, 50):
            outcome = decide_growth(differences[:done], n - done, margin=margin).outcome
            if outcome is not None or done == n:
                counts[outcome or "undecided"] += 1
                n_rows += done
                break
    return {name: count / runs for name, count in sorted(counts.items())}, n_rows / runs


def simulate_looks(n: int, discordant: float, runs: int, seed: int = 0) -> float:
    """Return how many equal models pass if McNemar's one-sided test is repeated every ten rows."""
    rng = np.random.default_rng(seed)
    one_sided = cache(
        lambda wins, losses: wins > losses and McNemarTest(wins, losses, n).p_value() <= 2 * ALPHA
    )
    passed = 0
    for _ in range(runs):
        differences = rng.choice([1, -1, 0], n, p=[discordant / 2, discordant / 2, 1 - discordant])
        wins, losses = (np.cumsum(differences == sign)[9::10].tolist() for sign in (1, -1))
        passed += any(one_sided(w, k) for w, k in zip(wins, losses, strict=True))
    return passed / runs


def _simulate(draw: Callable[[Generator, int], PairedTest], difference: float, runs: int, seed: int) -> Rate:
    rng = np.random.default_rng(seed)
    return _rates(_judge(draw(rng, run), difference) for run in range(runs))


def _judge(test: PairedTest, difference: float) -> tuple[bool, bool]:
    interval = test.interval(ALPHA)
    return test.p_value() <= ALPHA, interval is None or interval[0] <= difference <= interval[1]


def _rates(results: Iterator[tuple[bool, bool]]) -> Rate:
    called, contained = np.array(list(results)).mean(axis=0)
    return float(called), float(contained)
