"""What all pages have in common: headers, errors, static files, and their place in the service."""

from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.settings import Settings
from app.storage.database import get_engine, transaction
from app.tables import Run, RunStatus, Scope
from app.web.headers import CONTENT_SECURITY_POLICY
from app.web.static_files import files_hash, static_url
from tests.integration.app.web.conftest import Browser

MakeJob = Callable[..., list[Run]]


@pytest.mark.parametrize("path", ["/jobs", "/nothing", "/jobs?status=wrong", "/login", static_url("app.css")])
def test_every_response_says_what_the_page_may_load(browser: Browser, path: str) -> None:
    headers = browser.get(path).headers
    assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["x-frame-options"] == "DENY"


def test_pages_are_not_stored_and_static_files_are_kept(browser: Browser) -> None:
    assert browser.get("/jobs").headers["cache-control"] == "no-store"
    kept = browser.get(static_url("app.js"))
    assert (kept.status_code, "immutable" in kept.headers["cache-control"]) == (200, True)
    assert kept.headers["content-encoding"] == "gzip"
    of_another_version = browser.get(static_url("app.js").replace(files_hash(), "0" * 16))
    assert of_another_version.headers["cache-control"] == "no-store"
    assert browser.get("/assets/x/../../etc/passwd").status_code == 404


def test_unknown_paths_of_the_api_keep_their_errors(browser: Browser) -> None:
    for path in ("/api/v1/nothing", "/v1/nothing", "/api/nothing"):
        assert browser.get(path).headers["content-type"] == "application/json"
    assert browser.client.post("/healthz").json()["error"]["code"] == "method_not_allowed"
    of_a_program = browser.client.get("/nothing", headers={"Accept": "*/*"})
    assert of_a_program.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/nothing", 404, "Not found"),
        ("/jobs/job_none", 404, "There is no job job_none"),
        ("/jobs?status=wrong", 422, "status"),
        ("/jobs/%00", 422, "path"),
    ],
)
def test_an_error_is_a_page_that_explains_it(browser: Browser, path: str, status: int, text: str) -> None:
    shown = browser.get(path)
    assert (shown.status_code, text in shown.text) == (status, True)
    assert shown.headers["content-type"] == "text/html; charset=utf-8"


def test_a_page_without_its_database_tries_again_by_itself(browser: Browser, settings: Settings) -> None:
    get_engine().dispose()
    database = Path(get_engine().url.database or "")
    database.rename(database.with_suffix(".away"))
    database.mkdir()
    # A thread of the service may have opened the file in between; its connection returns to another pool.
    get_engine().dispose()
    shown = browser.get("/jobs")
    assert (shown.status_code, shown.headers["retry-after"]) == (503, "5")
    assert '<meta http-equiv="refresh" content="5">' in shown.text
    assert shown.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    database.rmdir()
    database.with_suffix(".away").rename(database)
    assert browser.get("/jobs").status_code == 200


def test_a_page_that_fails_names_the_request_of_the_log(browser: Browser, make_job: MakeJob) -> None:
    (run,) = make_job(RunStatus.failed)
    with transaction() as session:
        session.get_one(Run, run.id).error = {"code": "of_another_version", "message": "?"}
    client = TestClient(
        browser.client.app, "http://127.0.0.1", raise_server_exceptions=False, client=("127.0.0.1", 50000)
    )
    shown = client.get(f"/runs/{run.id}", headers={"Accept": "text/html"})
    assert shown.status_code == 500
    assert f"under {shown.headers['x-request-id']}." in shown.text


def test_the_action_of_a_form_returns_to_the_job(browser: Browser, make_job: MakeJob) -> None:
    (run,) = make_job(RunStatus.queued)
    done = browser.post(f"/jobs/{run.job_id}/pause", page="/jobs")
    assert (done.status_code, done.headers["location"]) == (303, f"/jobs/{run.job_id}")
    assert "Paused" in browser.get(f"/jobs/{run.job_id}").text


def test_htmx_gets_the_parts_that_an_action_changed(browser: Browser, make_job: MakeJob) -> None:
    (run,) = make_job(RunStatus.queued)
    headers = {"HX-Request": "true", "X-CSRF-Token": browser.csrf("/jobs")}
    done = browser.client.post(f"/jobs/{run.job_id}/cancel", headers=headers)
    assert '<hx-partial hx-target="#job-head"' in done.text and "Cancelled" in done.text
    refused = browser.client.post(f"/jobs/{run.job_id}/pause", headers=headers)
    assert refused.status_code == 409
    assert '<hx-partial hx-target="#notices"' in refused.text and "can be paused" in refused.text


def test_a_button_that_cannot_be_used_has_its_reason(
    browser: Browser, make_job: MakeJob, make_secret: Callable[..., str]
) -> None:
    (run,) = make_job(RunStatus.queued)
    assert "Possible only when the job is: Paused." in browser.get(f"/jobs/{run.job_id}").text
    browser.post("/login", key=make_secret(Scope.read))
    shown = browser.get(f"/jobs/{run.job_id}").text
    assert shown.count("data-disabled") == 4 and "lacks the scope “write”" in shown
    assert browser.post(f"/jobs/{run.job_id}/cancel", page="/jobs").status_code == 403


def test_names_of_users_are_escaped(browser: Browser, make_job: MakeJob) -> None:
    (run,) = make_job(RunStatus.queued, name="<hx-partial><script>alert(1)</script>")
    for path in ("/jobs", f"/jobs/{run.job_id}"):
        assert "<script>alert" not in browser.get(path).text
        assert "&lt;hx-partial&gt;" in browser.get(path).text


def test_a_refusal_is_explained_in_the_language_of_the_page(browser: Browser) -> None:
    korean = {"Accept-Language": "ko"}
    page = browser.get("/jobs/job_none", **korean).text
    assert page.index("작업을 찾을 수 없습니다.") < page.index("There is no job job_none")
    notice = browser.client.post(
        "/jobs/job_none/cancel", data={"csrf": browser.csrf()}, headers={**korean, "HX-Request": "true"}
    )
    assert notice.status_code == 404 and "작업을 찾을 수 없습니다." in notice.text
