"""Tests that need a program or a right fail in CI where it is missing: a skipped test finds no fault.

Method: the one function that skips for such a reason is called both ways, and no other test skips by itself.
"""

import re

import pytest

from tests import services
from tests.conftest import ROOT

OWN_SKIP = re.compile(r"pytest\.skip\([^)]*(not installed|root)|skipif\([^)]*geteuid\(\) != 0")


def test_a_missing_program_fails_a_test_where_programs_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "REQUIRED", True)
    with pytest.raises(pytest.fail.Exception, match="no-such-program is not installed"):
        services.find_program("no-such-program")
    monkeypatch.setattr(services, "REQUIRED", False)
    with pytest.raises(pytest.skip.Exception):
        services.find_program("no-such-program")
    assert "export REQUIRE_PROGRAMS=1" in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_no_test_skips_for_a_missing_program_by_itself() -> None:
    sources = [
        path for path in (ROOT / "tests").rglob("*.py") if path.parts[-2:] != ("contract", "test_skips.py")
    ]
    found = [path for path in sources if OWN_SKIP.search(path.read_text(encoding="utf-8"))]
    assert [path.relative_to(ROOT).as_posix() for path in found] == []
