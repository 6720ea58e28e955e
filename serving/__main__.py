"""Serve a model without database or queue: over HTTP, in the terminal, or for a file of rows.

    python -m serving --engine hf --model PATH_OR_ID --adapter ko-en=PATH --port 8001
    python -m serving --engine hf --model PATH_OR_ID --interactive --system-prompt "Answer briefly."
    python -m serving --engine hf --model PATH_OR_ID --input rows.jsonl --output predictions.jsonl

Options that `--help` does not list go to the engine as they are.
"""

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from serving.engines import ENGINES, EngineConfig, EngineKind, find_engine
from serving.engines.cli_options import add_engine_options, read_engine_options
from serving.engines.engine import Engine
from trainers.runtime.errors import ProgramError

HOST = "127.0.0.1"


def main(arguments: list[str]) -> None:
    """Do what the options ask for; by default, serve over HTTP."""
    options, rest = parser().parse_known_args(arguments)
    adapters = dict(parse_adapter(value) for value in options.adapter)
    if options.input or options.output:
        answer_rows(options, adapters, rest)
    elif options.interactive:
        talk(options, adapters, rest)
    else:
        become_engine(options, adapters, rest)


def become_engine(options: argparse.Namespace, adapters: dict[str, str], rest: list[str]) -> None:
    """Replace this process by the engine, so that signals and the exit status are the engine's own."""
    with told_failures():
        engine, serve = planned(options, adapters, options.host, options.port)
        command = [*engine.command(serve), *rest]
    sys.stdout.flush()
    try:
        os.execvpe(command[0], command, os.environ | engine.environment(serve))  # noqa: S606
    except OSError as error:
        sys.exit(f"{command[0]} cannot be started ({error.strerror}); name its program with --program.")


def talk(options: argparse.Namespace, adapters: dict[str, str], rest: list[str]) -> None:
    """Start the engine and talk to its last adapter, or to the base without any."""
    from serving.chat_cli import ChatSession
    from serving.engines.child_engine import free_port, latest_model_name, run_engine

    chosen = {"temperature": options.temperature, "top_p": options.top_p, "max_tokens": options.max_tokens}
    settings = {key: value for key, value in chosen.items() if value is not None}
    with tempfile.TemporaryDirectory() as folder, told_failures():
        print(f"Starting {options.engine} …", file=sys.stderr)
        engine, serve = planned(options, adapters, HOST, free_port(HOST))
        with run_engine(engine, serve, Path(folder) / "engine.log", own_session=True, more=rest) as address:
            ChatSession(address, latest_model_name(engine, serve), options.system_prompt, settings).run()


def answer_rows(options: argparse.Namespace, adapters: dict[str, str], rest: list[str]) -> None:
    """Answer the rows of a file by an engine that is started for it, as the stage `generate` does."""
    from serving.batch.generate import answer_rows as answer
    from trainers.configs.stages.generate import GenerateConfig

    if rest or not (options.input and options.output):
        sys.exit("A batch needs --input and --output, and takes no options of the engine's own: " + str(rest))
    adapter = next(reversed(adapters.values()), None)
    model: Any = {"base": options.model, "adapter": adapter} if adapter else options.model
    asked = {
        "temperature": options.temperature,
        "top_p": options.top_p,
        "max_new_tokens": options.max_tokens,
        "system_prompt": options.system_prompt,
    }
    with told_failures(), Bar() as bar:
        config = GenerateConfig(
            model=model,
            dataset=str(options.input),
            engine=options.engine,
            engine_program=shlex.split(options.program),
            options=read_engine_options(options.engine, options),
            **{name: value for name, value in asked.items() if value is not None},
        )
        answer(config, options.output, options.output.with_suffix(".engine.log"), bar.show)


def planned(
    options: argparse.Namespace, adapters: dict[str, str], host: str, port: int
) -> tuple[Engine, EngineConfig]:
    """The engine and what it is to serve; raises ValueError for options that it does not know."""
    engine = find_engine(options.engine, shlex.split(options.program))
    name = options.served_name or options.model
    return engine, EngineConfig(
        options.model, name, host, port, adapters, read_engine_options(engine.kind, options)
    )


class Bar:
    """One line on the terminal that tells how far a batch is and how long it will take."""

    def __enter__(self) -> Self:
        self.begun: tuple[float, int] | None = None
        return self

    def __exit__(self, *failure: object) -> None:
        print(file=sys.stderr)

    def show(self, done: int, total: int) -> None:
        """Draw the line again."""
        now = time.monotonic()
        self.begun = self.begun or (now, done)
        since, kept = self.begun
        left = f", {(now - since) / (done - kept) * (total - done):.0f} s left" if done > kept else ""
        print(f"\r{done} of {total} rows answered{left}   ", end="", file=sys.stderr, flush=True)


@contextmanager
def told_failures() -> Iterator[None]:
    """End the program with the sentence of a failure that a person can act on."""
    try:
        yield
    except (ProgramError, ValueError) as error:
        sys.exit(f"{error} {getattr(error, 'hint', '')}".strip())
    except KeyboardInterrupt:
        sys.exit("Stopped; the same command goes on from here.")


def parser() -> argparse.ArgumentParser:
    """The options shared by all engines."""
    options = argparse.ArgumentParser(
        prog="python -m serving",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    options.add_argument("--engine", choices=list(ENGINES), default=EngineKind.hf)
    options.add_argument(
        "--program", default="", help="command that starts the engine, where it is not on PATH"
    )
    options.add_argument("--model", required=True, help="folder or hub id of the base model")
    options.add_argument("--adapter", action="append", default=[], metavar="NAME=PATH")
    options.add_argument("--served-name", help="name of the base model in requests; default: --model")
    options.add_argument("--host", default=HOST)
    options.add_argument("--port", type=int, default=8001)
    options.add_argument("--interactive", action="store_true", help="talk to the model in the terminal")
    options.add_argument("--input", type=Path, help="JSONL whose rows are answered, in any dataset's format")
    options.add_argument(
        "--output", type=Path, help="JSONL that receives the answers; begun ones are continued"
    )
    options.add_argument("--system-prompt", help="system message of the conversation or of every row")
    options.add_argument("--temperature", type=float)
    options.add_argument("--top-p", type=float)
    options.add_argument("--max-tokens", type=int, help="tokens of one answer at most")
    add_engine_options(options)
    return options


def parse_adapter(value: str) -> tuple[str, str]:
    """Split NAME=PATH, or end the program with a sentence."""
    name, separator, path = value.partition("=")
    if not (name and separator and path):
        sys.exit(f"--adapter {value!r} is not NAME=PATH.")
    return name, path


if __name__ == "__main__":
    main(sys.argv[1:])
