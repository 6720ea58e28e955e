"""What all commands share: where output goes, JSON, tables, and the exit codes.

Data goes to standard output, and everything else to standard error, so that a pipe receives data alone.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import IntEnum
from typing import Annotated, Any, NoReturn

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.client.api.errors import (
    AccessRefused,
    ClientError,
    RequestRefused,
    ServerUnreachable,
    ServiceFailure,
    WaitTimeout,
    WorkFailed,
)
from app.client.clients import Client

DetachOption = Annotated[
    bool, typer.Option("--detach", "-d", help="Return at once; what was started continues.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
# Short enough for a person who waits; what was connected once is waited for longer.
RETRY_SECONDS = 3.0
# Tables are not folded where no terminal has a width.
FILE_WIDTH = 400
# What a name, a log or the reply of a model could change the terminal by: sequences of escape, then the rest
# of the control characters but tabs and line ends.
CONTROLS = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


class ExitCode(IntEnum):
    """The exit codes, which scripts may rely on."""

    ok = 0
    failed = 1
    """A job has failed, a gate is not met, or a file has faults."""
    usage = 2
    """The command or its request is wrong; nothing was started."""
    unavailable = 3
    """The service does not respond, refuses the key, or cannot work now."""
    timeout = 4
    """What was waited for continues."""
    interrupted = 130
    """Ctrl-C."""


class TextConsole(Console):
    """A console that prints texts as they are, without markup, emoji codes and control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, soft_wrap=True, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a text without what would control the terminal."""
        return super().render_str(remove_controls(text), **options)

    def on_broken_pipe(self) -> NoReturn:
        """Exit, because nobody reads any more."""
        leave_pipe()


def remove_controls(text: str) -> str:
    """Return a text without the sequences that control a terminal."""
    return CONTROLS.sub("", text)


def leave_pipe() -> NoReturn:
    """Exit with success: the reader, such as `head`, has what it wants."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(ExitCode.ok)


def connect() -> Client:
    """Return a client of the service of this command."""
    return Client(retry_seconds=RETRY_SECONDS)


def out() -> Console:
    """Return the console for data: without colours if it is not a terminal."""
    return TextConsole(width=None if sys.stdout.isatty() else FILE_WIDTH)


def err() -> Console:
    """Return the console for progress, hints and errors."""
    return TextConsole(stderr=True)


def note(text: str) -> None:
    """Print a sentence for a person."""
    err().print(text)


def print_json(value: Any) -> None:
    """Print views, and lists and mappings of them, as JSON."""
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False)
    try:
        # JSON escapes all control characters but these.
        print(re.sub(r"[\x7f-\x9f]", _escape, text), flush=True)  # noqa: T201 — the output of the command
    except BrokenPipeError:
        leave_pipe()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> None:
    """Print rows as a table, or a sentence if there are none."""
    cells = [[_cell(value) for value in row] for row in rows]
    if not cells:
        note(empty)
        return
    out().print(make_table(columns, cells))


def make_table(columns: Sequence[str], cells: Iterable[Sequence[str]]) -> Table:
    """Return a plain table, which is readable without lines and copies well."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column == "id", overflow="fold")
    for row in cells:
        table.add_row(*row)
    return table


def print_error(error: ClientError) -> None:
    """Print an error in its three parts: what is wrong and was expected, each field, and what to do."""
    console = err()
    console.print("[bold red]Error:[/]", end=" ", markup=True)
    console.print(error.message)
    for each in getattr(error, "fields", []):
        if str(each.get("message", "")) not in error.message:
            console.print(f"  {each.get('field')}: {each.get('message')}")
    if error.hint:
        console.print(f"  {error.hint}")


def exit_code_of(error: ClientError) -> ExitCode:
    """Return the exit code of an error."""
    if isinstance(error, WorkFailed):
        return ExitCode.failed
    if isinstance(error, WaitTimeout):
        return ExitCode.timeout
    if isinstance(error, ServerUnreachable | AccessRefused | ServiceFailure):
        return ExitCode.unavailable
    if isinstance(error, RequestRefused):
        return ExitCode.usage
    return ExitCode.usage


def format_age(moment: datetime | None) -> str:
    """Return how long ago a moment was."""
    if moment is None:
        return ""
    seconds = max(0, (datetime.now(UTC) - moment).total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def count_of(n: int, noun: str) -> str:
    """Return a number with its noun, such as "1 fault" or "1,200 rows"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def format_seconds(seconds: float) -> str:
    """Return a duration for a person, by its largest unit."""
    for unit, size in (("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def format_bytes(n_bytes: int) -> str:
    """Return a size for a person."""
    size = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
