"""A job or deployment passes no argument and no variable of its own to a program.

Attacks: options and names that look like flags, shell syntax, and variables that a loader would obey.
"""

import os
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.testclient import TestClient

from serving.engines import EngineConfig
from serving.engines.sglang import SglangEngine
from serving.engines.vllm import VllmEngine
from tests.security.regression import Regression, ignore
from trainers.configs.engines import EngineChoice, EngineKind, EngineOptions
from workers.hosts.devices import NO_DEVICES
from workers.hosts.environments import program_environment

FLAGS = ["--trust-remote-code", "-c", "--load-format=pickle", "$(touch escaped)", "; touch escaped", "a\nb"]
OPTIONS: list[dict[str, Any]] = [
    {"trust_remote_code": True},
    {"extra_args": ["--trust-remote-code"]},
    {"load_format": "pt"},
    {"dtype": "auto --trust-remote-code"},
    {"max_model_len": "64 --trust-remote-code"},
    {"tool_call_parser": "../../plugin.py"},
    {"quantization": "--x"},
    {"env": {"LD_PRELOAD": "x.so"}},
]
HOSTILE_VARIABLES = {
    "LD_PRELOAD": "x.so",
    "PYTHONSTARTUP": "x.py",
    "TUNESMITH_DATABASE_URL": "postgresql://u:canary@h/d",
    "TUNESMITH_BROKER_URL": "redis://:canary@h",
    "AWS_SECRET_ACCESS_KEY": "canary",
    "WANDB_API_KEY": "canary",
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("engine", [EngineKind.vllm, EngineKind.sglang, EngineKind.hf])
def test_an_engine_takes_the_listed_options_only(engine: EngineKind, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        EngineChoice.model_validate({"engine": engine, "options": options})


@pytest.mark.parametrize("name", FLAGS)
def test_a_deployment_has_no_name_that_is_a_flag_or_a_command(client: TestClient, name: str) -> None:
    refused = client.post("/api/v1/deployments", json={"name": name, "model": "starter"})
    assert refused.status_code == 422


@pytest.mark.parametrize("value", ["$(touch escaped)", "; touch escaped", "a\nb", "@file", "/models/a b"])
def test_every_value_on_an_engines_command_line_belongs_to_a_flag_of_ours(value: str) -> None:
    """A model's name is one argument, directly after its flag, whatever it contains."""
    config = EngineConfig(
        model=value, served_name=value, host="127.0.0.1", port=1, options=EngineOptions(), adapters={}
    )
    for engine in (VllmEngine(), SglangEngine()):
        command = engine.command(config)
        places = [i for i, argument in enumerate(command) if value in argument]
        assert places and all(command[i] == value for i in places)
        assert all(command[i - 1].startswith("--") for i in places)


def test_a_program_inherits_the_listed_variables_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in HOSTILE_VARIABLES.items():
        monkeypatch.setenv(name, value)
    environment = program_environment(NO_DEVICES)
    assert not environment.keys() & HOSTILE_VARIABLES.keys()
    assert "canary" not in str(environment)


@pytest.mark.parametrize("reference", [*FLAGS, "-", "--", "model --x", "a/b --x", "\u2028"])
def test_a_reference_to_a_model_is_no_flag(client: TestClient, reference: str) -> None:
    stage = {"stage": "sft", "base": reference, "dataset": "d"}
    for path, body in (
        ("/api/v1/deployments", {"name": "x", "model": reference}),
        ("/api/v1/jobs/dry-run", {"name": "x", "stages": [stage]}),
    ):
        assert client.post(path, json=body).status_code in (404, 422)


REGRESSIONS = [
    Regression(
        "programs inherit the whole environment",
        "workers.hosts.environments:INHERITED_VARIABLES",
        tuple(os.environ) + tuple(HOSTILE_VARIABLES),
        "test_a_program_inherits_the_listed_variables_only",
    ),
    Regression(
        "a command line is split at blanks",
        "serving.engines.vllm:VllmEngine.command",
        lambda _, config: f"vllm serve --model {config.model}".split(),
        "test_every_value_on_an_engines_command_line_belongs_to_a_flag_of_ours",
    ),
    Regression(
        "unknown options are passed on",
        "trainers.configs.engines:EngineChoice.model_validate",
        ignore,
        "test_an_engine_takes_the_listed_options_only",
    ),
]
