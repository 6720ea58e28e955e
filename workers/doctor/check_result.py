"""The result of one check of a host."""

from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict

from trainers.runtime.redaction import redact

MAX_TEXT_CHARACTERS = 300


class CheckState(StrEnum):
    """Whether a worker can work with what was found."""

    ok = "ok"
    warning = "warning"
    error = "error"


class CheckResult(BaseModel):
    """What a check has found on a host, and how to fix it; texts contain no secrets and are bounded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    state: CheckState
    found: str
    fix: str = ""

    @classmethod
    def ok(cls, name: str, found: str) -> Self:
        """Return the result of a check that found nothing wrong."""
        return cls._create(name, CheckState.ok, found, "")

    @classmethod
    def warning(cls, name: str, found: str, fix: str) -> Self:
        """Return a result with which a worker works, but worse than it could."""
        return cls._create(name, CheckState.warning, found, fix)

    @classmethod
    def error(cls, name: str, found: str, fix: str) -> Self:
        """Return a result with which some or all work of a worker fails."""
        return cls._create(name, CheckState.error, found, fix)

    @classmethod
    def _create(cls, name: str, state: CheckState, found: str, fix: str) -> Self:
        return cls(name=name, state=state, found=_shorten(found), fix=_shorten(fix))


def _shorten(text: str) -> str:
    line = " ".join(redact(text).split())
    return line if len(line) <= MAX_TEXT_CHARACTERS else f"{line[: MAX_TEXT_CHARACTERS - 1]}…"
