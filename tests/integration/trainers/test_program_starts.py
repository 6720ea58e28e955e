"""Goal: the hundreds of programs of an installation, and of these tests, import what they use and no more.

Method: `-X importtime` writes the name of each imported module to stderr.
"""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

TORCH_ONLY = {"torch", "transformers", "datasets", "mlflow"}


def import_packages(program: str) -> set[str]:
    command = [sys.executable, "-X", "importtime", "-m", program, "--help"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return set(re.findall(r"\| +([a-z_0-9]+)$", done.stderr, re.MULTILINE))


@pytest.mark.parametrize(
    ("program", "unused"),
    [
        ("trainers.grpo", {"bitsandbytes", "wandb", "mlflow", "datasketch", "matplotlib", "torchvision"}),
        ("trainers.evaluate", TORCH_ONLY | {"datasketch", "redis", "pandas"}),
        ("trainers.generate", TORCH_ONLY | {"numpy", "scipy", "sqlalchemy", "fastapi"}),
        ("workers", TORCH_ONLY | {"numpy", "scipy", "pandas", "matplotlib", "boto3"}),
    ],
)
def test_a_program_starts_without_the_packages_that_it_does_not_use(program: str, unused: set[str]) -> None:
    imported = import_packages(program)
    assert "pydantic" in imported
    assert not imported & unused


def test_a_config_is_built_when_it_is_first_used() -> None:
    program = """if True:
        from trainers.configs.stages.sft import SftConfig
        print(SftConfig.__pydantic_complete__)
        SftConfig(stage="sft", base="starter", dataset="rows.jsonl")
        print(SftConfig.__pydantic_complete__)
    """
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr
