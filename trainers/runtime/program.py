"""The frame of every program: its command line, its config, SIGTERM, and its exit status.

A program has a function `run`, which does the work and returns the result, and a function `plan`, which
returns what `--dry-run` prints; it ends in `run_program(SomeConfig, run, plan)`.
"""

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, TypeVar

import typer
import yaml
from pydantic import ValidationError

from trainers.configs.base import StageConfig
from trainers.configs.stage_config import load_stage
from trainers.configs.stage_table import StageKind
from trainers.rendering.cache.folder import RowCache, cache_of_process, temporary_cache
from trainers.runtime import run_dir as files
from trainers.runtime.command_line import make_help, make_typer
from trainers.runtime.endpoints import METER
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ConfigInvalid, ProgramError, as_program_error, has_disk_full_cause
from trainers.runtime.events import EventWriter
from trainers.runtime.launch_command import restart_with_one_gpu
from trainers.runtime.process_tree import die_with_parent
from trainers.runtime.ranks import (
    DEATH_SECONDS,
    EXIT_FAILED,
    RankLost,
    RankWatch,
    current_rank,
    node_count,
    node_rank,
    world_size,
)

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: the same command, started again, resumes the run.

C = TypeVar("C", bound=StageConfig)
RunFunction = Callable[[C, Path, EventWriter], dict[str, Any] | None]
PlanFunction = Callable[[C], dict[str, Any]]

logger = logging.getLogger("trainers")


class StopRequested(BaseException):
    """SIGTERM was received. Not an Exception, so that no handler of a library swallows it."""


class StopFlag:
    """A flag that SIGTERM sets, for work that finishes its step before it stops."""

    requested = False


def run_program(kind: type[C], run: RunFunction[C], plan: PlanFunction[C]) -> NoReturn:
    """Run a program from its command line and exit the process.

    The exit status is 0 with `result.json`, 1 with `error.json` (`error-<rank>.json` where there are several
    ranks), 2 for an invalid command line, or 75 after SIGTERM.
    """

    def command(
        config: Annotated[Path, typer.Option(help="Config of the stage, YAML or JSON.")],
        run_dir: Annotated[Path | None, typer.Option(help="Folder for all output.")] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan as JSON and exit.")] = False,
    ) -> None:
        if dry_run:
            _exit_with(None, lambda: _print_plan(kind, config, plan))
        if run_dir is None:
            raise typer.BadParameter("--run-dir is required unless --dry-run is given.")
        _exit_with(run_dir, lambda: _run_in(run_dir, config, kind, run))

    main = sys.modules["__main__"]
    # A program that is forked has no module specification, and nobody reads its usage.
    module = main.__spec__.name.removesuffix(".__main__") if main.__spec__ else Path(sys.argv[0]).stem
    command_line = make_typer()
    command_line.command(help=make_help(main.__doc__))(command)
    command_line(prog_name=f"python -m {module}")
    raise AssertionError("typer exits the process")


@contextmanager
def stop_after_step() -> Iterator[StopFlag]:
    """Let SIGTERM set `requested` instead of interrupting, until the context ends."""
    stop = StopFlag()

    def set_flag(signum: int, frame: FrameType | None) -> None:
        stop.requested = True

    previous = signal.signal(signal.SIGTERM, set_flag)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)


def is_main_process() -> bool:
    """Return whether this is rank 0, the only process that writes to the run directory."""
    return current_rank() == 0


def _exit_with(run_dir: Path | None, work: Callable[[], None]) -> NoReturn:
    """Do the work and exit with its status; an error is logged and written to the run directory."""
    die_with_parent()
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logger.setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _raise_stop)
    ranks = RankWatch(run_dir) if run_dir is not None and world_size() > 1 else None
    if ranks is not None:
        ranks.start()
    try:
        work()
    except StopRequested:
        # A second signal must not end this process before it has left its ranks.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # Torch's launcher also asks a rank to stop because another one has died.
        if ranks is not None and (lost := ranks.find_lost_rank(wait_seconds=0)) is not None:
            _report_error(run_dir, RankLost(lost), ranks)
            _exit(EXIT_FAILED, ranks)
        logger.info("Stopped on request. The same command resumes the run.")
        _exit(EXIT_STOPPED, ranks)
    except Exception as error:
        _report_error(run_dir, error, ranks)
        _exit(EXIT_FAILED, ranks)
    _exit(0, ranks)


def _print_plan(kind: type[C], config_path: Path, plan: PlanFunction[C]) -> None:
    config = _load_config(kind, config_path)
    with temporary_cache() as cache:
        config, mixture = _mix_datasets(config, lambda: cache)
        with _name_origins(config):
            planned = plan(config) | mixture
    if is_main_process():
        sys.stdout.write(json.dumps(planned, ensure_ascii=False) + "\n")


