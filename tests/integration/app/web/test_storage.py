"""The page of storage: use, the largest objects, the last collection and what is kept."""

from pathlib import Path

from app.settings import Settings
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
