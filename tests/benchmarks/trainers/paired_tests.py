"""How often equal models are called different, intervals contain the truth, and differences are found.

4,000 simulated evaluations for each cell. Takes some minutes on one core:

OMP_NUM_THREADS=1 nice -n 15 python -m tests.benchmarks.trainers.paired_tests [--runs 4000]
"""

import argparse
from collections.abc import Callable

from tests.benchmarks.report import print_table
from tests.benchmarks.trainers.simulated_evaluations import (
    CORPUS_METRICS,
    Rate,
    simulate_clusters,
    simulate_corpus,
    simulate_early_stop,
    simulate_growth,
    simulate_looks,
    simulate_means,
    simulate_scores,
    simulate_shares,
)

ROWS = (30, 100, 240, 1000)
DISCORDANT = (0.02, 0.1, 0.2, 0.3)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=4000)
    runs = parser.parse_args().runs
    header = ["n", *(f"{q:g}" for q in DISCORDANT)]

    def table(title: str, cell: Callable[[int, float], str]) -> None:
        print_table(title, header, [[f"{n:,}", *(cell(n, q) for q in DISCORDANT)] for n in ROWS])

    def pair(rate: Rate) -> str:
        return f"{100 * rate[0]:.1f} / {100 * rate[1]:.1f}"

    table(
        "Shares: equal models called different, %, for each discordant share",
        lambda n, q: f"{100 * simulate_shares(n, q, 0, runs)[0]:.1f}",
    )
    table(
        "Shares: a model that wins 3 of 4 discordant rows: found / interval contains the truth, %",
        lambda n, q: pair(simulate_shares(n, q, q / 2, runs)),
    )
    table(
        "Means: equal models called different, %",
        lambda n, q: f"{100 * simulate_means(n, q, 0, runs)[0]:.1f}",
    )
    table(
        "Means: better by a fifth of the discordant share: found / interval contains the truth, %",
        lambda n, q: pair(simulate_means(n, q, q / 5, runs)),
    )
    for metric in CORPUS_METRICS:
        table(
            f"{metric}: equal models called different, %",
            lambda n, q, metric=metric: f"{100 * simulate_corpus(metric, n, q, 0, runs)[0]:.1f}",  # type: ignore[misc]
        )
    print_table(
        "Corpus metrics, all outputs differ: found / interval contains the truth, %",
        ["metric", "models", *(f"n = {n:,}" for n in ROWS)],
        [
            [metric, name, *(pair(simulate_corpus(metric, n, 1, shift, runs)) for n in ROWS)]
            for metric in CORPUS_METRICS
            for name, shift in (("a little better", 0.15), ("far better", 1.5))
        ],
    )
    print_table(
        "One model's score: interval contains the truth, %",
        ["score", *(f"n = {n:,}" for n in ROWS)],
        [
            [kind, *(f"{100 * simulate_scores(kind, n, runs):.1f}" for n in ROWS)]
            for kind in ("share 0.05", "share 0.5", "share 0.9", "mean", "BLEU")
        ],
    )
    print_table(
        "48 documents with 5 questions each: equal models called different, %",
        ["clusters respected", "ignored"],
        [[f"{100 * simulate_clusters(48, 5, runs, respected=value)[0]:.1f}" for value in (True, False)]],
    )
    print_table(
        "A true difference of 3 points at n = 1,319: found, %",
        ["discordant share", "found"],
        [[f"{q:g}", f"{100 * simulate_shares(1319, q, 0.03, 10 * runs)[0]:.1f}"] for q in (0.05, 0.1, 0.15)],
    )
    print_table(
        "A gate that watches an evaluation grow to 2,000 rows: models that pass, % (median row)",
        [
            "discordant share",
            "equal",
            "equal, a test every ten rows",
            "5 points better",
            "equal, margin 5 points",
        ],
        [
            [
                f"{q:g}",
                f"{100 * simulate_growth(2000, q, 0, runs)[0]:.1f}",
                f"{100 * simulate_looks(2000, q, runs // 4):.1f}",
                "{:.1f} ({:.0f})".format(*_percent(simulate_growth(2000, q, 0.05, runs // 4))),
                "{:.1f} ({:.0f})".format(*_percent(simulate_growth(2000, q, 0, runs // 4, margin=0.05))),
            ]
            for q in (0.05, 0.1, 0.3)
        ],
    )
    print_table(
        "A gate with a margin of 5 points, and a model that is worse by 5 points: it passes, %",
        ["discordant share", "looked at after every row"],
        [
            [f"{q:g}", f"{100 * simulate_growth(2000, q, -0.05, runs, margin=0.05)[0]:.1f}"]
            for q in (0.1, 0.3)
        ],
    )
    print_table(
        "An evaluation of up to 1,000 rows that stops early, looked at every 50: decisions, %, and mean rows",
        ["discordant share", "difference", "margin", "met", "worse", "out of reach", "undecided", "rows"],
        [
            _describe_early_stop(q, difference, margin, runs if difference <= -margin else runs // 4)
            for q in (0.02, 0.1, 0.3)
            for difference, margin in ((0.0, 0.0), (-0.02, 0.02), (0.02, 0.0), (0.0, 0.05))
            if abs(difference) <= q
        ],
    )


def _describe_early_stop(discordant: float, difference: float, margin: float, runs: int) -> list[str]:
    shares, rows = simulate_early_stop(1000, discordant, difference, runs, margin)
    decisions = ("met", "worse", "out_of_reach", "undecided")
    cells = [f"{100 * shares.get(name, 0.0):.1f}" for name in decisions]
    return [f"{discordant:g}", f"{difference:g}", f"{margin:g}", *cells, f"{rows:.0f}"]


def _percent(result: tuple[float, float]) -> tuple[float, float]:
    return 100 * result[0], result[1]


if __name__ == "__main__":
    main()
