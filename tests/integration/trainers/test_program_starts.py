"""Goal: the hundreds of programs of an installation, and of these tests, import what they use and no more.

Method: `-X importtime` writes the name of each imported module to stderr. A package counts if one of its
modules is imported: the attempt to import one that is missing is written too.
"""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

OF_MODELS = {"torch", "transformers", "datasets", "mlflow"}


def import_packages(program: str) -> set[str]:
    command = [sys.executable, "-X", "importtime", "-m", program, "--help"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return set(re.findall(r"\| +([a-z_0-9]+)\.", done.stderr))


@pytest.mark.parametrize(
    ("program", "unused"),
    [
        ("trainers.grpo", {"mlflow", "datasketch", "matplotlib", "torchvision"}),
        ("trainers.evaluate", OF_MODELS | {"datasketch", "redis", "pandas"}),
        ("trainers.generate", OF_MODELS | {"numpy", "scipy", "sqlalchemy", "fastapi"}),
        ("workers", OF_MODELS | {"numpy", "scipy", "pandas", "matplotlib", "boto3"}),
    ],
)
def test_a_program_starts_without_the_packages_that_it_does_not_use(program: str, unused: set[str]) -> None:
    imported = import_packages(program)
    assert "pydantic" in imported
    assert imported & unused == set()
