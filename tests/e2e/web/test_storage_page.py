"""The page of storage in a real browser: accessibility, widths, themes and languages."""

from tests.e2e.web.conftest import Pages


def test_the_storage_is_accessible_at_every_width(pages: Pages) -> None:
    pages.look("/storage", "storage")
