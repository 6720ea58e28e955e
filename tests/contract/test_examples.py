"""The examples of property tests depend neither on the run nor on the tests before."""

from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.properties import THOROUGH


def draw() -> list[int]:
    drawn: list[int] = []

    @settings(max_examples=100)
    @given(st.integers(0, 1_000_000))
    def collect(number: int) -> None:
        drawn.append(number)

    collect()
    return drawn


def test_examples_do_not_depend_on_the_modules_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = draw()
    (tmp_path / "module_with_constants.py").write_text(f"NUMBERS = {list(range(777_000, 777_400))}\n")
    monkeypatch.syspath_prepend(tmp_path)
    import_module("module_with_constants")
    assert draw() == before


def test_only_the_thorough_profile_has_other_examples_in_each_run() -> None:
    assert settings().derandomize
    assert settings().deadline is None
    assert not THOROUGH.derandomize
