"""The maths case as one job: SFT, DPO on on-policy pairs, and GRPO, each followed by an evaluation.

The order is not a ranking. SFT stops early on purpose: trained for longer, SFT alone scores higher on these
problems than all three stages together do here.

    python -m app.demos.maths_chain --seed 0 --seed 1 --seed 2 --tuning full
"""

import json
import math
import sys
from statistics import mean, stdev
from typing import Annotated, Any, Literal

import httpx2
import typer
from rich.console import Console
from rich.table import Table

from app.demos import examples
from app.demos.quickstart import check_response, follow_run, run_service
from app.models.starter import STARTER
from app.settings import Settings, get_settings
from trainers.data.recipes import arithmetic

STAGES = ("sft", "dpo", "grpo")
METRIC = "maths_exact_match"
# The settings were chosen on other problems: with other number combinations held out, and other starters.
HELD_OUT_SEED = 7
HELD_OUT_ROWS = 240
# Factors by tuning method, applied to the learning rates of full tuning.
LEARNING_RATE_FACTORS = {"full": 1, "lora": 4}
# Minimum gain of each stage in the mean over the seeds for exit status 0, well below the measured gains.
MIN_GAINS = {"sft": 0.10, "dpo": 0.02, "grpo": 0.10}

# Whether the answer to each held-out problem is correct, by stage; `base` is the model before SFT.
Correctness = dict[str, list[bool]]

console = Console(highlight=False)
cli = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@cli.command()
def main(
    *,
    seed: Annotated[list[int], typer.Option(help="Seed of a chain; can be repeated.")] = [0, 1, 2],  # noqa: B006
    tuning: Annotated[Literal["full", "lora"], typer.Option(help="Tuning method of all stages.")] = "full",
) -> None:
    """Run the chain once per seed; exit with status 0 if every stage raises the mean score enough."""
    settings = get_settings()
    examples.ensure_starter_model(settings)
    with run_service(settings) as base_url, httpx2.Client(base_url=base_url, timeout=60) as client:
        chains = [_run_chain(client, settings, one, tuning) for one in seed]
    _print_scores(seed, tuning, chains)
    _print_gains(chains)
    sys.exit(any(_gain(chains, stage)[0] < minimum for stage, minimum in MIN_GAINS.items()))


def build_job(seed: int, tuning: str) -> dict[str, Any]:
    """Build the job: three training stages with an evaluation each, and the preparation of the DPO pairs."""
    factor = LEARNING_RATE_FACTORS[tuning]
    shared = {"tuning": {"method": tuning}, "warmup_ratio": 0, "save_every_steps": 1000, "seed": seed}
    sft = {"max_steps": 12, "batch_size": 32, "micro_batch_size": 32, "learning_rate": 4e-4 * factor}
    dpo = {"max_steps": 30, "batch_size": 32, "micro_batch_size": 32, "learning_rate": 2e-4 * factor}
    grpo = {"max_steps": 250, "batch_size": 128, "micro_batch_size": 64, "learning_rate": 4e-4 * factor}
    pairs = {"kind": "on_policy_pairs", "num_generations": 8, "pairs_per_prompt": 2, "max_new_tokens": 24}
    return {
        "name": f"maths chain, {tuning}, seed {seed}",
        "labels": {"chain": tuning, "seed": str(seed)},
        "stages": [
            {"stage": "sft", "base": STARTER, "dataset": f"chain-sft-{seed}", **shared, **sft},
            _evaluate_stage("sft", baseline=STARTER),
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
            _evaluate_stage("dpo"),
            {
                "stage": "grpo",
                "base": {"stage": "dpo"},
                "dataset": f"chain-grpo-{seed}",
                "rewards": [{"kind": "correctness"}],
                "max_completion_length": 24,
                **shared,
                **grpo,
            },
            _evaluate_stage("grpo"),
        ],
    }


def write_datasets(settings: Settings, seed: int) -> dict[str, Any]:
    """Write the word problems of each training stage, which share none, and the held-out ones."""
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


def _run_chain(client: httpx2.Client, settings: Settings, seed: int, tuning: str) -> Correctness:
    console.print(f"[bold]Seed {seed}, {tuning} tuning[/]")
    for name, path in write_datasets(settings, seed).items():
        with path.open("rb") as file:
            check_response(
                client.post("/api/v1/datasets", data={"name": name}, files={"file": (path.name, file)})
            )
    job = check_response(client.post("/api/v1/jobs", json=build_job(seed, tuning)))
    for run in job["runs"]:
        follow_run(client, run)
    return _load_correctness(client, check_response(client.get(f"/api/v1/jobs/{job['id']}"))["runs"])


def _load_correctness(client: httpx2.Client, runs: list[dict[str, Any]]) -> Correctness:
    """Read the rows of each evaluation; the first one evaluated the base too."""
    correctness: Correctness = {}
    for stage in STAGES:
        [run] = [run for run in runs if run["name"] == f"after-{stage}"]
        lines = client.get(f"/api/v1/runs/{run['id']}/files/rows.jsonl").raise_for_status().text.splitlines()
        rows = [json.loads(line) for line in lines]
        if stage == STAGES[0]:
            correctness["base"] = _list_correct(rows, "baseline")
        correctness[stage] = _list_correct(rows, "model")
    return correctness


def _list_correct(rows: list[dict[str, Any]], role: str) -> list[bool]:
    return [row["models"][role]["values"][METRIC] == 1 for row in rows]


def _evaluate_stage(stage: str, **more: Any) -> dict[str, Any]:
    return {
        "stage": "evaluate",
        "name": f"after-{stage}",
        "model": {"stage": stage},
        "dataset": "chain-test",
        "metrics": [METRIC],
        "max_new_tokens": 32,
        "concurrency": 120,
        "options": {"max_batch_size": 120},
        **more,
    }


def _gain(chains: list[Correctness], stage: str) -> tuple[float, float]:
    """Return the gain of a stage in the mean over the seeds, and its standard error over the problems.

    All models answer the same problems, so the standard error is that of the differences by problem.
    """
    names = ["base", *STAGES]
    before = names[names.index(stage) - 1]
    differences = [
        mean(chain[stage][problem] - chain[before][problem] for chain in chains)
        for problem in range(HELD_OUT_ROWS)
    ]
    return mean(differences), stdev(differences) / math.sqrt(HELD_OUT_ROWS)


def _print_scores(seeds: list[int], tuning: str, chains: list[Correctness]) -> None:
    title = f"Share of {HELD_OUT_ROWS} held-out problems answered correctly, {tuning} tuning"
    table = Table("seed", "base", *STAGES, title=title)
    for seed, chain in zip(seeds, chains, strict=True):
        table.add_row(str(seed), *(f"{mean(correct):.1%}" for correct in chain.values()))
    table.add_row(
        "mean", *(f"{mean(mean(chain[name]) for chain in chains):.1%}" for name in ("base", *STAGES))
    )
    console.print(table)
    console.print("The standard error of each score is about 3 points.")


def _print_gains(chains: list[Correctness]) -> None:
    table = Table("stage", "gain in points", "standard error", "minimum", title="Gain of each stage")
    for stage, minimum in MIN_GAINS.items():
        gain, error = _gain(chains, stage)
        table.add_row(stage, f"{100 * gain:+.1f}", f"{100 * error:.1f}", f"{100 * minimum:+.0f}")
    console.print(table)
    console.print(str(__doc__).split("\n\n")[1])


if __name__ == "__main__":
    cli(prog_name="python -m app.demos.maths_chain")
