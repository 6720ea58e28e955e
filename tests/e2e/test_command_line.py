"""The path of a newcomer and the job of a pull request, by the command line alone.

Method: the service as `tunesmith up` starts it, and every command as a process. The steps of the example for
GitHub are those of its file.
"""

import csv
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.demos.examples import write_rows
from tests.e2e.platform import ROOT, Platform
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems

EXAMPLE = ROOT / "docs/examples/github-action"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def service(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    platform = Platform(tmp_path_factory.mktemp("service") / "data", starter)
    try:
        platform.start_command(["-m", "tunesmith", "up"])
        yield platform
    finally:
        platform.stop()


class Shell:
    """Runs commands in a folder, with `tunesmith` on the path."""

    def __init__(self, service: Platform, folder: Path) -> None:
        script = folder / "bin" / "tunesmith"
        script.parent.mkdir(parents=True)
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m tunesmith "$@"\n')
        script.chmod(0o755)
        self._folder = folder
        self._environment = os.environ | {
            "PATH": f"{script.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "TUNESMITH_URL": service.base_url,
            "XDG_CONFIG_HOME": str(folder),
        }

    def __call__(self, command: str, code: int = 0, variables: Mapping[str, str] | None = None) -> str:
        """Run a command that must end with this code; return its output."""
        ended = subprocess.run(
            ["bash", "-e", "-c", command],
            cwd=self._folder,
            env={**self._environment, **(variables or {})},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == code, f"{command}\n{ended.stdout}{ended.stderr}"
        return ended.stdout


def write_csv(path: Path, rows: list[Any], faults: int = 0) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answer"])
        writer.writerows(
            [["" if n < faults else row["question"], row["answer"]] for n, row in enumerate(rows)]
        )


def test_a_newcomer_gets_from_faulty_data_to_a_compared_model_that_answers(
    service: Platform, tmp_path: Path
) -> None:
    shell = Shell(service, tmp_path)
    train = generate_problems(160, ProblemSplit.train, seed=1)
    write_csv(tmp_path / "raw.csv", train, faults=3)
    write_csv(tmp_path / "fixed.csv", train)
    write_csv(tmp_path / "test.csv", generate_problems(12, ProblemSplit.held_out, seed=1))
    assert shell("tunesmith data check raw.csv", code=1).count("fault: row") == 3
    shell("tunesmith data check fixed.csv test.csv")
    shell("tunesmith data push fixed.csv --name sums")
    shell("tunesmith train sums --base starter --name sums --set max_steps=10 --set batch_size=8")
    shell("tunesmith eval sums --data test.csv --name tuned --set max_new_tokens=8")
    shell("tunesmith eval starter --data test.csv --name base --set max_new_tokens=8")
    assert "tuned − base" in shell("tunesmith compare tuned base --report report.html")
    assert "<html" in (tmp_path / "report.html").read_text()
    shell("tunesmith deploy sums sums")
    assert shell("tunesmith chat sums 'Kofi has 3 cups.' --max-tokens 8").strip()
    folder = tmp_path / shell("tunesmith get model sums --to model").strip()
    assert (folder / "adapter_model.safetensors").exists()
    assert "loss" in shell("tunesmith logs sums")


@pytest.mark.parametrize(("margin", "code"), [("1", 0), ("-0.9", 1)])
def test_the_steps_of_the_example_for_github_run_and_the_gate_decides(
    service: Platform, tmp_path: Path, margin: str, code: int
) -> None:
    shell = Shell(service, tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "job.yaml").write_text((EXAMPLE / "job.yaml").read_text())
    write_rows(tmp_path / "data", "train", generate_problems(64, ProblemSplit.train, seed=2))
    write_rows(tmp_path / "data", "test", generate_problems(8, ProblemSplit.held_out, seed=2))
    variables = {"BASE_MODEL": "starter", "MAX_STEPS": "5", "MARGIN": margin, "PR": "7", "COMMIT": f"c{code}"}
    steps = read_steps()
    for step in steps[:-1]:
        shell(step, variables=variables)
    shell(steps[-1], code=code, variables=variables)
    report = (tmp_path / "report.md").read_text()
    assert ("Gate met" if code == 0 else "Gate not met") in report and "| baseline |" in report


def read_steps() -> list[str]:
    """Return the commands of the example, which must be of `tunesmith` alone."""
    workflow = yaml.safe_load((EXAMPLE / ".github/workflows/model.yml").read_text())
    (job,) = workflow["jobs"].values()
    steps = [step["run"] for step in job["steps"] if "run" in step]
    assert steps.pop(0) == "pip install tunesmith"
    assert all(re.fullmatch(r"(tunesmith .*\n?)+", step) for step in steps)
    return steps
