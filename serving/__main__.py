"""Serve a model without database or queue.

    python -m serving --engine hf --model PATH_OR_ID --adapter ko-en=PATH --port 8001

Options that are not listed here go to the engine as they are.
"""

import argparse
import os
import sys

from serving.engines import ENGINES, EngineKind, Serve, find_engine


def main(arguments: list[str]) -> None:
    """Replace this process by the engine, so that signals and the exit status are the engine's own."""
    options, rest = parser().parse_known_args(arguments)
    adapters = dict(named_path(value) for value in options.adapter)
    name = options.served_name or options.model
    serve = Serve(options.model, name, options.host, options.port, adapters)
    engine = find_engine(options.engine)
    command = [*engine.command(serve), *rest]
    sys.stdout.flush()
    os.execvpe(command[0], command, os.environ | engine.environment(serve))  # noqa: S606


def parser() -> argparse.ArgumentParser:
    """The options shared by all engines."""
    options = argparse.ArgumentParser(prog="python -m serving", description="Serve a model over HTTP.")
    options.add_argument("--engine", choices=list(ENGINES), default=EngineKind.hf)
    options.add_argument("--model", required=True, help="folder or hub id of the base model")
    options.add_argument("--adapter", action="append", default=[], metavar="NAME=PATH")
    options.add_argument("--served-name", help="name of the base model in requests; default: --model")
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=8001)
    return options


def named_path(value: str) -> tuple[str, str]:
    """Split NAME=PATH, or end the program with a sentence."""
    name, separator, path = value.partition("=")
    if not (name and separator and path):
        sys.exit(f"--adapter {value!r} is not NAME=PATH.")
    return name, path


if __name__ == "__main__":
    main(sys.argv[1:])
