"""The maths chain as one job: SFT, then DPO on the model's own answers, then GRPO, judged after each.

The order is no ranking. SFT stops early on purpose: trained for longer, it alone goes further on these
problems than all three together do here.

    python -m app.demos.maths_chain --seeds 0 1 2 --tuning full
"""

import argparse
import json
import math
import sys
from statistics import mean, stdev
from typing import Any

import httpx2
from rich.console import Console
from rich.table import Table

from app.demos import examples
from app.demos.quickstart import check_response, follow_run, run_service
from app.settings import Settings, get_settings
from trainers.data.recipes import arithmetic

STAGES = ("sft", "dpo", "grpo")
# The settings were chosen in other worlds: with other number combinations held out, and starters to match.
HELD_OUT_SEED = 7
HELD_OUT_ROWS = 240
# By kind of tuning: what the learning rates of full tuning are multiplied by.
RATE_FACTORS = {"full": 1, "lora": 4}
# What a stage must add to the mean over the seeds for the exit status 0: well below what was seen.
LEAST_GAINS = {"sft": 0.10, "dpo": 0.02, "grpo": 0.10}

# Whether each held-out problem was answered exactly, by stage, `base` for the model before all.
Answers = dict[str, list[bool]]

console = Console(highlight=False)


def main() -> int:
    """Run the chain once per seed; the exit status is 0 if every stage raises the mean score as claimed."""
    arguments = _arguments()
    settings = get_settings()
    examples.ensure_starter_model(settings)
    with run_service(settings) as base_url, httpx2.Client(base_url=base_url, timeout=60) as client:
        chains = [_run(client, settings, seed, arguments.tuning) for seed in arguments.seeds]
    _print_scores(arguments, chains)
    _print_gains(chains)
    return 0 if all(_gain(chains, stage)[0] >= least for stage, least in LEAST_GAINS.items()) else 1


def build_job(seed: int, tuning: str) -> dict[str, Any]:
    """The job: three trainings, each followed by its evaluation, and between SFT and DPO the pairs."""
    factor = RATE_FACTORS[tuning]
    shared = {"tuning": {"method": tuning}, "warmup_ratio": 0, "save_every_steps": 1000, "seed": seed}
    sft = {"max_steps": 12, "batch_size": 32, "micro_batch_size": 32, "learning_rate": 4e-4 * factor}
    dpo = {"max_steps": 30, "batch_size": 32, "micro_batch_size": 32, "learning_rate": 2e-4 * factor}
    grpo = {"max_steps": 250, "batch_size": 128, "micro_batch_size": 64, "learning_rate": 4e-4 * factor}
    pairs = {"kind": "on_policy_pairs", "num_generations": 8, "pairs_per_prompt": 2, "max_new_tokens": 24}
    return {
        "name": f"maths chain, {tuning}, seed {seed}",
        "labels": {"chain": tuning, "seed": str(seed)},
        "stages": [
            {"stage": "sft", "base": examples.STARTER, "dataset": f"chain-sft-{seed}", **shared, **sft},
            _evaluate("sft", baseline=examples.STARTER),
            {
                "stage": "prepare",
                "name": "pairs",
                "base": {"stage": "sft"},
                "dataset": f"chain-dpo-{seed}",
                "recipe": pairs | {"seed": seed},
            },
            {
                "stage": "dpo",
                "base": {"stage": "sft"},
                "dataset": {"stage": "pairs"},
                "losses": {"sigmoid": 1, "sft": 4},
                **shared,
                **dpo,
            },
            _evaluate("dpo"),
            {
                "stage": "grpo",
                "base": {"stage": "dpo"},
                "dataset": f"chain-grpo-{seed}",
                "rewards": [{"kind": "correctness"}],
                "max_completion_length": 24,
                **shared,
                **grpo,
            },
            _evaluate("grpo"),
        ],
    }


