"""The page of storage: use, the largest objects, the last collection and what is kept."""

from collections.abc import Callable
from pathlib import Path

from app.settings import Settings
from app.tables import Scope
from tests.integration.app.stored_artifacts import (
    Make,
    add_checkpoint,
    add_log,
    add_model,
    finish,
    run_collection,
)
from tests.integration.app.web.conftest import Browser


def test_an_empty_store_says_what_to_do_first(browser: Browser) -> None:
    shown = browser.get("/storage").text
    assert "Nothing is stored yet." in shown and 'href="/datasets"' in shown
    assert "No collection yet." in shown


def test_the_largest_objects_are_links(browser: Browser, make_job: Make, tmp_path: Path) -> None:
    run = finish(make_job, full_name="news-sft")
    model, checkpoint = add_model(tmp_path, run), add_checkpoint(tmp_path, run, 5)
    shown = browser.get("/storage").text
    assert checkpoint.size_bytes > model.size_bytes
    first, second = f'href="/runs/{run.id}/checkpoints">news-sft<', f'href="/models/{model.id}"'
    assert 0 < shown.index(first) < shown.index(second)


def test_the_last_collection_and_what_it_removed_are_shown(
    browser: Browser, make_job: Make, tmp_path: Path, settings: Settings
) -> None:
    run = finish(make_job)
    add_checkpoint(tmp_path, run, 5)
    add_log(tmp_path, run)
    run_collection(settings)
    shown = browser.get("/storage").text
    assert "Optimizer states of succeeded runs" in shown and "Logs and files of runs" in shown
    assert browser.client.get("/api/v1/storage").json()["last_collection"]["removed"] != []


def test_what_is_kept_follows_the_settings(browser: Browser, settings: Settings) -> None:
    settings.failed_checkpoint_days, settings.record_days = 12, 0
    shown = browser.get("/storage").text
    assert "12 days" in shown and "TUNESMITH_FAILED_CHECKPOINT_DAYS" in shown
    assert "never" in shown.partition("TUNESMITH_RECORD_DAYS")[2][:60]


def test_garbage_is_removed_only_after_it_was_shown(
    browser: Browser, make_job: Make, tmp_path: Path, settings: Settings
) -> None:
    run_collection(settings)
    add_checkpoint(tmp_path, finish(make_job), 5)
    assert "Remove it now" not in browser.get("/storage").text
    assert browser.post("/storage/collections", page="/storage", dry_run="true").status_code == 303
    shown = browser.get("/storage").text
    assert "A collection now would remove" in shown and "Remove it now" in shown
    assert browser.post("/storage/collections", page="/storage", dry_run="false").status_code == 303
    assert "Remove it now" not in browser.get("/storage").text
    report = browser.client.get("/api/v1/storage").json()["last_collection"]
    assert [removed["reason"] for removed in report["removed"]] == ["checkpoint_state"]


def test_the_button_of_a_reader_has_its_reason(browser: Browser, make_secret: Callable[..., str]) -> None:
    browser.post("/login", key=make_secret(Scope.read))
    assert "lacks the scope “write”" in browser.get("/storage").text
