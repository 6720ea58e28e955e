"""The page of API keys in a real browser."""

from playwright.sync_api import expect

from app.keys import service
from app.keys.schemas import KeyCreate
from app.storage.database import transaction
from app.tables import Scope
from tests.e2e.web.conftest import Pages, find_violations


def test_the_page_without_keys_is_accessible_at_every_width(pages: Pages) -> None:
    pages.look("/keys", "keys-empty")


def test_keys_are_created_and_revoked_and_accessible_at_every_width(pages: Pages) -> None:
    limits = {"requests_per_minute": 600, "tokens_per_day": 1_000_000, "models": ["starter", "ft:*"]}
    with transaction() as session:
        _, secret = service.create_key(session, KeyCreate(name="Minji", scopes=[Scope.admin]))
        service.create_key(session, KeyCreate(name="website", scopes=[Scope.inference], **limits))
        old, _ = service.create_key(session, KeyCreate(name="old laptop", scopes=[Scope.read, Scope.write]))
        service.revoke_key(session, old.id)
    page = pages.open("/keys")
    page.get_by_label("API key").fill(secret)
    page.keyboard.press("Enter")
    page.wait_for_url("**/keys")
    page.get_by_text("New key").click()
    page.get_by_label("Name", exact=True).fill("robot")
    page.get_by_role("button", name="Create key").click()
    expect(page.locator("#secret")).to_contain_text("ts_")
    expect(page.locator("#keys")).to_contain_text("robot")
    assert "ts_" not in page.url
    pages.screenshot(page, "keys-created")
    assert find_violations(page) == []
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Revoke robot").click()
    expect(page.locator("#keys tr", has_text="robot")).to_contain_text("Revoked")
    page.set_viewport_size({"width": 390, "height": 844})
    pages.screenshot(page, "keys-phone")
    assert find_violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".top-end summary").click()
    page.get_by_role("button", name="한국어").click()
    page.emulate_media(color_scheme="dark")
    expect(page.locator("#keys")).to_contain_text("old laptop")
    pages.screenshot(page, "keys-phone-dark-ko")
    assert find_violations(page) == []
