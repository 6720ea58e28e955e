"""The datasets: list, upload with and without scripts, faults, tokens with loss, uses, rows and deletion."""

import html
import json
import re
from collections.abc import Callable

import httpx2
import pytest

from app.storage.database import transaction
from app.tables import Run, RunStatus, Scope
from app.web.views.datasets.upload import FORMAT_EXAMPLES
from tests.integration.app.web import seeded_datasets
from tests.integration.app.web.conftest import Browser
from trainers.data.formats import detect_format

MakeJob = Callable[..., list[Run]]
GOOD = b'{"prompt": "a", "completion": "b"}\n'


def send_file(
    browser: Browser,
    content: bytes,
    name: str = "my.jsonl",
    fields: dict[str, str] | None = None,
    headers: dict[str, str] | None = None,
) -> httpx2.Response:
    """Upload a file by the form of the list."""
    data = {"csrf": browser.csrf("/datasets")} if fields is None else fields
    files = {"file": (name, content)}
    return browser.client.post("/datasets", data=data, files=files, headers=headers, follow_redirects=False)


def test_a_faulty_file_is_corrected_on_its_own_page_under_its_name(browser: Browser) -> None:
    shown = browser.get(f"/datasets/{seeded_datasets.add_faulty_dataset()}").text
    assert 'id="upload"' in shown and 'name="name" value="support-export"' in shown
    assert "Drop the corrected file here" in shown and "Choose a model" not in shown
    assert 'id="upload"' not in browser.get(f"/datasets/{seeded_datasets.add_dataset()}").text


def test_the_upload_shows_a_row_of_each_format_that_is_detected(browser: Browser) -> None:
    shown = html.unescape(browser.get("/datasets").text)
    for row_format, example in FORMAT_EXAMPLES.items():
        assert example in shown
        assert detect_format(json.loads(example)) == row_format


def test_an_empty_list_says_what_to_do_first(browser: Browser) -> None:
    assert "Upload a file above." in browser.get("/datasets").text
    assert "No dataset matches these filters." in browser.get("/datasets?format=text").text


def test_a_form_uploads_a_file_without_scripts(browser: Browser) -> None:
    sent = send_file(browser, GOOD)
    assert sent.status_code == 303
    shown = browser.get(sent.headers["location"]).text
    assert "my" in shown and "Usable" in shown and "<code>prompt_completion</code>" in shown
    again = send_file(browser, GOOD, "other.jsonl")
    assert "Nothing was stored a second time." in browser.get(again.headers["location"]).text


def test_a_script_gets_the_address_of_the_dataset_or_a_notice(browser: Browser) -> None:
    headers = {"HX-Request": "true", "X-CSRF-Token": browser.csrf("/datasets")}
    sent = send_file(browser, GOOD, headers=headers, fields={})
    assert (sent.status_code, sent.headers["hx-redirect"][:18]) == (200, "/datasets/dataset_")
    refused = send_file(browser, GOOD, headers=headers, fields={"encoding": "ebcdic"})
    assert refused.status_code == 422
    assert 'hx-target="#notices"' in refused.text and "The encoding is unknown" in refused.text


@pytest.mark.parametrize("fields", [{}, {"csrf": "0" * 64}])
def test_an_upload_without_its_token_stores_nothing(browser: Browser, fields: dict[str, str]) -> None:
    browser.get("/datasets")
    assert send_file(browser, GOOD, fields=fields).status_code == 403
    cross_site = {"Origin": "https://evil.test", "Sec-Fetch-Site": "cross-site"}
    assert send_file(browser, GOOD, headers=cross_site).status_code == 403
    assert "No dataset yet." in browser.get("/datasets").text


def test_a_fault_is_shown_with_line_field_reason_and_fix(browser: Browser) -> None:
    dataset_id = seeded_datasets.add_faulty_dataset()
    shown = browser.get(f"/datasets/{dataset_id}").text
    cells = re.findall(r'data-label="(?:Row|Field)">\s*(?:<code>)?([^<]*)', shown)
    assert "2" in [cell.strip() for cell in cells] and "completion" in cells and "line 3</span>" in shown
    assert "Jobs cannot use this file" in shown and "Train on it" not in shown
    assert "2 faults" in browser.get("/datasets").text


def test_faults_are_downloaded_as_a_table_that_computes_nothing(browser: Browser) -> None:
    found = browser.get(f"/datasets/{seeded_datasets.add_faulty_dataset()}/faults.csv")
    lines = found.content.decode("utf-8-sig").splitlines()
    assert lines[0] == "line,file_line,field,code,message" and len(lines) > 2
    assert "attachment" in found.headers["content-disposition"]
    assert not any(cell.startswith(("=", "+", "@")) for line in lines for cell in line.split(","))