def write_datasets(settings: Settings, seed: int) -> dict[str, Any]:
    """Word problems for each stage, none of which a later one sees again."""
    sizes = {"sft": 200, "dpo": 300, "grpo": 5000}
    rows = {
        f"chain-{stage}-{seed}": arithmetic.generate_problems(
            size, arithmetic.ProblemSplit.train, seed=100 * place + seed
        )
        for place, (stage, size) in enumerate(sizes.items(), start=1)
    }
    rows["chain-test"] = arithmetic.generate_problems(
        HELD_OUT_ROWS, arithmetic.ProblemSplit.held_out, seed=HELD_OUT_SEED
    )
    return {name: examples.write_rows(settings.data_dir / "examples", name, rows[name]) for name in rows}


def _run(client: httpx2.Client, settings: Settings, seed: int, tuning: str) -> Answers:
    console.print(f"[bold]Seed {seed}, {tuning} tuning[/]")
    for name, path in write_datasets(settings, seed).items():
        with path.open("rb") as file:
            check_response(
                client.post("/api/v1/datasets", data={"name": name}, files={"file": (path.name, file)})
            )
    job = check_response(client.post("/api/v1/jobs", json=build_job(seed, tuning)))
    for run in job["runs"]:
        follow_run(client, run)
    return _answers(client, check_response(client.get(f"/api/v1/jobs/{job['id']}"))["runs"])


def _answers(client: httpx2.Client, runs: list[dict[str, Any]]) -> Answers:
    """From the rows that each evaluation left; the first one judged the base too."""
    answers: Answers = {}
    for stage in STAGES:
        [run] = [run for run in runs if run["name"] == f"after-{stage}"]
        lines = client.get(f"/api/v1/runs/{run['id']}/files/rows.jsonl").raise_for_status().text.splitlines()
        rows = [json.loads(line) for line in lines]
        if stage == STAGES[0]:
            answers["base"] = [row["baseline"]["correct"] for row in rows]
        answers[stage] = [row["model"]["correct"] for row in rows]
    return answers


def _evaluate(stage: str, **more: Any) -> dict[str, Any]:
    return {
        "stage": "evaluate",
        "name": f"after-{stage}",
        "model": {"stage": stage},
        "dataset": "chain-test",
        "max_new_tokens": 32,
        "batch_size": 120,
        **more,
    }


def _gain(chains: list[Answers], stage: str) -> tuple[float, float]:
    """What a stage added to the mean over the seeds, and its standard error over the problems.

    All models answer the same problems, so the error is that of the differences problem by problem.
    """
    names = ["base", *STAGES]
    before = names[names.index(stage) - 1]
    differences = [
        mean(chain[stage][problem] - chain[before][problem] for chain in chains)
        for problem in range(HELD_OUT_ROWS)
    ]
    return mean(differences), stdev(differences) / math.sqrt(HELD_OUT_ROWS)


def _print_scores(arguments: argparse.Namespace, chains: list[Answers]) -> None:
    title = f"Share of {HELD_OUT_ROWS} held-out problems answered exactly, {arguments.tuning} tuning"
    table = Table("seed", "base", *STAGES, title=title)
    for seed, chain in zip(arguments.seeds, chains, strict=True):
        table.add_row(str(seed), *(f"{mean(answers):.1%}" for answers in chain.values()))
    table.add_row(
        "mean", *(f"{mean(mean(chain[name]) for chain in chains):.1%}" for name in ("base", *STAGES))
    )
    console.print(table)
    console.print("The standard error of one figure is about 3 points.")


def _print_gains(chains: list[Answers]) -> None:
    table = Table("stage", "gain in points", "standard error", "asked for", title="Gain of each stage")
    for stage, least in LEAST_GAINS.items():
        gain, error = _gain(chains, stage)
        table.add_row(stage, f"{100 * gain:+.1f}", f"{100 * error:.1f}", f"{100 * least:+.0f}")
    console.print(table)
    console.print(str(__doc__).split("\n\n")[1])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m app.demos.maths_chain", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one chain for each")
    parser.add_argument("--tuning", choices=RATE_FACTORS, default="full", help="what is trained")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
