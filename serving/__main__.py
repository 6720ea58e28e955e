"""Serve a model without a database or queue: over HTTP, in the terminal, or for a file of rows.

    python -m serving --engine hf --model PATH_OR_ID --adapter ko-en=PATH --port 8001
    python -m serving --engine hf --model PATH_OR_ID --task embed --port 8001
    python -m serving --engine hf --model PATH_OR_ID --interactive --system-prompt "Answer briefly."
    python -m serving --engine hf --model PATH_OR_ID --input rows.jsonl --output predictions.jsonl

Options that `--help` does not list are passed to the engine's own program.
"""

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn, Self

import typer

from serving.engines import EngineConfig, EngineKind, find_engine
from serving.engines.cli_options import (
    Adapters,
    Host,
    Model,
    PoolingOption,
    ServedName,
    Task,
    parse_adapters,
    read_engine_options,
    with_engine_options,
)
from serving.engines.engine import Engine, check_host
from trainers.configs.engines import EngineOptions, EngineTask, Pooling, check_task
from trainers.modeling.embedding.recipe import check_engine, read_recipe
from trainers.modeling.model_source import open_adapter, open_base
from trainers.runtime.command_line import make_help, make_typer
from trainers.runtime.errors import TunesmithError
from trainers.runtime.process_tree import die_with_parent

LOOPBACK = "127.0.0.1"

program = make_typer()


@dataclass(frozen=True)
class ServingOptions:
    """The options of the command line that describe the engine and its completions."""

    engine: EngineKind
    engine_program: list[str]
    model: str
    task: EngineTask
    pooling: Pooling | None
    adapters: dict[str, str]
    served_name: str
    engine_options: EngineOptions
    engine_arguments: list[str]
    system_prompt: str | None
    sampling: dict[str, Any]

    def make_engine(self, host: str, port: int) -> tuple[Engine, EngineConfig]:
        """Verify the model and its adapters, and return the engine and its config.

        Raises:
            ValueError: The host is public.
            TunesmithError: The model cannot be found, or a file of it is unsafe.
        """
        check_host(host)
        check_task(self.engine, self.task, self.pooling, self.engine_options, self.adapters)
        engine = find_engine(self.engine, self.engine_program)
        model = open_base(self.model)
        if self.task is EngineTask.embed:
            check_engine(read_recipe(Path(model), self.pooling), self.engine)
        adapters = {name: open_adapter(path) for name, path in self.adapters.items()}
        config = EngineConfig(model, self.served_name, host, port, adapters, self.engine_options)
        return engine, replace(config, task=self.task, pooling=self.pooling)


# Unknown options are kept, for the engine.
@program.command(
    help=make_help(__doc__),
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@with_engine_options()
def main(
    *,
    context: typer.Context,
    engine: Annotated[EngineKind, typer.Option(help="The program that generates text.")] = EngineKind.hf,
    engine_program: Annotated[
        str, typer.Option("--program", help="Command that starts the engine, if it is not on PATH.")
    ] = "",
    model: Model,
    task: Task = EngineTask.generate,
    pooling: PoolingOption = None,
    adapter: Adapters = None,
    served_name: ServedName = None,
    host: Host = LOOPBACK,
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8001,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Chat with the model in the terminal.")
    ] = False,
    input: Annotated[
        Path | None, typer.Option(help="JSONL file with prompts, in any format of a dataset.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="JSONL file for the completions; an existing one is continued.")
    ] = None,
    system_prompt: Annotated[
        str | None, typer.Option(help="System message of the chat, or of every row.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature; 0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Probability mass to sample from.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Maximum tokens of a completion.")] = None,
    options: dict[str, Any],
) -> None:
    """Serve, chat, or complete a file of rows, as the options say."""
    sampling = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens}
    with exit_with_message():
        serving = ServingOptions(
            engine=engine,
            engine_program=shlex.split(engine_program),
            model=model,
            task=task,
            pooling=pooling,
            adapters=parse_adapters(adapter),
            served_name=served_name or model,
            engine_options=read_engine_options(engine, options),
            engine_arguments=context.args,
            system_prompt=system_prompt,
            sampling={name: value for name, value in sampling.items() if value is not None},
        )
        if task is EngineTask.embed and (input or output or interactive):
            raise ValueError("An embedding model does not generate: leave out --interactive and --input.")
        if input or output:
            complete_rows(serving, input, output)
        elif interactive:
            chat(serving)
        else:
            become_engine(serving, host, port)


