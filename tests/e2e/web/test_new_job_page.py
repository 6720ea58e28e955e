"""The form of a new job in a real browser: both directions, errors, reload, double click."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from sqlmodel import Session, func, select

from app.storage.database import get_engine, transaction
from app.tables import Job, Run, RunStatus
from tests.e2e.web.conftest import Pages
from tests.integration.app.web import seeded_datasets

MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
FINDINGS: dict[str, Any] = {
    "stage": "preflight",
    "target": "sft",
    "passed": False,
    "findings": [
        {
            "code": "memory_short",
            "level": "error",
            "message": "The run needs 31 GiB, and gpu-1 has 22 GiB.",
            "hint": "Set micro_batch_size to 4.",
        },
        {
            "code": "few_steps",
            "level": "warning",
            "message": "3 steps change little.",
            "hint": "Train longer.",
        },
    ],
    "memory": {
        "hosts": [
            {
                "worker": "gpu-1",
                "needed_bytes": 33e9,
                "usable_bytes": 23e9,
                "fits": False,
                "advice": "Use LoRA.",
            }
        ]
    },
    "probe": {"estimated_seconds": 4210.0, "total_steps": 600, "cost": 2.34},
}


@pytest.fixture(scope="module", autouse=True)
def dataset_id(service: object) -> Iterator[str]:
    yield seeded_datasets.add_dataset()


def spec_of(page: Page) -> str:
    return page.locator("#json").input_value()


def test_the_form_is_accessible_with_a_plan(pages: Pages) -> None:
    pages.look("/jobs/new", "new-job")


def test_the_form_is_accessible_with_errors(pages: Pages) -> None:
    pages.look("/jobs/new?example=sweep", "new-job-errors")


def test_the_form_is_accessible_with_a_preflight(pages: Pages) -> None:
    page = pages.open("/jobs/new")
    page.locator("#f-stages\\.0\\.base").fill(MODEL)
    expect(page.locator("#json")).to_have_value(re.compile(MODEL))
    page.get_by_role("button", name="Preflight").click()
    page.wait_for_url("**/jobs/new?preflight=job_*")
    job_id = page.url.rpartition("=")[2]
    expect(page.locator("#preflight")).to_contain_text("Queued")
    with transaction() as session:
        run = session.exec(select(Run).where(Run.job_id == job_id)).one()
        run.status, run.result = RunStatus.succeeded, FINDINGS
    expect(page.locator("#preflight")).to_contain_text("Would fail")
    expect(page.locator("#preflight")).to_contain_text("1h 10m")
    pages.look(f"/jobs/new?preflight={job_id}", "new-job-preflight")


def test_form_and_json_follow_each_other(pages: Pages) -> None:
    page = pages.open("/jobs/new")
    epochs = page.locator("#f-stages\\.0\\.epochs")
    epochs.press_sequentially("2.5")
    expect(page.locator("#json")).to_have_value(re.compile('"epochs": 2.5'))
    expect(epochs).to_be_focused()
    page.locator("#json").fill(spec_of(page).replace('"epochs": 2.5', '"epochs": 4, "seed": 5'))
    expect(epochs).to_have_value("4")
    page.get_by_label("method").select_option("full")
    expect(page.locator("#f-stages\\.0\\.tuning\\.rank")).to_have_count(0)
    page.get_by_text("Add a stage").click()
    page.get_by_role("button", name=re.compile("^evaluate")).click()
    expect(page.locator("#f-stages\\.1\\.baseline")).to_have_value("starter")
    assert pages.messages == []


def test_an_error_is_at_its_field_while_typing(pages: Pages) -> None:
    page = pages.open("/jobs/new")
    page.locator("#f-stages\\.0\\.batch_size").press_sequentially("x")
    expect(page.locator('[data-error="stages.0.batch_size"]')).to_contain_text("integer")
    page.get_by_text("More settings").click()
    page.locator("#f-stages\\.0\\.seed").press_sequentially("-1")
    link = page.locator("#plan").get_by_role("link", name="stages.0.seed")
    link.click()
    expect(page.locator("#f-stages\\.0\\.seed")).to_be_focused()


def test_an_unsent_form_survives_a_reload(pages: Pages) -> None:
    page = pages.open("/jobs/new")
    page.locator("#f-name").fill("kept")
    page.locator("#f-stages\\.0\\.epochs").fill("7")
    page.reload()
    expect(page.locator("#restored")).to_be_visible()
    expect(page.locator("#f-name")).to_have_value("kept")
    expect(page.locator("#json")).to_have_value(re.compile('"epochs": 7'))
    page.get_by_role("button", name="Start again").click()
    expect(page.locator("#f-name")).to_have_value("my-job")


def test_a_double_click_submits_one_job(pages: Pages) -> None:
    page = pages.open("/jobs/new")
    page.locator("#f-name").fill("double")
    page.locator("#f-stages\\.0\\.base").fill(MODEL)
    expect(page.locator("#json")).to_have_value(re.compile(MODEL))
    page.get_by_role("button", name="Submit job").dblclick()
    page.wait_for_url("**/jobs/job_*")
    with Session(get_engine()) as session:
        assert session.exec(select(func.count()).select_from(Job).where(Job.name == "double")).one() == 1
    page.get_by_role("link", name="Copy as new job").click()
    expect(page.locator("#f-name")).to_have_value("double")
    page.goto("/jobs/new")
    expect(page.locator("#f-name")).to_have_value("my-job")
