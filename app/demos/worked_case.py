"""Run a worked case at its tiny size, through the HTTP API alone.

The spec is `app/jobs/cases/<case>-tiny.json`. It reads files from the folders of TUNESMITH_DATASET_ROOTS;
those that do not exist are generated. With real rows in them, such as GSM8K's, the same job runs on these.

    python -m app.demos.worked_case translation
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx2
import typer
from openai import OpenAI
from rich.console import Console

from app.demos import examples
from app.demos.quickstart import check_response, follow_run, run_service
from app.jobs.examples import load_case
from app.settings import get_settings
from trainers.data.recipes import arithmetic, sentences
from trainers.data.recipes.arithmetic import ProblemSplit

PARTS = {"train": ProblemSplit.train, "test": ProblemSplit.held_out}
PAIR_COUNTS = {"train": 900, "test": 240}
PROBLEM_COUNTS = {"train": 5000, "test": 400}

console = Console(highlight=False)
cli = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@cli.command()
def main(case: Annotated[Literal["translation", "maths"], typer.Argument(help="The worked case.")]) -> None:
    """Run the case; exit with status 0 if all its gates are met and the model is deployed."""
    settings = get_settings()
    console.print("[bold]1. A tiny starter model and the rows[/]")
    examples.ensure_starter_model(settings)
    print_rows(write_sources(settings.dataset_roots, case))
    with run_service(settings) as base_url, httpx2.Client(base_url=base_url, timeout=60) as client:
        spec = load_case(f"{case}-tiny")
        console.print(f"[bold]3. One job: {' → '.join(stage['stage'] for stage in spec['stages'])}[/]")
        job = check_response(client.post("/api/v1/jobs", json=spec))
        for run in job["runs"]:
            if check_response(client.get(f"/api/v1/runs/{run['id']}"))["status"] != "skipped":
                follow_run(client, run)
            print_result(check_response(client.get(f"/api/v1/runs/{run['id']}")))
        ended = check_response(client.get(f"/api/v1/jobs/{job['id']}"))
        if ended["status"] == "succeeded":
            chat(base_url, ended)
    console.print(f"[bold]The job has {ended['status']}.[/]")
    sys.exit(ended["status"] != "succeeded")


def write_sources(roots: Sequence[Path], case: str) -> dict[Path, bool]:
    """Return the files that the case reads, and whether each was generated because no root contains it."""
    texts = _generate_pairs() if case == "translation" else _generate_problems()
    sources: dict[Path, bool] = {}
    for name, text in texts.items():
        existing = next((root / name for root in roots if (root / name).exists()), None)
        path = existing or roots[0] / name
        if existing is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        sources[path] = existing is None
    return sources


def _generate_pairs() -> dict[str, str]:
    texts: dict[str, str] = {}
    for part, split in PARTS.items():
        pairs = sentences.generate_pairs(PAIR_COUNTS[part], split, seed=0)
        texts[f"korean-english/{part}.ko"] = "".join(f"{pair.korean}\n" for pair in pairs)
        texts[f"korean-english/{part}.en"] = "".join(f"{pair.english}\n" for pair in pairs)
    return texts


def _generate_problems() -> dict[str, str]:
    return {
        f"gsm8k/{part}.jsonl": "".join(
            f"{json.dumps(row)}\n"
            for row in arithmetic.generate_problems(PROBLEM_COUNTS[part], split, seed=0)
        )
        for part, split in PARTS.items()
    }


def print_rows(sources: dict[Path, bool]) -> None:
    """Print where the rows are."""
    for path, is_generated in sources.items():
        note = "generated" if is_generated else "exists"
        console.print(f"   {path} ({note})", soft_wrap=True)


def print_result(run: dict[str, Any]) -> None:
    """Print the scores of an evaluation, or the decision of a gate."""
    if run["status"] == "skipped":
        console.print(f"   {run['name']:9} [dim]skipped[/]")
    elif run["stage"] == "gate":
        decision = run["result"] or run["error"]["details"]
        word = "[green]met[/]" if decision["met"] else "[red]not met[/]"
        console.print(f"   {run['name']} is {word}: {decision['message']}", soft_wrap=True)
    elif run["stage"] == "evaluate":
        _print_scores(run["result"])


def _print_scores(result: dict[str, Any]) -> None:
    differences = {each["metric"]: each for each in result["differences"] if each["other"] == "baseline"}
    tuned, base = result["models"]
    for after, before in zip(tuned["scores"], base["scores"], strict=True):
        difference = differences[after["metric"]]
        console.print(
            f"      {after['metric']:18} {_describe(before)} → {_describe(after)}  "
            f"difference {difference['difference']:+.3g} {_interval(difference)}, n = {difference['n']}, "
            f"{difference['wins']} won, {difference['losses']} lost: {difference['verdict']}",
            soft_wrap=True,
            markup=False,
        )
        console.print(f"      [dim]{after['signature']}[/]", soft_wrap=True)


def _describe(score: dict[str, Any]) -> str:
    return f"{score['value']:.3g} {_interval(score)}"


def _interval(score: dict[str, Any]) -> str:
    low_high = score["interval_95"]
    return "" if low_high is None else f"[{low_high[0]:.3g}, {low_high[1]:.3g}]"


def chat(base_url: str, job: dict[str, Any]) -> None:
    """Print a completion of the deployed model for the first held-out row."""
    deploy = job["runs"][-1]["config"]["deployment"]
    console.print("[bold]4. The deployed model on /v1/chat/completions[/]")
    with httpx2.Client(base_url=base_url) as client:
        evaluate = next(run for run in reversed(job["runs"]) if run["stage"] == "evaluate")
        text = client.get(f"/api/v1/runs/{evaluate['id']}/files/rows.jsonl").raise_for_status().text
    row = json.loads(text.splitlines()[0])
    with OpenAI(base_url=f"{base_url}/v1", api_key="none-needed-on-loopback") as openai:
        completion = openai.chat.completions.create(
            model=deploy, messages=row["prompt"], max_tokens=48, temperature=0
        )
    answer = completion.choices[0].message.content or ""
    for who, said in (
        ("user", row["prompt"][-1]["content"]),
        (deploy, answer),
        ("reference", row["reference"]),
    ):
        console.print(f"   [dim]{who}:[/] {' '.join(said.split())}", soft_wrap=True)


if __name__ == "__main__":
    cli(prog_name="python -m app.demos.worked_case")
