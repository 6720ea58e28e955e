"""The page of a run in a browser: curves and log that grow, and a run that ends while the page sleeps."""

from playwright.sync_api import expect

from app.runs import lifecycle
from app.storage.database import transaction
from app.tables import RunStatus
from tests.e2e.platform import wait_until
from tests.e2e.web.conftest import Pages
from tests.e2e.web.test_jobs_page import set_hidden
from tests.integration.app.web import seeded_jobs

N_CHARTS = 4
# A button says for a second that it has copied, which a look from time to time can miss.
RECORD_TEXTS = """button => {
    globalThis.texts = [];
    const record = () => texts.push(button.innerText.trim());
    new MutationObserver(record).observe(button, { childList: true, characterData: true, subtree: true });
}"""


def test_the_page_of_a_run_is_accessible_at_every_width_in_both_themes(pages: Pages) -> None:
    pages.look(f"/runs/{pages.runs['ko-en-news'][0].id}", "run", ready=".u-wrap")


def test_the_page_of_a_failed_run_shows_the_fix(pages: Pages) -> None:
    page = pages.open(f"/runs/{pages.runs['support-chat-v3'][0].id}", "phone", "dark", "ko")
    expect(page.locator("#run-head")).to_contain_text("Set micro_batch_size to 8")
    pages.screenshot(page, "run-failed-phone-dark-ko")
    assert pages.messages == []


def test_curves_and_log_grow_with_the_run(pages: Pages) -> None:
    run = pages.runs["ko-en-news"][0]
    page = pages.open(f"/runs/{run.id}?smooth=0.9&x=time")
    expect(page.locator(".u-wrap")).to_have_count(N_CHARTS)
    assert (page.locator("[name=smooth]").input_value(), page.locator("[name=x]").input_value()) == (
        "0.9",
        "time",
    )
    seeded_jobs.add_metrics(run, 1, from_step=20_000)
    expect(page.locator("#log")).to_contain_text("step 20000 of 1,")
    expect(page.locator("#run-progress")).to_contain_text("20,001")
    page.locator("[name=log]").check()
    page.wait_for_url("**log=1*")
    page.get_by_label("Search the log").fill("step 20000")
    expect(page.locator("#log-count")).to_have_text("1 lines")
    assert pages.messages == []


def test_a_run_that_ends_while_the_page_sleeps_shows_its_end(pages: Pages) -> None:
    run = pages.runs["maths-grpo-nightly"][1]
    page = pages.open(f"/runs/{run.id}")
    set_hidden(page, hidden=True)
    with transaction() as session:
        error = {"code": "program_killed", "message": "The program ended.", "hint": "Read the log."}
        lifecycle.move(session, run.id, RunStatus.failed, values={"error": error})
    set_hidden(page, hidden=False)
    expect(page.locator("h1")).to_contain_text("Failed")
    expect(page.locator("#run-head")).to_contain_text("Read the log.")


def test_the_config_can_be_copied(pages: Pages) -> None:
    page = pages.open(
        f"/runs/{pages.runs['ko-en-news'][0].id}", permissions=["clipboard-read", "clipboard-write"]
    )
    button = page.locator('[data-copy="config"]')
    button.evaluate(RECORD_TEXTS)
    button.click()
    wait_until(lambda: "Copied" in page.evaluate("texts"), 60, "the button does not say it")
    assert '"stage": "sft"' in page.evaluate("navigator.clipboard.readText()")
