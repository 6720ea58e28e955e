"""The pages of models in a real browser: accessibility, widths, themes and languages."""

from playwright.sync_api import expect

from app.http.paging import PageQuery
from app.models.service import list_models
from app.storage.database import read_session
from tests.e2e.web.conftest import Pages


def find_model(name: str = "ko-en-news-sft") -> str:
    """Return the id of a model."""
    with read_session() as session:
        return str(list_models(session, PageQuery(), name, None)[0][0].id)


def test_the_list_of_models_is_accessible_at_every_width(pages: Pages) -> None:
    pages.look("/models", "models")


def test_a_model_is_accessible_at_every_width(pages: Pages) -> None:
    pages.look(f"/models/{find_model()}", "model")


def test_a_deployment_appears_without_a_new_page(pages: Pages) -> None:
    page = pages.open(f"/models/{find_model()}")
    page.get_by_label("Name").fill("from-the-page")
    page.get_by_role("button", name="Deploy").click()
    expect(page.locator("#model-lineage")).to_contain_text("from-the-page")
    assert pages.messages == []
