"""Which architectures can be trained, merged, scored and served: a table of tiny random models.

Each model learns four codes by LoRA, is merged, loaded again and scored on its greedy completions, and is
served by the engine `hf`. The verdict of the dry run is in the same row: no row may be accepted and fail.

    python -m tests.benchmarks.trainers.architectures --json docs/benchmarks/architectures.json [NAME …]
"""

import argparse
import asyncio
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import torch
from aiohttp import web

from serving.engines.decoding.loop import GenerationLoop
from serving.engines.hf.model import load_runner
from serving.engines.openai_server.server import make_app
from tests.architectures import ARCHITECTURES, Architecture, find_architecture, write_model
from tests.e2e.platform import ROOT
from trainers import merge, sft
from trainers.configs import AdaptedModel, parse_stage
from trainers.configs.engines import EngineOptions
from trainers.metrics.maths.final_answer import judge_answer
from trainers.modeling.architecture import explain_hf_refusal
from trainers.modeling.generation import TextGenerator
from trainers.modeling.load import ModelReference, load_config
from trainers.rendering.render import parse_prompt
from trainers.runtime import run_dir as files
from trainers.runtime.errors import EngineFailed, as_program_error
from trainers.runtime.events import EventWriter

CODES = {"apple": 7, "pear": 3, "plum": 2, "fig": 5}
STEPS = 40
REFUSED = "refused"


@dataclass
class Row:
    """A row of the table; a column is empty where an earlier one ended the row."""

    name: str
    model_type: str
    attention: str = ""
    dry_run: str = ""
    packing: str = ""
    train: str = ""
    base_score: float | None = None
    adapter_score: float | None = None
    merge: str = ""
    merged_score: float | None = None
    deploy_verdict: str = ""
    serve: str = ""
    seconds: float = 0.0

    @property
    def contradiction(self) -> str | None:
        """What was accepted and failed all the same."""
        if self.dry_run == "accepted" and not (self.train == self.merge == "ok"):
            return f"{self.name}: accepted, but train is {self.train!r} and merge {self.merge!r}"
        if self.merge == "ok" and self.merged_score != self.adapter_score:
            return (
                f"{self.name}: the merged model scores {self.merged_score}, its adapter {self.adapter_score}"
            )
        if self.deploy_verdict == "accepted" and self.serve != "ok":
            return f"{self.name}: the deployment was accepted, but serving is {self.serve!r}"
        return None


def try_architecture(architecture: Architecture, starter: Path, folder: Path, *, serve: bool = True) -> Row:
    """Return the row of an architecture; `folder` must be empty."""
    row, started = Row(architecture.name, architecture.model_type), time.monotonic()
    base = write_model(architecture, starter, folder / "base")
    rows = folder / "codes.jsonl"
    rows.write_text("".join(f"{json.dumps(_make_row(*code))}\n" for code in CODES.items()))
    stage = {
        "stage": "sft",
        "base": str(base),
        "dataset": str(rows),
        "max_steps": STEPS,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "schedule": "constant",
        "tuning": {"rank": 16, "alpha": 32},
        "max_length": 64,
    }
    row.dry_run, plan = _attempt(lambda: sft.plan(parse_stage(stage)))  # type: ignore[arg-type]
    row.dry_run = row.dry_run.replace("ok", "accepted", 1)
    row.attention = plan["attention"] if plan else ""
    row.packing = _attempt(lambda: sft.plan(parse_stage(stage | {"packing": True})))[0]  # type: ignore[arg-type]
    row.packing = row.packing.replace("ok", "accepted", 1)
    row.train, _ = _attempt(lambda: _run(stage, folder / "sft"))
    if row.train == "ok":
        _score_and_merge(row, base, folder)
    if row.merge == "ok" and serve:
        reason = explain_hf_refusal(load_config(str(base)), None)
        row.deploy_verdict = "accepted" if reason is None else f"{REFUSED}: {reason}"
        row.serve, _ = _attempt(lambda: _serve(folder / "merge" / files.MODEL, folder))
    row.seconds = round(time.monotonic() - started, 1)
    return row


