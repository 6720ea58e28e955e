"""The edge of every program: arguments, config, signals, and what is left behind after a failure."""

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
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: start the program again to go on.

C = TypeVar("C", bound=StageConfig)
Work = Callable[[C, Path, EventWriter], dict[str, Any]]
Plan = Callable[[C], dict[str, Any]]

logger = logging.getLogger("trainers")


class StopRequested(BaseException):
    """SIGTERM arrived where nothing needs to be finished first. Not an Exception: nothing may swallow it."""


class StopFlag:
    """Whether SIGTERM has arrived, for work that finishes a step before it stops."""

    requested = False


def run_program(kind: type[C], work: Work[C], plan: Plan[C]) -> NoReturn:
    """Run a program by its command line and exit: 0 with `result.json`, 1 with `error.json`, 75 when stopped.

    `work` returns the result, `plan` what `--dry-run` prints.
    """
    arguments = _arguments()
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    logger.setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, _raise_stop)
    try:
        _run(kind, work, plan, arguments)
    except StopRequested:
        logger.info("Stopped on request; the same command goes on from here.")
        _exit(EXIT_STOPPED)
    except ConfigInvalid as error:
        # A person's typing mistake: where in the program it was noticed tells nothing.
        _leave_error(arguments, error)
        _exit(EXIT_FAILED)
    except Exception as error:
        traceback.print_exc()
        _leave_error(arguments, as_program_error(error))
        _exit(EXIT_FAILED)
    _exit(0)


@contextmanager
def stop_after_step() -> Iterator[StopFlag]:
    """While this holds, SIGTERM sets `requested` and does not interrupt."""
    stop = StopFlag()

    def remember(signum: int, frame: FrameType | None) -> None:
        stop.requested = True

    previous = signal.signal(signal.SIGTERM, remember)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)


def is_main_process() -> bool:
    """Whether this is the process that writes, as torchrun and accelerate number them."""
    return os.environ.get("RANK", "0") == "0"


def _arguments() -> argparse.Namespace:
    program = Path(sys.argv[0])
    path = program.parent if program.stem == "__main__" else program.with_suffix("")
    parser = argparse.ArgumentParser(
        prog=f"python -m {path.parent.name}.{path.name}",
        description=sys.modules["__main__"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="the stage's config, YAML or JSON")
    parser.add_argument("--run-dir", type=Path, help="the folder that receives all output")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, as JSON")
    arguments = parser.parse_args()
    if arguments.run_dir is None and not arguments.dry_run:
        parser.error("--run-dir is required unless --dry-run is given")
    return arguments


def _run(kind: type[C], work: Work[C], plan: Plan[C], arguments: argparse.Namespace) -> None:
    if arguments.dry_run:
        sys.stdout.write(json.dumps(plan(_load(kind, arguments.config)), ensure_ascii=False) + "\n")
        return
    run_dir: Path = arguments.run_dir
    _make(run_dir)
    if files.read_result(run_dir) is not None:
        logger.info("%s exists: this run has already succeeded.", run_dir / files.RESULT)
        return
    if is_main_process():
        (run_dir / files.ERROR).unlink(missing_ok=True)
    config = _load(kind, arguments.config)
    if is_main_process():
        _keep_config(config, arguments.config, run_dir)
    with EventWriter(run_dir / files.EVENTS if is_main_process() else None) as report:
        result = work(config, run_dir, report)
    if is_main_process():
        files.write_result(run_dir, result)


def _make(run_dir: Path) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if has_disk_full_cause(error):
            raise
        raise ConfigInvalid(
            f"The run directory {run_dir} cannot be made: {error.strerror}.",
            "Name another folder with --run-dir.",
        ) from error


def _load(kind: type[C], path: Path) -> C:
    try:
        config = load_stage(path)
    except OSError as error:
        raise ConfigInvalid(
            f"The config {path} cannot be read: {error.strerror}.", "Name a file with --config."
        ) from error
    except ValidationError as error:
        raise ConfigInvalid(
            f"The config {path} cannot be used. {_told(error)}", "Correct the named fields."
        ) from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigInvalid(f"The config {path} cannot be used: {error}", "Correct the file.") from error
    if not isinstance(config, kind):
        raise ConfigInvalid(
            f"The config {path} is for the stage {config.stage!r}, which this program does not run.",
            f"Start `python -m trainers.{config.stage}` instead.",
        )
    return config


def _told(error: ValidationError) -> str:
    """Each wrong field in a sentence; a path begins with the kind of stage where that is known."""
    sentences = []
    for fault in error.errors(include_url=False):
        path = fault["loc"][1:] if fault["loc"] and fault["loc"][0] in {*StageKind} else fault["loc"]
        message = fault["msg"].removeprefix("Value error, ")
        sentences.append(f"{'.'.join(map(str, path))}: {message}." if path else f"{message}.")
    return " ".join(sentences)


def _keep_config(config: StageConfig, path: Path, run_dir: Path) -> None:
    kept = run_dir / files.CONFIG
    if path.resolve() != kept.resolve():
        files.write_json(kept, config.model_dump(mode="json"))


def _leave_error(arguments: argparse.Namespace, error: ProgramError) -> None:
    logger.error("%s: %s %s", error.code, error.message, error.hint or "")
    if arguments.dry_run or not is_main_process():
        return
    try:
        files.write_error(arguments.run_dir, error.code, error.message, error.hint or "")
    except OSError as unwritable:  # The disk may be full: then the log has to do.
        logger.error("error.json could not be written: %s", unwritable)


def _raise_stop(signum: int, frame: FrameType | None) -> None:
    raise StopRequested


def _exit(status: int) -> NoReturn:
    # Threads of torch and tokenizers may abort at interpreter exit after all is written, and would turn
    # a success into a failure.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
