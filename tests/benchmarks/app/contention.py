"""Claims by several processes and posts over several connections, against another version in one run.

The claims are made by today's statement and by the one that it replaced. With `--other`, a checkout of
another version, its API receives the same posts; the two versions take turns. With `--processes`, so does
this version with several processes on its port.

    git worktree add /tmp/other v1.0
    python -m tests.benchmarks.app.contention --other /tmp/other
"""

import argparse
import tempfile
from pathlib import Path

import psutil

from tests.benchmarks.app.claims import Claim, ClaimResult, claim, claim_all, select_then_update
from tests.benchmarks.app.installation import durable_postgres, installation, new_database
from tests.benchmarks.app.load import LoadResult, post_many
from tests.benchmarks.report import format_milliseconds, p50, p95, print_table
from tests.e2e.platform import ROOT

CONCURRENCY = (1, 16)
PROCESSES = (1, 4)
Key = tuple[str, str, int]
CLAIMS: dict[str, Claim] = {"select, then update": select_then_update, "one statement": claim}


def main() -> None:
    """Measure both databases, then print a table for claims and one for posts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=400, help="runs to claim in each round")
    parser.add_argument("--posts", type=int, default=320, help="posts in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--other", type=Path, help="checkout of another version, to compare posts with")
    parser.add_argument("--processes", type=int, help="processes of the API of this version, in its turn")
    parser.add_argument("--databases", nargs="+", default=["SQLite", "PostgreSQL"])
    options = parser.parse_args()
    claims: dict[Key, list[ClaimResult]] = {}
    posts: dict[Key, list[LoadResult]] = {}
    cpu: dict[Key, list[float]] = {}
    versions: dict[str, tuple[Path, int]] = {"this version": (ROOT, 1)}
    if options.processes:
        versions[f"{options.processes} processes"] = (ROOT, options.processes)
    if options.other:
        versions["other version"] = (options.other, 1)
    with tempfile.TemporaryDirectory(prefix="tunesmith-benchmark-") as folder, durable_postgres() as server:
        for round_number in range(options.rounds):
            for database in options.databases:
                for version, (root, n_processes) in versions.items():
                    name = f"{database}-{version}-{round_number}".lower().replace(" ", "-")
                    url = new_database(server, name) if database == "PostgreSQL" else ""
                    with installation(Path(folder) / name, url, root=root, processes=n_processes) as platform:
                        stage = {"stage": "prepare", "dataset": "train", "split": {"test": 1}}
                        body = {"name": "benchmark", "stages": [stage]}
                        for n in CONCURRENCY:
                            api = psutil.Process(platform.processes[-1].pid)
                            before = _measure_cpu(api)
                            posted = post_many(platform.base_url, "/api/v1/jobs", body, options.posts, n)
                            posts.setdefault((database, version, n), []).append(posted)
                            cpu.setdefault((database, version, n), []).append(
                                (_measure_cpu(api) - before) / (options.posts + n)
                            )
                        if version != "this version":
                            continue
                        for n in PROCESSES:
                            for statement, claim_next in CLAIMS.items():
                                claimed = claim_all(options.runs, n, claim_next)
                                claims.setdefault((database, statement, n), []).append(claimed)
    _print(claims, posts, cpu)


def _print(
    claims: dict[Key, list[ClaimResult]], posts: dict[Key, list[LoadResult]], cpu: dict[Key, list[float]]
) -> None:
    print_table(
        "Claims of queued runs",
        ["database", "statement", "processes", "claims/s", "p50 ms", "p95 ms", "wasted updates"],
        [
            [database, statement, str(n), *_summarize(results), str(sum(r.n_wasted for r in results))]
            for (database, statement, n), results in sorted(claims.items())
        ],
    )
    print_table(
        "POST /api/v1/jobs",
        ["database", "code", "connections", "jobs/s", "p50 ms", "p95 ms", "CPU ms of the API"],
        [
            [*key[:2], str(key[2]), *_summarize(results), format_milliseconds(p50(cpu[key]))]
            for key, results in sorted(posts.items())
        ],
    )


def _measure_cpu(api: psutil.Process) -> float:
    """Return the seconds of CPU of an API and its processes."""
    return sum(sum(process.cpu_times()[:2]) for process in [api, *api.children()])


def _summarize(results: list[ClaimResult] | list[LoadResult]) -> list[str]:
    """Return the rate of all rounds together, and the percentiles of all their latencies."""
    latencies = [latency for result in results for latency in result.latencies]
    rate = len(latencies) / sum(result.seconds for result in results)
    return [f"{rate:.0f}", format_milliseconds(p50(latencies)), format_milliseconds(p95(latencies))]


if __name__ == "__main__":
    main()
