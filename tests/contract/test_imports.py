"""The import contracts of `pyproject.toml`: each one fails when a violation is planted.

Goal: a rule in CONTRIBUTING.md is a rule of the linter. Method: copy the packages, add an import for each
contract, and run the linter on the copy.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

from tests.conftest import ROOT

PACKAGES = ("app", "workers", "trainers", "serving")
VIOLATIONS = [
    ("workers → app → serving → trainers", "trainers/runtime/run_dir.py", "import serving.http.errors"),
    (
        "app imports only the gateway and the HTTP parts of serving",
        "app/logs.py",
        "import serving.engines.engine",
    ),
    (
        "app imports only the listed modules of trainers",
        "app/logs.py",
        "import trainers.runtime.run_dir",
    ),
    (
        "the client imports configs and no part of the service",
        "app/client/notebook.py",
        "import app.tables",
    ),
    ("metrics never imports rewards", "trainers/metrics/exact.py", "import trainers.rewards.score"),
    ("app loads no ML package", "app/logs.py", "import torch"),
    (
        "configs, data, errors, chat templates and the gateway load no ML package",
        "trainers/configs/base.py",
        "import transformers",
    ),
    (
        "only the exporter loads the clients of tracking services",
        "workers/tracking/tracker.py",
        "import mlflow",
    ),
    ("the exporter reaches no database", "workers/tracking/protocol.py", "import app.tables"),
    ("web contains no queries", "app/web/formats.py", "import sqlalchemy"),
]


def run_linter(folder: Path) -> subprocess.CompletedProcess[str]:
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", program, "--config", str(folder / "pyproject.toml"), "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def source_copy(tmp_path: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_each_planted_import_breaks_its_contract(source_copy: Path) -> None:
    for _, importer, statement in VIOLATIONS:
        with (source_copy / importer).open("a") as file:
            file.write(f"\n{statement}\n")
    linted = run_linter(source_copy)
    assert linted.returncode == 1, linted.stdout
    # One run for all: each contract must name its own import, because others may break it as well.
    sections = linted.stdout.partition("Broken contracts")[2]
    for contract, importer, statement in VIOLATIONS:
        section = re.split(r"\n-{3,}\n", sections.partition(f"\n{contract}\n")[2].lstrip("-\n"))[0]
        imported = f"{importer.removesuffix('.py').replace('/', '.')} -> {statement.split()[1]} (l."
        assert imported in section, f"{contract}: {imported}\n{linted.stdout}"


def test_every_contract_has_a_planted_import() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = [contract["name"] for contract in settings["tool"]["importlinter"]["contracts"]]
    assert contracts == [contract for contract, _, _ in VIOLATIONS]


def test_no_modules_import_each_other_in_a_cycle() -> None:
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    assert (
        find_cycle({module: graph.find_modules_directly_imported_by(module) for module in graph.modules})
        == []
    )


def test_a_cycle_is_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def find_cycle(imports: dict[str, set[str]]) -> list[str]:
    """Return the modules of a cycle, or an empty list."""
    remaining = {module: set(targets) for module, targets in imports.items()}
    while leaves := {module for module, targets in remaining.items() if not targets & remaining.keys()}:
        remaining = {module: targets for module, targets in remaining.items() if module not in leaves}
    # Drop modules that only lead to a cycle: nothing that remains imports them.
    while remaining and (roots := remaining.keys() - set().union(*remaining.values())):
        remaining = {module: targets for module, targets in remaining.items() if module not in roots}
    return sorted(remaining)
