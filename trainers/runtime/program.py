"""The frame of every program: its command line, its config, SIGTERM, and its exit status.

A program has a function `run`, which does the work and returns the result, and a function `plan`, which
returns what `--dry-run` prints; it ends in `run_program(SomeConfig, run, plan)`.
"""

import argparse
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import ValidationError

from trainers.configs.base import StageConfig
from trainers.configs.stage_config import load_stage
from trainers.configs.stage_table import StageKind
from trainers.runtime import run_dir as files
from trainers.runtime.errors import ConfigInvalid, ProgramError, as_program_error, has_disk_full_cause
from trainers.runtime.events import EventWriter

EXIT_FAILED = 1
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: the same command, started again, resumes the run.

C = TypeVar("C", bound=StageConfig)
Run = Callable[[C, Path, EventWriter], dict[str, Any]]
Plan = Callable[[C], dict[str, Any]]

logger = logging.getLogger("trainers")


class StopRequested(BaseException):
    """SIGTERM was received. Not an Exception, so that no handler of a library swallows it."""


class StopFlag:
    """Whether SIGTERM was received, for work that finishes its step before it stops."""

    requested = False


def run_program(kind: type[C], run: Run[C], plan: Plan[C]) -> NoReturn:
    """Run a program from its command line and exit the process.

    The exit status is 0 with `result.json`, 1 with `error.json`, or 75 after SIGTERM.
    """
    arguments = _parse_arguments()
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logger.setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _raise_stop)
    try:
        if arguments.dry_run:
            planned = plan(_load_config(kind, arguments.config))
            sys.stdout.write(json.dumps(planned, ensure_ascii=False) + "\n")
        else:
            _run_in(arguments.run_dir, arguments.config, kind, run)
    except StopRequested:
        logger.info("Stopped on request. The same command resumes the run.")
        _exit(EXIT_STOPPED)
    except ConfigInvalid as error:
        # The person's config is wrong, so a traceback of the program would not help.
        _report_error(arguments, error)
        _exit(EXIT_FAILED)
    except Exception as error:
        traceback.print_exc()
        _report_error(arguments, as_program_error(error))
        _exit(EXIT_FAILED)
    _exit(0)


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
    return os.environ.get("RANK", "0") == "0"


def _parse_arguments() -> argparse.Namespace:
    program = Path(sys.argv[0])
    path = program.parent if program.stem == "__main__" else program.with_suffix("")
    parser = argparse.ArgumentParser(
        prog=f"python -m {path.parent.name}.{path.name}",
        description=sys.modules["__main__"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="config of the stage, YAML or JSON")
    parser.add_argument("--run-dir", type=Path, help="folder for all output")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved plan as JSON and exit")
    arguments = parser.parse_args()
    if arguments.run_dir is None and not arguments.dry_run:
        parser.error("--run-dir is required unless --dry-run is given")
    return arguments


def _run_in(run_dir: Path, config_path: Path, kind: type[C], run: Run[C]) -> None:
    _create_run_dir(run_dir)
    if files.read_result(run_dir) is not None:
        logger.info("%s exists: this run has already succeeded.", run_dir / files.RESULT)
        return
    if is_main_process():
        (run_dir / files.ERROR).unlink(missing_ok=True)
    config = _load_config(kind, config_path)
    copy = run_dir / files.CONFIG
    if is_main_process() and config_path.resolve() != copy.resolve():
        files.write_json(copy, config.model_dump(mode="json"))
    with EventWriter(run_dir / files.EVENTS if is_main_process() else None) as events:
        result = run(config, run_dir, events)
    if is_main_process():
        files.write_result(run_dir, result)


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


def _report_error(arguments: argparse.Namespace, error: ProgramError) -> None:
    logger.error("%s: %s %s", error.code, error.message, error.hint or "")
    if arguments.dry_run or not is_main_process():
        return
    try:
        files.write_error(arguments.run_dir, error.code, error.message, error.hint or "")
    except OSError as unwritable:  # On a full disk the log is the only place left.
        logger.error("error.json could not be written: %s", unwritable)


def _raise_stop(signum: int, frame: FrameType | None) -> None:
    raise StopRequested


def _exit(status: int) -> NoReturn:
    # Threads of torch and tokenizers can abort at interpreter exit, after everything is written, and would
    # turn a success into a failure.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
