"""While a program imports its packages, it collects no garbage; afterwards it does as usual."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Python imports this module before the program, also that of `-m`.
REPORT = """
import atexit, gc
usual = gc.get_threshold()
def report():
    print(gc.get_threshold() == usual, gc.get_freeze_count() > 50_000, gc.get_stats()[2]["collections"])
atexit.register(report)
"""


@pytest.mark.parametrize("program", ["app", "workers", "serving.engines.hf", "trainers.prepare"])
def test_collections_begin_when_the_packages_are_imported(program: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(REPORT)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", program, "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "True True 0"


def test_who_imports_the_client_keeps_the_own_thresholds() -> None:
    code = "import gc; usual = gc.get_threshold(); import tunesmith; print(gc.get_threshold() == usual)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
