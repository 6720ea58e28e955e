"""The pages of deployments in a real browser: accessibility, widths, themes and languages."""

import pytest
from playwright.sync_api import expect

from tests.e2e.web.conftest import Pages
from tests.integration.app.web.seeded_serving import (
    add_deployment,
    add_shown_deployments,
    add_shown_promotions,
)


@pytest.fixture(scope="module")
def ids(service: object) -> dict[str, str]:
    return add_shown_deployments()


def test_the_deployments_are_accessible_at_every_width(pages: Pages, ids: dict[str, str]) -> None:
    pages.look("/deployments", "deployments")


def test_a_deployment_is_accessible_at_every_width(pages: Pages, ids: dict[str, str]) -> None:
    pages.look(f"/deployments/{ids['news-v2']}", "deployment")


def test_an_alias_is_accessible_at_every_width(pages: Pages, ids: dict[str, str]) -> None:
    add_shown_promotions()
    pages.look("/aliases/news", "alias")


def test_a_choice_stays_when_another_deployment_becomes_ready(pages: Pages, ids: dict[str, str]) -> None:
    page = pages.open("/aliases/news")
    choice = page.locator("#alias-share-choice select")
    choice.select_option("news-v2")
    page.get_by_label("Share in %").fill("33")
    add_deployment("news-v3")
    expect(choice).to_contain_text("news-v3")
    assert choice.input_value() == "news-v2"
    page.get_by_role("button", name="Set the share").press("Enter")
    expect(page.locator("#alias-targets")).to_contain_text("33 %")
    assert pages.messages == []
