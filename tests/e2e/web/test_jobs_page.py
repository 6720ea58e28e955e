"""The list of jobs in a real browser: live rows, filters, a service that goes away, and accessibility."""

from typing import Any

from playwright.sync_api import expect

from app.jobs import actions
from app.keys import service as keys
from app.keys.schemas import KeyCreate
from app.storage.database import transaction
from app.tables import Scope
from tests.e2e.platform import kill
from tests.e2e.web.conftest import SECONDS, Pages, find_violations, restart


def pause(pages: Pages, name: str) -> str:
    """Pause a job as another client does, and return the selector of its row."""
    job_id = pages.runs[name][0].job_id
    with transaction() as session:
        actions.pause(session, job_id)
    return f"#row-{job_id}"


def test_the_list_is_accessible_at_every_width_in_both_themes(pages: Pages) -> None:
    pages.look("/jobs", "jobs")


def test_a_job_is_accessible_at_every_width_in_both_themes(pages: Pages) -> None:
    pages.look(f"/jobs/{pages.runs['support-chat-v3'][0].job_id}", "job")


def test_an_empty_list_says_what_to_do(pages: Pages) -> None:
    page = pages.open("/jobs?search=nothing-has-this-name")
    expect(page.locator("#jobs")).to_contain_text("No job matches these filters.")
    pages.screenshot(page, "jobs-empty")
    assert pages.messages == []


def test_two_tabs_show_a_change_of_another_client(pages: Pages) -> None:
    page = pages.open("/jobs")
    other = page.context.new_page()
    other.goto("/jobs?search=legal")
    row = pause(pages, "legal-summaries")
    expect(other.locator(row)).to_contain_text("Paused")
    expect(page.locator(row)).to_contain_text("Paused")
    page.reload()
    expect(page.locator(row)).to_contain_text("Paused")


def test_a_filter_is_in_the_url_and_its_rows_are_live(pages: Pages) -> None:
    page = pages.open("/jobs")
    page.get_by_label("Search names").fill("ko-en")
    expect(page.locator("#jobs")).not_to_contain_text("medical-qa")
    page.wait_for_url("**/jobs?search=ko-en*")
    row = pause(pages, "ko-en-news")
    expect(page.locator(row)).to_contain_text("Pausing")
    page.go_back()
    expect(page.locator("#jobs tr")).to_have_count(50)


def test_a_button_acts_without_a_new_page(pages: Pages) -> None:
    page = pages.open(f"/jobs/{pages.runs['support-chat-v2'][0].job_id}")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("h1")).to_contain_text("Queued")
    # A button that cannot be used can still be pressed, which shows the reason.
    page.get_by_role("button", name="Resume").click(force=True)
    expect(page.locator("#notices")).to_contain_text("Possible only when the job is: Paused.")
    assert pages.messages == []


def test_a_page_survives_a_service_that_is_killed(pages: Pages) -> None:
    page = pages.open("/jobs")
    kill(pages.platform.processes[-1])
    expect(page.locator("#connection")).to_have_text("Connection lost, retrying")
    row = pause(pages, "maths-grpo-nightly")
    restart(pages.platform)
    expect(page.locator("#connection")).to_have_text("Live", timeout=2 * SECONDS)
    expect(page.locator(row)).to_contain_text("Pausing")


def test_a_hidden_tab_has_no_stream_and_catches_up(pages: Pages) -> None:
    page = pages.open("/jobs")
    set_hidden(page, hidden=True)
    expect(page.locator("#connection")).to_have_attribute("data-state", "paused")
    job_id = pages.runs["medical-qa"][0].job_id
    with transaction() as session:
        actions.cancel(session, job_id)
    set_hidden(page, hidden=False)
    expect(page.locator(f"#row-{job_id}")).to_contain_text("Cancelling")


def set_hidden(page: Any, *, hidden: bool) -> None:
    """Make the page believe that its tab is hidden or shown: a headless browser never hides one."""
    page.evaluate(
        """hidden => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


def test_a_login_leads_to_the_page_that_was_asked_for_and_ends_with_its_key(pages: Pages) -> None:
    # The last test of the module: from here on, the service needs a key.
    with transaction() as session:
        key, secret = keys.create_key(session, KeyCreate(name="browser", scopes=[Scope.admin]))
    page = pages.open("/jobs?status=failed", "phone", "dark", "ko")
    assert find_violations(page) == []
    pages.screenshot(page, "login-phone-dark-ko")
    page.locator("#key").fill(secret)
    page.locator("#key").press("Enter")
    page.wait_for_url("**/jobs?status=failed")
    page.wait_for_selector('#connection[data-state="live"]')
    with transaction() as session:
        keys.create_key(session, KeyCreate(name="another", scopes=[Scope.admin]))
        keys.revoke_key(session, key.id)
    page.wait_for_url("**/login?next=*")
