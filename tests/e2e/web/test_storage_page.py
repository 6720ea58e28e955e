"""The page of storage in a real browser: accessibility, widths, and a collection that is shown, then made."""

from playwright.sync_api import expect

from tests.e2e.web.conftest import Pages


def test_the_storage_is_accessible_at_every_width(pages: Pages) -> None:
    pages.look("/storage", "storage")


def test_a_collection_is_shown_by_keyboard_before_it_removes_anything(pages: Pages) -> None:
    page = pages.open("/storage")
    page.get_by_role("button", name="Show what a collection would remove").focus()
    page.keyboard.press("Enter")
    shown = page.locator("#collection")
    expect(shown).to_contain_text("A collection now would remove")
    assert pages.messages == []
