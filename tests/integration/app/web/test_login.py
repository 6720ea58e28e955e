"""Who may see the pages: a login by API key into a cookie, which opens the pages and nothing else."""

from collections.abc import Callable
from http.cookies import SimpleCookie

import pytest
from sqlmodel import select

from app.keys import service, web_sessions
from app.retention.records import delete_records
from app.settings import Settings
from app.storage.database import read_session, transaction
from app.tables import Run, RunStatus, Scope, WebSession
from app.web.login_limit import MAX_FAILURES, WINDOW_SECONDS, LoginLimit
from app.web.views import account
from app.web.views.account import own_path
from tests.integration.app.web.conftest import Browser

MakeSecret = Callable[..., str]
MakeJob = Callable[..., list[Run]]


@pytest.fixture(autouse=True)
def no_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin without the failed logins of other tests."""
    monkeypatch.setattr(account, "limit", LoginLimit())


def test_without_keys_nobody_logs_in_on_this_machine(browser: Browser) -> None:
    assert browser.get("/").headers["location"] == "/jobs"
    assert browser.get("/jobs").status_code == 200
    assert browser.get("/login").headers["location"] == "/jobs"


def test_without_keys_other_machines_get_a_page_that_explains_it(browser: Browser) -> None:
    refused = browser.get("/jobs", **{"X-Forwarded-For": "10.0.0.9"})
    assert refused.status_code == 403
    assert "No API key exists yet" in refused.text


def test_a_login_returns_to_the_page_that_asked_for_it(browser: Browser, make_secret: MakeSecret) -> None:
    secret = make_secret(Scope.read)
    asked = browser.get("/jobs?status=failed")
    assert asked.headers["location"] == "/login?next=%2Fjobs%3Fstatus%3Dfailed"
    entered = browser.post("/login", key=secret, next="/jobs?status=failed")
    assert (entered.status_code, entered.headers["location"]) == (303, "/jobs?status=failed")
    assert "my key" in browser.get("/jobs").text


def test_the_cookie_is_for_this_site_and_not_for_scripts(browser: Browser, make_secret: MakeSecret) -> None:
    secret = make_secret(Scope.read)
    for headers, secure in (({}, False), ({"X-Forwarded-Proto": "https"}, True)):
        browser.client.cookies.clear()
        browser.client.headers.update(headers)
        cookie = SimpleCookie(browser.post("/login", key=secret).headers["set-cookie"])
        (morsel,) = cookie.values()
        assert (morsel["httponly"], morsel["samesite"], morsel["path"]) == (True, "strict", "/")
        assert (bool(morsel["secure"]), morsel.key.startswith("__Host-")) == (secure, secure)
        assert secret not in morsel.value


def test_a_login_gets_another_token_than_the_visit_before(browser: Browser, make_secret: MakeSecret) -> None:
    secret = make_secret(Scope.read)
    browser.get("/login")
    before = browser.client.cookies["tunesmith_session"]
    browser.post("/login", key=secret)
    assert browser.client.cookies["tunesmith_session"] != before


def test_the_cookie_opens_no_api(browser: Browser, make_secret: MakeSecret) -> None:
    browser.post("/login", key=make_secret(Scope.admin, Scope.inference))
    assert browser.get("/jobs").status_code == 200
    assert [browser.get(path).status_code for path in ("/api/v1/jobs", "/v1/files", "/metrics")] == [401] * 3


def test_a_session_ends_with_a_logout(browser: Browser, make_secret: MakeSecret) -> None:
    browser.post("/login", key=make_secret(Scope.read))
    token = browser.client.cookies["tunesmith_session"]
    assert browser.post("/logout", page="/jobs").headers["location"] == "/login"
    browser.client.cookies.set("tunesmith_session", token)
    assert browser.get("/jobs").status_code == 303


def test_a_session_ends_with_its_key(browser: Browser, make_secret: MakeSecret) -> None:
    make_secret(Scope.admin)
    browser.post("/login", key=make_secret(Scope.read))
    with transaction() as session:
        newest = [key.id for key in service.list_all_keys(session)][-1]
        service.revoke_key(session, newest)
    assert browser.get("/jobs").status_code == 303


def test_an_expired_session_opens_nothing_and_is_deleted(
    browser: Browser, make_secret: MakeSecret, settings: Settings
) -> None:
    browser.post("/login", key=make_secret(Scope.read))
    with transaction() as session:
        row = session.exec(select(WebSession)).one()
        row.expires_at = row.created_at
    assert browser.get("/jobs").status_code == 303
    assert [removal.name for removal in delete_records(settings, dry_run=False)] == [row.id]
    with read_session() as session:
        assert session.exec(select(WebSession)).all() == []


def test_the_oldest_session_of_a_key_ends_when_it_has_too_many(
    settings: Settings, make_secret: MakeSecret, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_sessions, "MAX_SESSIONS", 2)
    secret = make_secret(Scope.read)
    tokens = [web_sessions.log_in(secret) for _ in range(3)]
    with read_session() as session:
        found = [web_sessions.find_session(session, token) is not None for token in tokens]
    assert found == [False, True, True]


@pytest.mark.parametrize(
    ("key", "status", "text"), [("ts_no", 401, "unknown"), (None, 403, "lacks the scope")]
)
def test_an_unusable_key_is_refused_with_the_reason(
    browser: Browser, make_secret: MakeSecret, key: str | None, status: int, text: str
) -> None:
    secret = make_secret(Scope.inference)
    refused = browser.post("/login", key=key or secret)
    assert (refused.status_code, text in refused.text) == (status, True)
    assert (key or secret) not in refused.text


def test_failed_logins_are_limited(browser: Browser, make_secret: MakeSecret) -> None:
    secret = make_secret(Scope.read)
    csrf = browser.csrf()
    data = {"csrf": csrf, "key": "ts_guess"}
    statuses = [browser.client.post("/login", data=data).status_code for _ in range(MAX_FAILURES + 1)]
    assert statuses == [401] * MAX_FAILURES + [429]
    assert browser.post("/login", key=secret).status_code == 429


def test_an_address_may_try_again_after_the_window() -> None:
    limit = LoginLimit()
    for second in range(MAX_FAILURES):
        limit.record_failure("10.0.0.1", now=float(second))
    assert limit.seconds_to_wait("10.0.0.1", now=10.0) == WINDOW_SECONDS - 10
    assert limit.seconds_to_wait("10.0.0.2", now=10.0) == 0
    assert limit.seconds_to_wait("10.0.0.1", now=WINDOW_SECONDS + 1) == 0


@pytest.mark.parametrize("path", ["//evil.test", "/\\evil.test", "https://evil.test", "jobs", "/a\nb", ""])
def test_a_login_never_leads_to_another_site(path: str) -> None:
    assert own_path(path) == "/jobs"
    assert own_path("/runs/run_1?x=1#log") == "/runs/run_1?x=1#log"


def test_a_link_from_another_site_is_opened_again_with_the_cookie(
    browser: Browser, make_secret: MakeSecret
) -> None:
    make_secret(Scope.read)
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    entry = browser.get("/jobs?status=failed", **link)
    assert entry.status_code == 200
    assert 'content="0;url=/jobs?status=failed"' in entry.text


@pytest.mark.parametrize("fields", [{}, {"csrf": "0" * 64}])
def test_a_form_without_its_token_changes_nothing(
    browser: Browser, make_job: MakeJob, fields: dict[str, str]
) -> None:
    (run,) = make_job(RunStatus.queued)
    browser.get("/jobs")
    refused = browser.client.post(f"/jobs/{run.job_id}/cancel", data=fields)
    assert refused.status_code == 403
    assert "Queued" in browser.get("/jobs").text


def test_a_page_of_another_origin_sends_no_form(browser: Browser, make_job: MakeJob) -> None:
    (run,) = make_job(RunStatus.queued)
    data = {"csrf": browser.csrf("/jobs")}
    headers = {"Origin": "https://evil.test", "Sec-Fetch-Site": "cross-site"}
    path = f"/jobs/{run.job_id}/cancel"
    assert browser.client.post(path, data=data, headers=headers).status_code == 403


def test_preferences_are_kept_in_cookies(browser: Browser) -> None:
    browser.post("/preferences", page="/jobs", language="ko", theme="dark", next="/jobs")
    shown = browser.get("/jobs").text
    assert 'lang="ko" data-theme="dark"' in shown
    assert "작업" in shown
