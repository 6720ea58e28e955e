"""A seeded service and a browser: what the tests of all views share.

`pages` is for tests that only look: jobs in all states, 1,000 finished jobs, a run with 10,000 metrics.
`PAGES_SCREENSHOTS=/tmp/shots pytest tests/e2e/web` writes the screenshots of `Pages.screenshot` there.
"""

import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from app.settings import get_settings
from app.storage.database import get_engine
from app.storage.opening import get_store
from app.tables import Run
from tests.conftest import make_once
from tests.e2e.platform import Platform, kill
from tests.integration.app.web import seeded_jobs, seeded_models, seeded_results
from tests.services import fail_or_skip

CHROMIUM = "/usr/bin/chromium"
SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
# Only a fault takes longer. Playwright's own 5 s for `expect` are short on a host with other work.
SECONDS = 60_000
expect.set_options(timeout=SECONDS)
N_JOBS, N_METRICS = 1000, 10_000


class Pages:
    """A service whose pages a browser opens; everything that it prints to its console is an error."""

    def __init__(self, platform: Platform, browser: Browser, runs: dict[str, list[Run]]) -> None:
        self.platform = platform
        self.browser = browser
        self.runs = runs
        self.messages: list[str] = []
        self._contexts: list[BrowserContext] = []

    def open(
        self, path: str, size: str = "desktop", theme: str = "light", language: str = "en", **options: Any
    ) -> Page:
        """Open a page in a browser profile of its own and wait until its stream is connected."""
        width, height = SIZES[size]
        context = self.browser.new_context(
            base_url=self.platform.base_url,
            viewport={"width": width, "height": height},
            color_scheme="dark" if theme == "dark" else "light",
            locale=language,
            reduced_motion="reduce",
            **options,
        )
        context.set_default_timeout(SECONDS)
        self._contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: self._note(message.type, message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.goto(path)
        if page.locator("#live[data-stream]").count():
            page.wait_for_selector('#connection[data-state="live"]')
        return page

    def screenshot(self, page: Page, name: str) -> None:
        """Write a screenshot of the whole page, if a folder for them is named."""
        if folder := os.environ.get("PAGES_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

    def look(self, path: str, name: str, ready: str = "main", **options: Any) -> None:
        """Take a screenshot at each width, in each theme and in each language, and check accessibility.

        `ready` is an element for which a page waits that loads more than its HTML; `options` are those of
        the browser profile, such as the cookies of a login.
        """
        for size in SIZES:
            for theme, language in (("light", "en"), ("dark", "ko")):
                page = self.open(path, size, theme, language, **options)
                page.wait_for_selector(ready)
                self.screenshot(page, f"{name}-{size}-{theme}-{language}")
                assert find_violations(page) == []
                width = page.evaluate("document.documentElement.scrollWidth")
                assert width <= SIZES[size][0], f"{path} is {width} pixels wide"
                page.context.close()
        assert self.messages == []

    def close(self) -> None:
        """Close the browser profiles of one test."""
        for context in self._contexts:
            context.close()
        self._contexts.clear()
        self.messages.clear()

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.messages.append(text)


def find_violations(page: Page) -> list[str]:
    """Return what axe finds, as one line each."""
    found = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['html'][:160]}" for rule in found for node in rule["nodes"]]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    if shutil.which(CHROMIUM) is None:
        fail_or_skip(f"{CHROMIUM} is not installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def seeded_service(folder: Path) -> Iterator[tuple[Platform, dict[str, list[Run]]]]:
    """Run an API without a worker, with jobs in its database, which this process can use as well."""
    runs = seed(folder)
    with serve(folder) as platform:
        yield platform, runs


def seed(folder: Path) -> dict[str, list[Run]]:
    """Fill the database of an installation and return the runs that tests name."""
    platform = Platform(folder, folder / "starter")
    with shared_settings(platform):
        assert platform.start(["-m", "app", "migrate"], "migrate").wait(240) == 0
        seeded_jobs.add_many_jobs(N_JOBS)
        runs = seeded_jobs.add_shown_jobs()
        seeded_jobs.add_metrics(runs["ko-en-news"][0], N_METRICS)
        seeded_results.add_results(runs, folder)
        seeded_models.add_many_models(N_JOBS)
        seeded_models.add_lineage(folder)
    platform.client.close()
    return runs


@contextmanager
def serve(folder: Path) -> Iterator[Platform]:
    """Run the API of an installation that has a folder already."""
    shutil.rmtree(folder / "models")
    platform = Platform(folder, folder / "starter")
    with shared_settings(platform):
        try:
            platform.start_api()
            yield platform
        finally:
            platform.stop()


@contextmanager
def shared_settings(platform: Platform) -> Iterator[None]:
    """Make this process use the database of an installation."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in platform.environment.items():
            if name.startswith("TUNESMITH_"):
                patch.setenv(name, value)
        for cached in (get_settings, get_engine, get_store):
            cached.cache_clear()
        try:
            yield
        finally:
            get_engine().dispose()
    for cached in (get_settings, get_engine, get_store):
        cached.cache_clear()


@pytest.fixture(scope="session")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Run]]]:
    """Return a seeded installation, which each module copies: to fill it takes longer than to start it."""

    def make(folder: Path) -> None:
        data = folder / "data"
        data.mkdir(parents=True)
        (folder / "runs.pickle").write_bytes(pickle.dumps(seed(data)))

    folder = make_once(tmp_path_factory, "seeded", make)
    return folder / "data", pickle.loads((folder / "runs.pickle").read_bytes())


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, seeded: tuple[Path, dict[str, list[Run]]], chromium: Browser
) -> Iterator[tuple[Platform, dict[str, list[Run]]]]:
    """Run a service of this module, so that what its tests change is unknown to others."""
    folder = tmp_path_factory.mktemp("pages") / "data"
    shutil.copytree(seeded[0], folder, symlinks=True)
    with serve(folder) as platform:
        yield platform, seeded[1]


@pytest.fixture
def pages(service: tuple[Platform, dict[str, list[Run]]], chromium: Browser) -> Iterator[Pages]:
    """Yield the pages of a service of this module, with browser profiles that end with the test."""
    platform, runs = service
    shown = Pages(platform, chromium, runs)
    yield shown
    shown.close()


def restart(platform: Platform) -> None:
    """Kill the API and start it again on its port."""
    port = platform.base_url.rpartition(":")[2]
    kill(platform.processes[-1])
    platform.start(["-m", "app", "--no-worker", "--port", port], "api")
