"""Planted regressions: each protection is removed once, to prove that its tests notice.

A module of this folder lists its regressions as `REGRESSIONS`. `test_regressions.py` runs this file for all
modules, in a process of its own:

    python -m tests.security.regression tests.security.test_authentication …

It collects the tests once. For each module it forks, so that no module's state reaches another one; the child
removes one protection after the other and runs the tests that must fail without it. At the end it prints as
JSON which regressions no test noticed.
"""

import importlib
import json
import multiprocessing
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

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


class _Regressions:
    """A plugin that runs the collected tests once for each regression that they must notice."""

    def __init__(self, modules: list[str]) -> None:
        self._modules = modules
        self.unnoticed: dict[str, list[str]] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        context = multiprocessing.get_context("fork")
        for module in self._modules:
            regressions: list[Regression] = importlib.import_module(module).REGRESSIONS
            tests = [
                test
                for test in session.items
                if isinstance(test, pytest.Function) and test.module.__name__ == module
            ]
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_send_unnoticed, args=(regressions, tests, sender))
            process.start()
            sender.close()
            self.unnoticed[module] = receiver.recv()
            process.join()
        return True


def _send_unnoticed(regressions: list[Regression], tests: list[pytest.Function], sender: Connection) -> None:
    sender.send([regression.name for regression in regressions if not _is_noticed(regression, tests)])


def _is_noticed(regression: Regression, tests: list[pytest.Function]) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        plant(regression, patch)
        noticed = any(_fails(test) for test in tests if test.originalname == regression.caught_by)
        session: Any = tests[0].session
        session._setupstate.teardown_exact(session)  # Tears down all fixtures but those of the session.
    return noticed


def _fails(test: pytest.Function) -> bool:
    """Return whether the body of the test fails; errors of fixtures do not count."""
    reports = runtestprotocol(test, log=False, nextitem=test.parent)  # type: ignore[arg-type]
    return any(report.when == "call" and report.failed for report in reports)


def find_unnoticed(modules: list[str]) -> dict[str, list[str]]:
    """Return the names of each module's regressions that its tests do not notice."""
    found = _Regressions(modules)
    files = [str(FOLDER / f"{module.rpartition('.')[2]}.py") for module in modules]
    # Tracebacks of Python, because pytest's print each argument, and some attacks are large.
    pytest.main(
        [*files, "-q", "--no-header", "--tb=native", "-p", "no:cacheprovider", "-W", "default"],
        plugins=[found],
    )
    return found.unnoticed


def accept(*_: Any, **__: Any) -> bool:
    """Replace a check that returns whether something is allowed."""
    return True


def ignore(*_: Any, **__: Any) -> None:
    """Replace a check that raises for what is not allowed."""


def unchanged(*values: Any) -> Any:
    """Replace a function that cleans its first argument."""
    return values[0]


if __name__ == "__main__":
    print(json.dumps(find_unnoticed(sys.argv[1:])), file=sys.stderr)
