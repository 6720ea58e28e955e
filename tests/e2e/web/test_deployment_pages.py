"""The pages of deployments in a real browser: accessibility, widths, themes and languages."""

import pytest

from tests.e2e.web.conftest import Pages
from tests.integration.app.web.seeded_serving import add_shown_deployments


@pytest.fixture(scope="module")
def ids(service: object) -> dict[str, str]:
    return add_shown_deployments()


def test_the_deployments_are_accessible_at_every_width(pages: Pages, ids: dict[str, str]) -> None:
    pages.look("/deployments", "deployments")


def test_a_deployment_is_accessible_at_every_width(pages: Pages, ids: dict[str, str]) -> None:
    pages.look(f"/deployments/{ids['news-v2']}", "deployment")
