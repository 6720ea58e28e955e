"""The pages of batches and fine-tuning jobs: what clients of the OpenAI API have created, and its control."""

import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest
from openai import OpenAI

from app.tables import RunStatus, Scope
from tests.integration.app.web import seeded_openai_api as seeded
from tests.integration.app.web.conftest import Browser


@pytest.fixture(autouse=True)
def _map_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a name of OpenAI stand for a base, which the lines of the page name."""
    monkeypatch.setenv("TUNESMITH_OPENAI_MODELS", json.dumps({"gpt-4o-mini": "org/tiny"}))


def show_own_job(browser: Browser, shown: str) -> str:
    """Return the page of the job behind a batch or a fine-tuning job."""
    (own,) = re.findall(r'href="(/jobs/job_\w+)"', shown)
    return browser.get(own).text


def run_example(browser: Browser, page: str) -> str:
    """Run the lines that an empty list shows, with this service in the place of its address."""
    shown = re.search(r'<pre id="example"[^>]*><code>(.*?)</code>', browser.get(page).text, re.DOTALL)
    assert shown is not None
    code = unescape(shown[1])
    created = re.findall(r"(?m)^client = OpenAI\(.*\)$", code)
    assert created == ['client = OpenAI(base_url="http://127.0.0.1/v1", api_key="YOUR_KEY")']
    client = OpenAI(base_url="http://127.0.0.1/v1", api_key="unused", http_client=browser.client)
    names: dict[str, object] = {"connected": client}
    exec(code.replace(created[0], "client = connected"), names)
    return str((names.get("batch") or names["job"]).id)  # type: ignore[attr-defined]


def test_the_lines_of_an_empty_list_create_a_batch(browser: Browser) -> None:
    assert "No batch yet." in browser.get("/batches").text
    batch_id = run_example(browser, "/batches")
    assert f'href="/batches/{batch_id}"' in browser.get("/batches").text
    shown = browser.get(f"/batches/{batch_id}").text
    assert ">Validating<" in shown and "requests.jsonl" in shown and "No live worker" in shown
    assert f'href="/batches/{batch_id}"' in show_own_job(browser, shown)


def test_the_lines_of_an_empty_list_create_a_fine_tuning_job(browser: Browser) -> None:
    assert "No fine-tuning job yet." in browser.get("/fine-tuning").text
    job_id = run_example(browser, "/fine-tuning")
    assert f'href="/fine-tuning/{job_id}"' in browser.get("/fine-tuning").text
    shown = browser.get(f"/fine-tuning/{job_id}").text
    assert ">Queued<" in shown and "train.jsonl" in shown and "Created fine-tuning job" in shown
    assert f'href="/fine-tuning/{job_id}"' in show_own_job(browser, shown)


def test_a_batch_shows_its_faults_by_line_and_its_files(browser: Browser, tmp_path: Path) -> None:
    ids = seeded.add_shown_batches(tmp_path / "files")
    faulty = browser.get(f"/batches/{ids['failed']}").text
    assert "2 faults in the input file" in faulty and ">1,207<" in faulty and "custom_id" in faulty
    done = browser.get(f"/batches/{ids['completed']}").text
    downloads = re.findall(r'href="(/files/file-\w+/content)" download', done)
    assert len(downloads) == 3 and browser.get(downloads[1]).text == '{"custom_id": "row-0"}\n'
    assert "49,872" in done and "team: news" in done and 'href="/runs/run_' in done
    assert browser.get("/files/file-none/content").status_code == 404


def test_a_batch_is_cancelled_where_that_is_possible(browser: Browser, tmp_path: Path) -> None:
    ids = seeded.add_shown_batches(tmp_path / "files")
    page = f"/batches/{ids['waiting']}"
    assert browser.post(f"{page}/cancel", page=page).status_code == 303
    shown = browser.get(page).text
    assert ">Cancelled<" in shown
    assert "Possible only when the batch is: Validating, In progress, Finalizing." in shown
    refused = browser.post(f"/batches/{ids['completed']}/cancel", page=page)
    assert refused.status_code == 409 and "cannot be cancelled" in refused.text


def test_a_fine_tuning_job_links_to_everything_behind_it(browser: Browser, tmp_path: Path) -> None:
    ids = seeded.add_shown_fine_tuning_jobs(tmp_path / "files")
    shown = browser.get(f"/fine-tuning/{ids['succeeded']}").text
    for link in ("/jobs/job_", "/runs/run_", "/models/model_", "/chat?model=ft%3Astarter", "/files/file-"):
        assert f'href="{link}' in shown, link
    assert ":ckpt-step-200<" in shown and "learning_rate_multiplier" in shown
    assert "out of memory" in browser.get(f"/fine-tuning/{ids['failed']}").text
    (results,) = re.findall(r'href="(/files/[^"]+)" download aria-label="Download step_metrics.csv"', shown)
    assert browser.get(results).headers["content-disposition"].endswith('.csv"')
    found = browser.get("/fine-tuning?metadata=team:news").text.count("<tr id=")
    assert (found, browser.get("/fine-tuning?metadata=team:x").text.count("<tr id=")) == (4, 0)


def test_a_fine_tuning_job_is_paused_resumed_and_cancelled(browser: Browser) -> None:
    page = f"/fine-tuning/{seeded.add_fine_tuning_job(RunStatus.queued)}"
    for action, status in (("pause", "Paused"), ("resume", "Queued"), ("cancel", "Cancelled")):
        assert browser.post(f"{page}/{action}", page=page).status_code == 303
        assert f">{status}<" in browser.get(page).text
    refused = browser.post(f"{page}/resume", page=page)
    assert refused.status_code == 409 and "can be resumed" in refused.text
    assert "Possible only when the job is: Paused." in browser.get(page).text


def test_the_metrics_of_each_step_are_events_on_request(browser: Browser) -> None:
    page = f"/fine-tuning/{seeded.add_fine_tuning_job(RunStatus.running)}"
    messages, all_events = browser.get(page).text, browser.get(f"{page}?metrics=true").text
    assert (messages.count('id="ftevent-'), all_events.count('id="ftevent-')) == (5, 8)
    assert "Step 30/400" in all_events and "Step 30/400" not in messages
    newest, oldest = re.findall(r'id="(ftevent-\w+)"', all_events)[::7]
    older = browser.get(f"{page}?metrics=true&after={newest}").text
    assert older.count('id="ftevent-') == 7 and f'id="{oldest}"' in older and f'id="{newest}"' not in older


def test_a_key_without_write_reads_the_reason(browser: Browser, make_secret: Callable[..., str]) -> None:
    page = f"/fine-tuning/{seeded.add_fine_tuning_job(RunStatus.running)}"
    browser.post("/login", key=make_secret(Scope.read))
    assert browser.get(page).text.count("lacks the scope “write”") >= 3
    assert browser.post(f"{page}/cancel", page=page).status_code == 403
    batch = f"/batches/{seeded.add_batch(RunStatus.running)}"
    assert "lacks the scope “write”" in browser.get(batch).text
    assert browser.post(f"{batch}/cancel", page=batch).status_code == 403


@pytest.mark.parametrize("page", ["/batches", "/fine-tuning"])
def test_a_thousand_rows_are_pages(browser: Browser, page: str) -> None:
    seeded.add_many(1000)
    first = browser.get(page).text
    following = re.search(r'rel="next" href="([^"]+)"', first)
    assert following is not None and first.count("<tr id=") == 50
    second = browser.get(unescape(following[1])).text
    assert second.count("<tr id=") == 50 and set(re.findall(r'id="row-([^"]+)', first)).isdisjoint(
        re.findall(r'id="row-([^"]+)', second)
    )
