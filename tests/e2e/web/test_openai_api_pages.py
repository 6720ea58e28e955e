"""The pages of batches and fine-tuning jobs in a real browser: accessibility, widths and themes."""

from pathlib import Path

import pytest
from playwright.sync_api import expect
from sqlmodel import col, update

from app.storage.database import transaction
from app.tables import Batch
from tests.e2e.web.conftest import Pages
from tests.integration.app.web import seeded_openai_api as seeded

Ids = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def ids(service: object, tmp_path_factory: pytest.TempPathFactory) -> Ids:
    """Return the ids of batches and fine-tuning jobs in several states."""
    folder: Path = tmp_path_factory.mktemp("files")
    return {
        "batches": seeded.add_shown_batches(folder),
        "jobs": seeded.add_shown_fine_tuning_jobs(folder),
    }


def test_a_fine_tuning_job_is_accessible_at_every_width(pages: Pages, ids: Ids) -> None:
    pages.look(f"/fine-tuning/{ids['jobs']['succeeded']}", "fine-tuning-job")


@pytest.mark.slow
def test_every_page_is_accessible_at_every_width(pages: Pages, ids: Ids) -> None:
    pages.look("/batches", "batches")
    pages.look(f"/batches/{ids['batches']['failed']}", "batch-failed")
    pages.look(f"/batches/{ids['batches']['completed']}", "batch")
    pages.look("/fine-tuning", "fine-tuning")
    pages.look(f"/fine-tuning/{ids['jobs']['failed']}", "fine-tuning-job-failed")


def test_progress_and_a_cancellation_appear_without_a_new_page(pages: Pages, ids: Ids) -> None:
    batch = ids["batches"]["running"]
    page = pages.open(f"/batches/{batch}")
    with transaction() as session:
        session.execute(update(Batch).where(col(Batch.id) == batch).values(completed=25_000))
    expect(page.locator("#batch-facts")).to_contain_text("25,000")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").press("Enter")
    expect(page.locator("#batch-head")).to_contain_text("Cancelling")
    assert pages.messages == []