def _score_and_merge(row: Row, base: Path, folder: Path) -> None:
    adapted = AdaptedModel(base=str(base), adapter=str(folder / "sft" / files.MODEL))
    row.base_score, row.adapter_score = _score(_complete(str(base))), _score(_complete(adapted))
    stage = {"stage": "merge", "model": adapted.model_dump()}
    row.merge, _ = _attempt(lambda: _run(stage, folder / "merge"))
    if row.merge == "ok":
        row.merged_score = _score(_complete(str(folder / "merge" / files.MODEL)))


def _complete(model: ModelReference) -> list[str]:
    generator = TextGenerator(model, torch.device("cpu"), 6)
    rows = [_make_row(*code) for code in CODES.items()]
    prompts = [parse_prompt(number, row, Path("rows")) for number, row in enumerate(rows, start=1)]
    # One by one, as the engine completes them below: no padding.
    return [generator.generate([prompt])[0] for prompt in prompts]


def _score(completions: list[str]) -> float:
    rows = [_make_row(*code) for code in CODES.items()]
    right = [
        judge_answer(text, row["completion"]).correct for text, row in zip(completions, rows, strict=True)
    ]
    return sum(right) / len(right)


def _serve(model: Path, folder: Path) -> None:
    """Ask the engine for each code, and require the completions of the merged model.

    A forked process has torch loaded already, and may end as an engine does whose generation fails.
    """
    expected = _complete(str(model))
    log = folder / "engine.txt"
    engine = multiprocessing.get_context("fork").Process(target=_run_engine, args=(model, expected, log))
    engine.start()
    engine.join()
    if engine.exitcode != 0:
        last = (log.read_text().strip().splitlines() or ["no message"])[-1]
        raise EngineFailed(f"the engine ended with status {engine.exitcode}: {last}")


def _run_engine(model: Path, expected: list[str], log: Path) -> None:
    with log.open("w") as output:
        os.dup2(output.fileno(), sys.stderr.fileno())
    loop = GenerationLoop(lambda: load_runner(str(model), "tiny", EngineOptions()), 4)
    completions = asyncio.run(_ask(loop))
    assert completions == expected, f"{completions} instead of {expected}"
    os._exit(0)


async def _ask(loop: GenerationLoop) -> list[str]:
    runner = web.AppRunner(make_app(loop, "127.0.0.1"), auto_decompress=False)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    loop.thread.start()
    while not loop.healthy:
        await asyncio.sleep(0.05)
    async with aiohttp.ClientSession() as session:
        completions = []
        for code in CODES.items():
            messages = [{"role": "user", "content": _make_row(*code)["prompt"]}]
            body = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 6}
            response = await session.post(f"{address}/v1/chat/completions", json=body)
            assert response.status == 200, await response.text()
            completions.append((await response.json())["choices"][0]["message"]["content"])
    return completions


def _make_row(fruit: str, code: int) -> dict[str, str]:
    return {"prompt": f"{fruit}?", "completion": f"#### {code}"}


def _run(values: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    config = parse_stage(values)
    run_dir.mkdir()
    program: Any = {"sft": sft.run, "merge": merge.run}[config.stage]
    with EventWriter(run_dir / files.EVENTS) as events:
        result: dict[str, Any] = program(config, run_dir, events)
    return result


def _attempt(work: Any) -> tuple[str, Any]:
    """Return `ok` and the result, or the code and message of the error."""
    try:
        return "ok", work()
    except Exception as error:
        reported = as_program_error(error)
        return f"{REFUSED}: {reported.code}: {reported.message}", None


def main() -> None:
    """Try the named architectures, or all, and print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    logging.disable(logging.WARNING)
    chosen = list(map(find_architecture, arguments.names)) or ARCHITECTURES
    table = []
    with tempfile.TemporaryDirectory(prefix="tunesmith-benchmark-") as name:
        starter = Path(name) / "starter"
        command = [sys.executable, "-m", "trainers.starter", "--out", str(starter), "--steps", "1"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        for number, architecture in enumerate(chosen):
            folder = Path(name) / str(number)
            folder.mkdir()
            row = try_architecture(architecture, starter, folder)
            table.append(row)
            print(asdict(row), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in table], indent=1) + "\n")
    contradictions = [row.contradiction for row in table if row.contradiction]
    print(contradictions)
    sys.exit(bool(contradictions))


if __name__ == "__main__":
    main()
