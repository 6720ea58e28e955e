"""The way of a person who has only the page: from a raw file to the tuned model next to its base in a chat.

Method: real training on the CPU; visible elements are clicked, and no address is entered but the first. The
test prints the clicks and the seconds of each part.
"""

import csv
import io
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.platform import ROOT, Platform
from tests.e2e.web import conftest
from tests.e2e.web.conftest import Pages, find_violations
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems

ROWS = 600
SECONDS = 300_000
# The lines at which rows with a fault are planted, and the reason that the page shows.
FAULTS = {
    12: ("Mo has 2 hats.,\n", "answer is empty"),
    26: ("A row with one cell\n", "has 1 cell, "),
    41: ("Ada has 3 figs, and picks 2 more.,So 3 + 2 = 5. #### 5\n", "has 3 cells"),
    61: (",So 3 + 2 = 5. #### 5\n", "question is empty"),
}
QUESTION = "Kofi has 3 cups and picks 4 more. How many cups does Kofi have?"


class Walk:
    """A person at the page, whose clicks and seconds are counted for each part of the way."""

    def __init__(self, page: Page, pages: Pages) -> None:
        self.page = page
        self._pages = pages
        self._clicks = 0
        self.parts: list[tuple[str, int, float]] = []

    def click(self, role: str, name: str | re.Pattern[str], within: str = "body") -> None:
        """Click the first visible element with this role and name."""
        found = self.page.locator(within).get_by_role(role, name=name, exact=isinstance(name, str))  # type: ignore[arg-type]
        found.filter(visible=True).first.click()
        self._clicks += 1

    def choose_file(self, path: Path) -> None:
        """Choose a file in the dialog of the browser, which is two clicks."""
        with self.page.expect_file_chooser() as dialog:
            self.page.locator("#upload-file").click()
        dialog.value.set_files(path)
        self._clicks += 2

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count a part of the way, whose last page is looked at."""
        self._clicks, start = 0, time.monotonic()
        yield
        self.parts.append((name, self._clicks, time.monotonic() - start))
        print(f"{name}: {self._clicks} clicks, {self.parts[-1][2]:.1f} s")
        self._pages.screenshot(self.page, f"newcomer-{len(self.parts)}")
        assert find_violations(self.page) == []


def write_files(folder: Path) -> tuple[Path, Path]:
    """Write the raw table, with faults, and the corrected one."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["question", "answer"])
    problems = generate_problems(ROWS, ProblemSplit.train, seed=3)
    table.writerows([row["question"], row["answer"].replace("\n", " ")] for row in problems)
    lines = text.getvalue().splitlines(keepends=True)
    raw, corrected = folder / "raw" / "problems.csv", folder / "problems.csv"
    corrected.write_text("".join(lines))
    for number, (line, _) in FAULTS.items():
        lines.insert(number - 1, line)
    raw.parent.mkdir()
    raw.write_text("".join(lines))
    return raw, corrected


@pytest.fixture
def example_model(tmp_path: Path) -> Path:
    """Return the example model as a service trains it; that of other tests has learned too little."""
    out = tmp_path / "example" / "starter"
    subprocess.run([sys.executable, "-m", "trainers.starter", "--out", str(out)], check=True, cwd=ROOT)
    return out


@pytest.fixture
def walk(tmp_path: Path, example_model: Path, chromium: Browser) -> Iterator[Walk]:
    """Yield a person at the first page of a service with a worker and the example model."""
    platform = Platform(tmp_path / "data", example_model)
    try:
        platform.start_service("--with-examples")
        pages = Pages(platform, chromium, {})
        page = pages.open("/")
        page.set_default_timeout(SECONDS)
        expect.set_options(timeout=SECONDS)
        yield Walk(page, pages)
        assert pages.messages == []
        pages.close()
    finally:
        expect.set_options(timeout=conftest.SECONDS)
        platform.stop()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_newcomer_gets_from_a_raw_file_to_a_better_model_by_the_page_alone(
    walk: Walk, tmp_path: Path
) -> None:
    page = walk.page
    raw, corrected = write_files(tmp_path)
    with walk.part("upload a raw file, read its faults"):
        walk.click("link", "Upload a dataset")
        walk.choose_file(raw)
        walk.click("button", "Upload")
        rows = page.locator(".fault-table tbody tr")
        expect(rows).to_have_count(len(FAULTS))
        for row, (line, (_, reason)) in zip(rows.all(), FAULTS.items(), strict=True):
            expect(row).to_contain_text(f"line {line}")
            expect(row).to_contain_text(reason)
    with walk.part("upload the corrected file"):
        walk.choose_file(corrected)
        walk.click("button", "Upload")
        expect(page.locator("h1")).to_contain_text("Usable")
    with walk.part("new job: goal, preflight, submit"):
        walk.click("link", "Train on it")
        walk.click("link", "Train, compare, then serve")
        walk.click("button", "Preflight")
        expect(page.locator("#preflight article .status-succeeded")).to_have_count(3)
        walk.click("button", "Submit job")
        expect(page.locator("#runs tr")).to_have_count(4)
    with walk.part("watch it train"):
        walk.click("link", "sft", "#runs")
        expect(page.locator('[data-chart="loss"] canvas')).to_be_visible()
        expect(page.locator("#log")).to_contain_text("step 10 of 120")
        expect(page.locator("h1")).to_contain_text("Succeeded")
        lowest, first = lowest_and_first_loss(page)
        assert lowest < first / 2
    with walk.part("evaluation and comparison with the base"):
        walk.click("link", re.compile("evaluate"), ".run-stages")
        walk.click("link", re.compile("maths_exact_match"), ".run-outcome")
        expect(page.locator(".verdict").first).to_have_text("better")
        expect(page.get_by_text("Row 1", exact=True)).to_be_visible()
    with walk.part("chat with the served model next to its base"):
        walk.click("link", "Job")
        walk.click("link", "Chat", "#runs")
        page.fill("#message", QUESTION)
        walk.click("button", "Send")
        expect(page.get_by_role("button", name="A is better")).to_be_visible()
        # The answers are sampled, so one may be wrong; the evaluation has compared many.
        answers = page.locator(".answer-text").all_inner_texts()
        assert len(answers) == 2 and all(answers)
    clicks = sum(part[1] for part in walk.parts)
    print(f"in all: {clicks} clicks, {sum(part[2] for part in walk.parts):.0f} s")
    assert clicks <= 20


def lowest_and_first_loss(page: Page) -> tuple[float, float]:
    """Return the lowest loss and the highest one, which is the first, of the table of values."""
    cells = page.locator("#run-metrics tr", has_text="loss").first.locator("td").all_inner_texts()
    lowest, highest = (float(cell.split()[0]) for cell in cells[1:3])
    return lowest, highest
