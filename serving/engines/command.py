"""The command line of each engine, so that whoever starts one needs no ML package."""

import sys
from enum import StrEnum


class Engine(StrEnum):
    """A program that generates text."""

    hf = "hf"


def engine_command(
    kind: str, *, model: str, adapters: dict[str, str], served_name: str, host: str, port: int
) -> list[str]:
    """The arguments that start an engine; `adapters` maps served names to folders.

    Raises ValueError for an engine that is not known.
    """
    if kind != Engine.hf:
        raise ValueError(f"Engine {kind!r} is not known; choose one of: {', '.join(Engine)}.")
    command = [sys.executable, "-m", "serving.engines.hf", "--model", model, "--served-name", served_name]
    for name, path in adapters.items():
        command += ["--adapter", f"{name}={path}"]
    return [*command, "--host", host, "--port", str(port)]
