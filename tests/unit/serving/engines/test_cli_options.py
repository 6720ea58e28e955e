"""The options of engines as flags of a command line."""

from typing import Any

import pytest
from typer.testing import CliRunner

from serving.engines.cli_options import parse_adapters, read_engine_options, with_engine_options
from trainers.configs.engines import EngineKind
from trainers.runtime.command_line import make_typer


def run(arguments: list[str]) -> dict[str, Any]:
    """Parse a command line and return the engine's options."""
    program, given = make_typer(), {}

    @program.command()
    @with_engine_options()
    def main(*, name: str = "", options: dict[str, Any]) -> None:
        given.update(options)

    result = CliRunner().invoke(program, arguments)
    assert result.exit_code == 0, result.output
    return given


def test_only_the_given_flags_are_options() -> None:
    assert run(["--name", "x", "--max-model-len", "512", "--no-prefix-caching"]) == {
        "max_model_len": "512",
        "prefix_caching": False,
    }


def test_flags_are_validated_as_the_options_of_a_job() -> None:
    assert read_engine_options(EngineKind.hf, {"max_model_len": "512"}).max_model_len == 512
    with pytest.raises(ValueError, match="--max-model-len: Input should be greater"):
        read_engine_options(EngineKind.hf, {"max_model_len": "3"})
    with pytest.raises(ValueError, match=r"^--quantization 'fp8' is not supported by hf"):
        read_engine_options(EngineKind.hf, {"quantization": "fp8"})


def test_an_adapter_has_the_form_name_and_path() -> None:
    assert parse_adapters(["a=/x=y", "b=/z"]) == {"a": "/x=y", "b": "/z"}
    for value in ("a", "=/x", "a="):
        with pytest.raises(ValueError, match="does not have the form NAME=PATH"):
            parse_adapters([value])
    with pytest.raises(ValueError, match="'a' occurs twice"):
        parse_adapters(["a=/x", "a=/y"])