def _run_in(run_dir: Path, config_path: Path, kind: type[C], run: RunFunction[C]) -> None:
    _create_run_dir(run_dir)
    if files.read_result(run_dir) is not None:
        logger.info("%s exists: this run has already succeeded.", run_dir / files.RESULT)
        return
    _remove_errors(run_dir)
    config = _load_config(kind, config_path)
    restart_with_one_gpu(config)
    copy = run_dir / files.CONFIG
    if is_main_process() and config_path.resolve() != copy.resolve():
        files.write_json(copy, config.model_dump(mode="json"))
    METER.open(run_dir)
    with EventWriter(run_dir / files.EVENTS if is_main_process() else None) as events:
        config, mixture = _mix_datasets(config, lambda: cache_of_process(run_dir))
        with _name_origins(config):
            result = run(config, run_dir, events)
    # Without a result, the worker starts the program again for the rest of the work.
    if result is not None and is_main_process():
        files.write_result(run_dir, result | mixture)


def _mix_datasets(config: C, open_cache: Callable[[], RowCache]) -> tuple[C, dict[str, Any]]:
    """Return the config with one file in place of a mixture, and the part of the result about it."""
    # Most programs read no mixture.
    from trainers.rendering.mixtures import has_mixture, mix_datasets

    if not has_mixture(config):
        return config, {}
    config, mixed = mix_datasets(config, open_cache())
    for part in mixed:
        logger.info(
            "%d rows of dataset %d of the mixture%s.",
            part.rows,
            part.position + 1,
            f", {part.repeats}" if part.repeats else "",
        )
    return config, {"mixture": [part.model_dump() for part in mixed]}


def _name_origins(config: StageConfig) -> AbstractContextManager[None]:
    from trainers.rendering.mixtures import name_origins

    return name_origins(config)


def _remove_errors(run_dir: Path) -> None:
    """Remove the errors of an earlier start: each rank its own, and the first those of no rank."""
    (run_dir / f"error-{current_rank()}.json").unlink(missing_ok=True)
    if is_main_process():
        for path in files.list_errors(run_dir):
            number = path.stem.removeprefix("error-")
            if not number.isdecimal() or int(number) >= world_size():
                path.unlink(missing_ok=True)


def _create_run_dir(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if has_disk_full_cause(error):
            raise
        raise ConfigInvalid(
            f"The run directory {run_dir} cannot be created: {error.strerror}.",
            "Choose another folder with --run-dir.",
        ) from error


def _load_config(kind: type[C], path: Path) -> C:
    try:
        config = load_stage(path)
    except OSError as error:
        raise ConfigInvalid(
            f"The config {path} cannot be read: {error.strerror}.", "Choose a file with --config."
        ) from error
    except ValidationError as error:
        raise ConfigInvalid(
            f"The config {path} is invalid. {_describe_fields(error)}", "Correct the named fields."
        ) from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigInvalid(f"The config {path} is invalid: {error}", "Correct the file.") from error
    if not isinstance(config, kind):
        raise ConfigInvalid(
            f"The config {path} is for the stage {config.stage!r}, which this program does not run.",
            f"Run `python -m trainers.{config.stage}` instead.",
        )
    return config


def _describe_fields(error: ValidationError) -> str:
    """Describe each invalid field in a sentence, by its path without the kind of stage."""
    sentences = []
    for fault in error.errors(include_url=False):
        path = fault["loc"][1:] if fault["loc"] and fault["loc"][0] in {*StageKind} else fault["loc"]
        message = fault["msg"].removeprefix("Value error, ")
        sentences.append(f"{'.'.join(map(str, path))}: {message}." if path else f"{message}.")
    return " ".join(sentences)


def _report_error(run_dir: Path | None, error: Exception, ranks: RankWatch | None) -> None:
    """Write the error to the run directory, then the traceback and the error to the log."""
    # Torch's launcher asks all ranks to stop when the first one has failed.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if ranks is not None:
        ranks.prepare_end()
    # At once: other ranks fail because this one has, and the earliest error is the cause.
    reported = as_program_error(error)
    _write_error(run_dir, reported)
    # The person's config is wrong, so a traceback of the program would not help.
    if not isinstance(error, ConfigInvalid):
        traceback.print_exception(error)
    is_consequence = reported.code in (ErrorCode.internal_error, ErrorCode.rank_lost)
    if ranks is not None and is_consequence and (lost := ranks.find_lost_rank(DEATH_SECONDS)) is not None:
        reported = RankLost(lost)
        _write_error(run_dir, reported)
    logger.error("%s: %s %s", reported.code, reported.message, reported.hint or "")


def _write_error(run_dir: Path | None, error: ProgramError) -> None:
    if run_dir is None:
        return
    try:
        rank = current_rank() if world_size() > 1 else None
        files.write_error(run_dir, error, rank, node_rank() if node_count() > 1 else None)
    except OSError as unwritable:  # On a full disk the log is the only place left.
        logger.error("The error could not be written to the run directory: %s", unwritable)


def _raise_stop(signum: int, frame: FrameType | None) -> None:
    raise StopRequested


def _exit(status: int, ranks: RankWatch | None) -> NoReturn:
    if ranks is not None:
        ranks.leave()
    # Threads of torch and tokenizers can abort at interpreter exit, after everything is written, and would
    # turn a success into a failure.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
