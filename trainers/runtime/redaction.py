"""Removal of secrets from text that is stored or shown: logs, events, errors and published files."""

import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TextIO

REPLACEMENT = "***"
# A shorter value would also occur by chance, and hide text that is no secret.
MIN_SECRET_CHARACTERS = 8
MAX_LINE_CHARACTERS = 1 << 20

_PATTERNS = [
    (re.compile(r"\bts_[A-Za-z0-9_-]{16,}"), "ts_***"),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "hf_***"),
    (re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"), "sk-***"),
    (re.compile(r"\bwhsec_[A-Za-z0-9+/=]{16,}"), "whsec_***"),
    (re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/=-]{6,}"), r"\1***"),
    (re.compile(r"(://[^/:@\s]*:)[^@/\s]+@"), r"\1***@"),
]
_added: set[str] = set()
_SECRET_VARIABLE = re.compile(
    r"(TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY|ENCRYPTION_KEY|WORKER_KEY)$", re.IGNORECASE
)
# Names of files with secrets: a path itself need not be hidden in a log.
_SECRET_PATH_VARIABLE = re.compile(r"(TOKEN|SECRET|PASSWORD|KEY)_(PATH|FILE)$", re.IGNORECASE)


def is_secret_variable(name: str) -> bool:
    """Return whether an environment variable by this name contains a secret, or names a file with one."""
    return any(pattern.search(name) for pattern in (_SECRET_VARIABLE, _SECRET_PATH_VARIABLE))


def redact(text: str) -> str:
    """Replace API keys, tokens, passwords in URLs, and the values of this process's secret variables."""
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    values = _secret_values()
    return values.sub(REPLACEMENT, text) if values is not None else text


def add_secrets(values: Iterable[str]) -> None:
    """Remove these values as well, which are not variables of this process."""
    _added.update(value for value in values if len(value) >= MIN_SECRET_CHARACTERS)
    _secret_values.cache_clear()


def redact_file(path: Path) -> None:
    """Remove secrets from a text file in place. A file without any, the normal case, is only read."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        if all(redact(line) == line for line in _read_lines(file)):
            return
    temporary = path.with_name(f".{path.name}.redacted")
    with (
        path.open(encoding="utf-8", errors="surrogateescape", newline="") as file,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as clean,
    ):
        clean.writelines(map(redact, _read_lines(file)))
    temporary.replace(path)


def _read_lines(file: TextIO) -> Iterator[str]:
    """Yield lines; a longer one is cut, so that memory stays bounded."""
    return iter(lambda: file.readline(MAX_LINE_CHARACTERS), "")


@lru_cache
def _secret_values() -> re.Pattern[str] | None:
    """Return a pattern of the values of variables such as HF_TOKEN and AWS_SECRET_ACCESS_KEY."""
    values = {
        value
        for name, value in os.environ.items()
        if _SECRET_VARIABLE.search(name) and len(value) >= MIN_SECRET_CHARACTERS
    }
    # A long value first: it may contain a short one.
    ordered = sorted(values | _added, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None
