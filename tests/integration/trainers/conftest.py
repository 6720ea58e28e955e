"""Fixtures of the trainers: rows, a tiny adapted model, and programs in real processes."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import OFFLINE, ROOT
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems
from trainers.runtime import run_dir as files

# Metrics that no two runs share.
UNEQUAL = {"seconds": 0, "peak_resident_bytes": 0}


@dataclass
class Programs:
    """Starts programs with one folder as home, temporary and working directory, to find stray files."""

    home: Path

    def start(
        self, module: str, config: dict[str, Any], run_dir: Path, *more: str, held_at: int | None = None
    ) -> subprocess.Popen[str]:
        """Start a program; with `held_at`, it waits after this step until its standard input is closed."""
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / "config.json"
        path.write_text(json.dumps(config))
        hold = [] if held_at is None else ["tests.integration.trainers.held_program", str(held_at)]
        command = [sys.executable, "-m", *hold, module, "--config", str(path), "--run-dir", str(run_dir)]
        return self.popen([*command, *more], stdin=None if held_at is None else subprocess.PIPE)

    def run(self, module: str, config: dict[str, Any], run_dir: Path, *more: str) -> tuple[int, str, str]:
        process = self.start(module, config, run_dir, *more)
        out, err = process.communicate(timeout=240)
        return process.returncode, out, err

    def popen(self, command: list[str], stdin: int | None = None) -> subprocess.Popen[str]:
        home = str(self.home)
        env = os.environ | OFFLINE | {"HOME": home, "TMPDIR": home, "PYTHONPATH": str(ROOT)}
        env.pop("HF_HOME", None)
        pipes: dict[str, Any] = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env=env, cwd=home, text=True, **pipes)


@pytest.fixture(scope="module", autouse=True)
def free_memory() -> Iterator[None]:
    """Let the other programs of the host hold little memory: findings and recomputation depend on it."""
    measure = psutil.virtual_memory
    with pytest.MonkeyPatch.context() as patch:
        free = 16 << 30
        patch.setattr(psutil, "virtual_memory", lambda: measure()._replace(available=free))
        yield


# For each file its own: programs that refuse a model write views of it to their temporary folder.
@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def write_rows(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[dict[str, Any]]], str]:
    def write(rows: list[dict[str, Any]]) -> str:
        path = tmp_path_factory.mktemp("data") / "rows.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture(scope="session")
def training_rows(write_rows: Callable[[list[dict[str, Any]]], str]) -> str:
    return write_rows([dict(row) for row in generate_problems(158, ProblemSplit.train, seed=1)])


@pytest.fixture(scope="session")
def held_out_rows(write_rows: Callable[[list[dict[str, Any]]], str]) -> str:
    return write_rows([dict(row) for row in generate_problems(40, ProblemSplit.held_out, seed=1)])


@pytest.fixture(scope="session")
def adapted(starter: Path, training_rows: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the starter model with an adapter from a few steps of SFT."""
    from tests.integration.trainers.stages import (
        run_stage,  # It loads torch, which most tests of data do without.
    )

    run_dir = tmp_path_factory.mktemp("adapted") / "run"
    tuning = {"method": "lora", "rank": 8, "alpha": 16}
    config = {"stage": "sft", "base": str(starter), "dataset": training_rows, "tuning": tuning}
    assert run_stage(config | {"max_steps": 10, "learning_rate": 5e-3}, run_dir) is not None
    return {"base": str(starter), "adapter": str(run_dir / "model")}


@pytest.fixture(scope="session")
def undecided(
    starter: Path, write_rows: Callable[[list[dict[str, Any]]], str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a model that gives the wrong answer to most questions of the number task."""
    from tests.integration.trainers import number_task

    rows = write_rows(2 * number_task.right_rows() + 3 * number_task.wrong_rows())
    return number_task.train_on(rows, starter, 120, tmp_path_factory.mktemp("undecided") / "run")


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in files.read_lines(run_dir / files.EVENTS) if event["type"] == kind]


def losses(run_dir: Path) -> dict[int, float]:
    with_loss = [event for event in events(run_dir, "metrics") if "loss" in event["values"]]
    return {event["step"]: event["values"]["loss"] for event in with_loss}


def assert_same_run(run_dir: Path, uninterrupted: Path, weights: str) -> None:
    assert losses(run_dir) == losses(uninterrupted)
    assert (run_dir / "model" / weights).read_bytes() == (uninterrupted / "model" / weights).read_bytes()
    result, expected = files.read_result(run_dir), files.read_result(uninterrupted)
    assert result is not None
    assert expected is not None
    assert result["metrics"] | UNEQUAL == expected["metrics"] | UNEQUAL


def list_children(text: str) -> list[str]:
    """Return the commands with this text of the processes that this one has started and that still run."""
    commands = []
    for child in psutil.Process().children(recursive=True):
        # It may end at any moment, and a status that nobody has read yet has no command.
        with contextlib.suppress(psutil.NoSuchProcess):
            commands.append(shlex.join(child.cmdline()))
    return [command for command in commands if text in command]


def kill_at_step(
    programs: Programs, module: str, config: dict[str, Any], run_dir: Path, at_step: int
) -> None:
    """Start a program and kill it once it has logged the step, at the latest two steps later."""
    process = programs.start(module, config, run_dir, held_at=at_step + 2)
    wait_for(lambda: len(losses(run_dir)) >= at_step, process)
    process.kill()
    process.communicate()
    assert not (run_dir / files.RESULT).exists()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 200) -> None:
    """Wait for a condition and kill the program at the deadline; imports take a minute on a busy host."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        if time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"The condition was not met in time. {process.communicate()[1]}")
        time.sleep(0.01)


@pytest.fixture
def short_sft(starter: Path, training_rows: str) -> dict[str, Any]:
    """Return a stage that logs each step; the test adds the number of steps."""
    return {
        "stage": "sft",
        "base": str(starter),
        "dataset": training_rows,
        "batch_size": 8,
        "learning_rate": 5e-3,
        "log_every_steps": 1,
    }


@pytest.fixture
def short_lora(short_sft: dict[str, Any]) -> dict[str, Any]:
    """Return the same stage with LoRA and two micro-batches per step."""
    tuning = {"method": "lora", "rank": 4, "alpha": 8}
    return short_sft | {"tuning": tuning, "max_steps": 8, "micro_batch_size": 4}
