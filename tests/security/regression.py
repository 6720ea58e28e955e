"""Planted regressions: each protection is removed once, to prove that its tests notice.

A module of this folder lists its regressions as `REGRESSIONS`. `test_regressions.py` runs this file for each
module, in a process of its own:

    python -m tests.security.regression tests.security.test_authentication

It removes one protection after the other, runs the tests that must fail without it, and prints as JSON which
of them did not.
"""

import importlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Regression:
    """A protection that is replaced by code without it."""

    name: str
    """The mistake, such as "the Host header is not checked"."""
    target: str
    """What is replaced, as `module:attribute`; the module is the one that uses it."""
    replacement: Any
    caught_by: str
    """Name of the test that must fail."""


class _FirstFailure:
    """A plugin that ends at the first test that failed in its body; errors of fixtures do not count."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self._session = session

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.failed:
            self.names.add(report.nodeid.rpartition("::")[2].partition("[")[0])
            self._session.shouldfail = "the regression is noticed"


def plant(regression: Regression, patch: pytest.MonkeyPatch) -> None:
    """Replace the protection until the patch is undone."""
    module, _, path = regression.target.partition(":")
    holder: Any = importlib.import_module(module)
    *parents, attribute = path.split(".")
    for parent in parents:
        holder = getattr(holder, parent)
    if isinstance(holder, dict):
        patch.setitem(holder, attribute, regression.replacement)
    else:
        patch.setattr(holder, attribute, regression.replacement)


def find_unnoticed(module: str) -> list[str]:
    """Return the names of a module's regressions that its tests do not notice."""
    regressions: list[Regression] = importlib.import_module(module).REGRESSIONS
    file = FOLDER / f"{module.rpartition('.')[2]}.py"
    return [regression.name for regression in regressions if not _is_noticed(regression, file)]


def _is_noticed(regression: Regression, file: Path) -> bool:
    failed = _FirstFailure()
    options = ["-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:randomly", "-W", "default"]
    with pytest.MonkeyPatch.context() as patch:
        plant(regression, patch)
        pytest.main([f"{file}::{regression.caught_by}", *options], plugins=[failed])
    return regression.caught_by in failed.names


def accept(*_: Any, **__: Any) -> bool:
    """Replace a check that returns whether something is allowed."""
    return True


def ignore(*_: Any, **__: Any) -> None:
    """Replace a check that raises for what is not allowed."""


def unchanged(*values: Any) -> Any:
    """Replace a function that cleans its first argument."""
    return values[0]


if __name__ == "__main__":
    unnoticed = find_unnoticed(sys.argv[1])
    print(json.dumps(unnoticed), file=sys.stderr)
    sys.exit(1 if unnoticed else 0)
