"""The pages of hosts and queues in a real browser: accessibility, widths, and changes without a reload."""

import pytest
from playwright.sync_api import expect

from app.keys import service as keys
from app.keys.schemas import KeyCreate
from app.storage.database import transaction
from app.tables import Run, RunStatus, Scope
from tests.e2e.web.conftest import Pages
from tests.integration.app.web.seeded_hosts import add_shown_cloud_hosts, add_shown_hosts


@pytest.fixture(scope="module")
def ids(service: object) -> dict[str, str]:
    return add_shown_hosts()


def test_the_hosts_are_accessible_at_every_width(pages: Pages, ids: dict[str, str]) -> None:
    pages.look("/hosts", "hosts")


def test_a_queue_changes_without_a_reload(pages: Pages, ids: dict[str, str]) -> None:
    page = pages.open("/hosts/queues/cuda")
    first = page.locator(f"#row-{ids['waiting-4']}")
    expect(first).to_contain_text("This run is the next one")
    with transaction() as session:
        session.get_one(Run, ids["waiting-4"]).status = RunStatus.cancelled
    expect(first).to_have_count(0)
    expect(page.locator("#waiting tr").first).to_contain_text("This run is the next one")
    assert pages.messages == []


def test_a_lost_worker_is_forgotten_by_keyboard(pages: Pages, ids: dict[str, str]) -> None:
    page = pages.open("/hosts")
    page.get_by_role("button", name="Delete the record of the worker gpu-b").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#hosts")).not_to_contain_text("gpu-b.lab")


def test_machines_of_clouds_are_accessible_at_every_width(pages: Pages, ids: dict[str, str]) -> None:
    # The last test of the module: from here on, the service needs a key.
    with transaction() as session:
        _, secret = keys.create_key(session, KeyCreate(name="browser", scopes=[Scope.admin]))
    add_shown_cloud_hosts()
    page = pages.open("/hosts/clouds")
    page.locator("#key").fill(secret)
    page.locator("#key").press("Enter")
    page.wait_for_url("**/hosts/clouds")
    page.set_viewport_size({"width": 390, "height": 844})
    page.locator("#launch summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    pages.look("/hosts/clouds", "clouds", storage_state=page.context.storage_state())
