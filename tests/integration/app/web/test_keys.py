"""The page of API keys: for admins only, a secret is shown once, and a revoked key opens nothing."""

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest

from app.keys import service
from app.keys.schemas import KeyCreate
from app.storage.database import read_session, transaction
from app.tables import ApiKey, Scope
from tests.integration.app.web.conftest import Browser

MakeSecret = Callable[..., str]


def create(browser: Browser, **fields: Any) -> Any:
    values = {"csrf": browser.csrf("/keys"), "name": "website", "scope": "inference", **fields}
    return browser.client.post("/keys", data=values, follow_redirects=False)


def find_secret(text: str) -> str:
    found = re.search(r'<code id="secret"[^>]*>(ts_[^<]+)</code>', text)
    assert found is not None
    return found[1]


def find_key(name: str) -> ApiKey:
    with read_session() as session:
        return next(key for key in service.list_all_keys(session) if key.name == name)


@pytest.fixture
def admin(browser: Browser, make_secret: MakeSecret) -> Browser:
    """Return a browser that is logged in with the scope admin."""
    browser.post("/login", key=make_secret(Scope.admin))
    return browser


def test_the_first_key_locks_the_service_and_its_page_stays(browser: Browser) -> None:
    shown = browser.get("/keys").text
    assert "No key yet" in shown and "locks the service" in shown and 'hx-post="/keys"' not in shown
    refused = create(browser, scope="admin")
    assert (refused.status_code, "lock the service" in refused.text) == (409, True)
    created = create(browser, scope="admin", lock_service="on")
    secret = find_secret(created.text)
    assert created.status_code == 200 and "data-stream" not in created.text
    assert browser.get("/keys").status_code == 303
    assert browser.post("/login", key=secret).status_code == 303
    assert "You are logged in with this key" in browser.get("/keys").text


def test_a_secret_is_shown_once_and_never_logged(admin: Browser, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    created = create(admin, tokens_per_day="1000000", models="starter\nft:*")
    secret = find_secret(created.text)
    assert created.headers["cache-control"] == "no-store" and "location" not in created.headers
    page = admin.get("/keys").text
    assert secret not in page and secret not in caplog.text and secret[:7] in page
    assert "1,000,000 tokens/day" in page and 'title="starter, ft:*"' in page


def test_htmx_gets_the_secret_and_the_rows(admin: Browser) -> None:
    headers = {"HX-Request": "true", "X-CSRF-Token": admin.csrf("/keys")}
    values = {"name": "robot", "scope": ["read", "write"]}
    created = admin.client.post("/keys", data=values, headers=headers).text
    assert '<hx-partial hx-target="#created-key"' in created and "robot" in created
    assert find_key("robot").scopes == ["read", "write"]


def test_a_limit_that_is_not_a_number_is_refused(admin: Browser) -> None:
    refused = create(admin, tokens_per_day="many")
    assert (refused.status_code, "tokens_per_day" in refused.text) == (422, True)


def test_a_revoked_key_stays_in_the_list_and_opens_nothing(admin: Browser, make_secret: MakeSecret) -> None:
    secret = find_secret(create(admin).text)
    path = f"/keys/{find_key('website').id}/revoke"
    shown = admin.get("/keys").text
    assert "Revoke the key “website”?" in shown
    assert admin.post(path, page="/keys").status_code == 303
    assert 'class="revoked"' in admin.get("/keys").text
    denied = admin.client.get("/v1/models", headers={"Authorization": f"Bearer {secret}"})
    assert denied.status_code == 401


def test_only_admins_see_and_change_keys(browser: Browser, make_secret: MakeSecret) -> None:
    browser.post("/login", key=make_secret(Scope.read, Scope.write))
    assert 'href="/keys"' not in browser.get("/jobs").text
    assert browser.get("/keys").status_code == browser.get("/keys/stream").status_code == 403
    csrf = browser.csrf("/jobs")
    sent = browser.client.post("/keys", data={"csrf": csrf, "name": "x", "scope": "admin"})
    assert sent.status_code == 403


def test_a_thousand_keys_are_pages(admin: Browser) -> None:
    with transaction() as session:
        for number in range(1000):
            service.create_key(session, KeyCreate(name=f"robot-{number:04d}", scopes=[Scope.read]))
    following = re.search(r'rel="next" href="([^"]+)"', admin.get("/keys").text)
    assert following is not None
    shown = admin.get(following[1]).text
    assert "robot-0949" in shown and "robot-0950" not in shown
