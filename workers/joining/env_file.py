"""The file with the variables of a host's worker. It contains secrets, so only its owner can read it."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

NAME = "worker.env"
HEADER = """\
# Written by `python -m workers join`, which keeps all variables that it does not know.
# Contains secrets: do not copy it to another host, which joins with a key of its own.
"""


def read_env_file(path: Path) -> dict[str, str]:
    """Return the variables of a file; none if there is no file."""
    if not path.is_file():
        return {}
    return {
        name: value for name, value in dotenv_values(path, interpolate=False).items() if value is not None
    }


def load_env_file(path: Path) -> None:
    """Add the variables of a file to those of this process, which precede them; raises FileNotFoundError."""
    if not path.is_file():
        raise FileNotFoundError(path)
    for name, value in read_env_file(path).items():
        os.environ.setdefault(name, value)


def read_mode(path: Path) -> int:
    """Return the rights of a file, such as 0o600."""
    return stat.S_IMODE(path.stat().st_mode)


def is_readable_by_others(path: Path) -> bool:
    """Return whether another user than the owner has any right to a file."""
    return bool(read_mode(path) & (stat.S_IRWXG | stat.S_IRWXO))


def write_env_file(path: Path, values: Mapping[str, str], owner: tuple[int, int] | None) -> None:
    """Replace the file by one that only its owner can read; it never exists with other rights.

    Raises:
        ValueError: A value cannot be written on one line.
    """
    lines = [f"{name}={_quote(value)}\n" for name, value in values.items()]
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(HEADER + "".join(lines))
        file.flush()
        os.fsync(file.fileno())
    if owner is not None:
        os.chown(temporary, *owner)
    temporary.replace(path)


def _quote(value: str) -> str:
    """Return a value in single quotes, in which only a quote and a backslash are escaped."""
    if "\n" in value or "\r" in value or "\0" in value:
        raise ValueError("A variable must not contain a line break.")
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