def test_tokens_that_carry_loss_are_marked(browser: Browser) -> None:
    dataset_id = seeded_datasets.add_dataset()
    assert "No run has rendered rows" in browser.get(f"/datasets/{dataset_id}").text
    seeded_datasets.add_preview(dataset_id)
    seeded_datasets.add_preview(dataset_id, RunStatus.running)
    shown = browser.get(f"/datasets/{dataset_id}").text
    assert '<mark class="loss">7 × 8 = 56.&lt;|end|&gt;</mark>' in shown
    assert "17 of 38 tokens carry loss" in shown and "Rendering with starter" in shown


def test_a_preview_is_started_on_a_worker(browser: Browser) -> None:
    dataset_id = seeded_datasets.add_dataset()
    page = f"/datasets/{dataset_id}"
    assert browser.post(f"{page}/previews", page, model="", rows="5").status_code == 422
    started = browser.post(f"{page}/previews", page, model="Qwen/Qwen2.5-0.5B-Instruct", rows="3")
    assert (started.status_code, started.headers["location"]) == (303, f"{page}#tokens")
    shown = browser.get(page).text
    assert "Rendering with Qwen" in shown and "preview of ko-chat" in shown


def test_rows_are_pages_of_conversations(browser: Browser) -> None:
    path = f"/datasets/{seeded_datasets.add_dataset(n=45)}/rows"
    lines = []
    while path:
        shown = browser.get(path).text
        lines += re.findall(r'aria-label="Line (\d+)"', shown)
        found = re.search(r'rel="next" href="([^"]+)"', shown)
        path = found[1] if found else ""
    assert lines == [str(line) for line in range(1, 46)]
    assert "What is &lt;b&gt;7 × 8&lt;/b&gt;?" in shown


def test_a_dataset_in_use_is_not_deleted_and_says_why(browser: Browser, make_job: MakeJob) -> None:
    dataset_id = seeded_datasets.add_dataset()
    (run,) = make_job(RunStatus.queued)
    with transaction() as session:
        row = session.get_one(Run, run.id)
        row.config = row.config | {"dataset": dataset_id}
    page = f"/datasets/{dataset_id}"
    assert "1 unfinished job uses it." in browser.get(page).text
    assert browser.post(f"{page}/delete", page).status_code == 409
    browser.post(f"/jobs/{run.job_id}/cancel", "/jobs")
    assert browser.post(f"{page}/delete", page).headers["location"] == "/datasets"
    assert browser.get(page).status_code == 404


def test_a_key_that_may_only_read_sees_why_it_changes_nothing(
    browser: Browser, make_secret: Callable[..., str]
) -> None:
    page = f"/datasets/{seeded_datasets.add_dataset()}"
    browser.post("/login", key=make_secret(Scope.read))
    assert browser.get(page).text.count("data-disabled") == 2
    assert "data-disabled" in browser.get("/datasets").text
    assert send_file(browser, GOOD).status_code == 403
    assert browser.post(f"{page}/delete", page).status_code == 403


def test_a_thousand_datasets_are_pages(browser: Browser) -> None:
    seeded_datasets.add_many_datasets(1000)
    first = browser.get("/datasets").text
    found = re.search(r'rel="next" href="([^"]+)"', first)
    assert found is not None and first.count('<tr id="row-') == 50
    assert "part-0949" in browser.get(found[1].replace("&amp;", "&")).text
    assert "part-0007" in browser.get("/datasets?name=part-0007&format=").text


def test_an_expired_login_of_a_form_returns_to_its_page(
    browser: Browser, make_secret: Callable[..., str]
) -> None:
    make_secret(Scope.read)
    headers = {"HX-Request": "true", "HX-Current-URL": "http://127.0.0.1/datasets?name=a"}
    ended = browser.get("/jobs", **headers)
    assert (ended.status_code, ended.headers["hx-redirect"]) == (401, "/login?next=%2Fdatasets%3Fname%3Da")


def test_parts_of_preflights_are_listed_by_a_filter_only(browser: Browser) -> None:
    made = seeded_datasets.add_dataset("preflight-of-mine-test", n=3)
    assert made not in browser.get("/datasets").text
    assert made in browser.get("/datasets?preflights=1").text
    assert made in browser.get("/datasets?name=preflight-of-mine-test").text
    assert browser.get(f"/datasets/{made}").status_code == 200