def become_engine(serving: ServingOptions, host: str, port: int) -> NoReturn:
    """Replace this process by the engine's, so that signals and the exit status are the engine's own."""
    engine, config = serving.make_engine(host, port)
    command = [*engine.command(config), *serving.engine_arguments]
    # The kernel keeps this for the engine's program, which a trainer may have started.
    die_with_parent()
    sys.stdout.flush()
    try:
        os.execvpe(command[0], command, os.environ | engine.environment(config))  # noqa: S606
    except OSError as error:
        raise ValueError(
            f"{command[0]} cannot be started: {error.strerror}. Name the engine's program with --program."
        ) from error


def chat(serving: ServingOptions) -> None:
    """Start the engine, and chat with its last adapter, or with the base if there is none."""
    from serving.chat_cli import ChatSession
    from serving.engines.child_engine import latest_model_name, run_engine
    from trainers.runtime.launch_command import HeldPort

    print(f"Starting {serving.engine} …", file=sys.stderr)
    with HeldPort(LOOPBACK) as port, tempfile.TemporaryDirectory() as folder:
        engine, config = serving.make_engine(LOOPBACK, port.number)
        log, name = Path(folder) / "engine.log", latest_model_name(engine, config)
        with run_engine(
            engine, config, log, own_session=True, extra_arguments=serving.engine_arguments
        ) as address:
            ChatSession(address, name, serving.system_prompt, dict(serving.sampling)).run()


def complete_rows(serving: ServingOptions, input: Path | None, output: Path | None) -> None:
    """Complete the rows of a file, as the stage `generate` does."""
    from serving.engines.child_engine import latest_model_name, run_engine
    from trainers.configs.stages.generate import GenerateConfig
    from trainers.evaluation import row_completions
    from trainers.runtime.endpoints import Endpoint
    from trainers.runtime.launch_command import HeldPort

    if input is None or output is None:
        missing = "--input" if input is None else "--output"
        raise ValueError(f"{missing} is missing; a batch needs both --input and --output.")
    if serving.engine_arguments:
        raise ValueError(
            f"A batch does not accept the option {serving.engine_arguments[0]}; see --help for its options."
        )
    sampling = dict(serving.sampling)
    if "max_tokens" in sampling:
        sampling["max_new_tokens"] = sampling.pop("max_tokens")
    if serving.system_prompt is not None:
        sampling["system_prompt"] = serving.system_prompt
    config = GenerateConfig(model=serving.model, dataset=str(input), engine=serving.engine, **sampling)
    prompts = row_completions.load_prompts(config)
    remaining = row_completions.skip_completed(prompts, output)
    n_kept = len(prompts) - len(remaining)
    with HeldPort(LOOPBACK) as port, ProgressBar() as bar:
        engine, engine_config = serving.make_engine(LOOPBACK, port.number)
        bar.show(n_kept, len(prompts))
        if remaining:
            with run_engine(engine, engine_config, output.with_suffix(".engine.log")) as url:
                row_completions.complete_rows(
                    config,
                    remaining,
                    Endpoint(f"{url}/v1", latest_model_name(engine, engine_config), is_engine=True),
                    output,
                    lambda count: bar.show(n_kept + count, len(prompts)),
                )


class ProgressBar:
    """A line on the terminal with the number of completed rows and the remaining time."""

    def __enter__(self) -> Self:
        self.start: tuple[float, int] | None = None
        return self

    def __exit__(self, *error: object) -> None:
        print(file=sys.stderr)

    def show(self, done: int, total: int) -> None:
        """Redraw the line."""
        now = time.monotonic()
        self.start = self.start or (now, done)
        started_at, done_before = self.start
        new = done - done_before
        left = f", {(now - started_at) / new * (total - done):.0f} s left" if new else ""
        print(f"\r{done} of {total} rows completed{left}   ", end="", file=sys.stderr, flush=True)


@contextmanager
def exit_with_message() -> Iterator[None]:
    """Exit with status 1 and the message of an error that a person can act on."""
    try:
        yield
    except (TunesmithError, ValueError) as error:
        sys.exit(f"{error} {getattr(error, 'hint', None) or ''}".strip())
    except KeyboardInterrupt:
        sys.exit("Stopped; the same command resumes here.")


if __name__ == "__main__":
    program(prog_name="python -m serving")
