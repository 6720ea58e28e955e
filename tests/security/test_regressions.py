"""Every test of this folder can fail: without the protection that it proves, it does."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.security.regression import FOLDER, plant

MODULES = sorted(f"tests.security.{path.stem}" for path in FOLDER.glob("test_*.py") if path != Path(__file__))


def test_every_module_plants_a_regression() -> None:
    assert [name for name in MODULES if not importlib.import_module(name).REGRESSIONS] == []


def test_each_regression_replaces_something_that_exists() -> None:
    for name in MODULES:
        for regression in importlib.import_module(name).REGRESSIONS:
            with pytest.MonkeyPatch.context() as patch:
                plant(regression, patch)


# Minutes on a busy machine.
@pytest.mark.timeout(900)
def test_each_planted_regression_is_noticed() -> None:
    command = [sys.executable, "-m", "tests.security.regression", *MODULES]
    done = subprocess.run(command, cwd=FOLDER.parents[1], capture_output=True, text=True, check=False)
    # A warning of the interpreter's end may come after it.
    (line,) = (line for line in done.stderr.splitlines() if line.startswith('{"tests.security.'))
    unnoticed = json.loads(line)
    assert unnoticed == {module: [] for module in MODULES}, f"{done.stderr[-2000:]}\n{done.stdout[-4000:]}"
