"""The pages of deployments: their states in words, aliases, and what can be done."""

import re
from collections.abc import Callable

from app.tables import DeploymentStatus, Scope
from serving.gateway.metrics import REQUEST_METRICS
from tests.integration.app.web.conftest import Browser
from tests.integration.app.web.seeded_serving import add_deployment, add_shown_deployments


def test_a_service_without_deployments_says_what_to_do_first(browser: Browser) -> None:
    assert "No deployment yet." in browser.get("/deployments").text


def test_each_state_is_explained(browser: Browser) -> None:
    ids = add_shown_deployments()
    shown = browser.get("/deployments").text
    assert "the GPU has 15.8 GiB free" in shown and "No live worker serves queue cpu" in shown
    assert ">Differs<" in shown and ">Same<" in shown
    failed = browser.get(f"/deployments/{ids['ill']}").text
    assert "Set options.quantization to fp8" in failed
    assert "does not answer like the trained one" in browser.get(f"/deployments/{ids['news-v2']}").text
    assert browser.get("/deployments?status=failed").text.count("<tr id=") == 1
    assert browser.get("/deployments/deployment_none").status_code == 404


def test_an_alias_is_promoted_and_rolled_back(browser: Browser) -> None:
    add_shown_deployments()
    assert "<b>90 %</b>" in browser.get("/deployments").text
    promoted = browser.post("/aliases/news/share", page="/deployments", deployment="news-v2", percent="100")
    assert (promoted.status_code, promoted.headers["location"]) == (303, "/aliases/news")
    assert "<b>100 %</b>" in browser.get("/deployments").text
    assert browser.post("/aliases/news/rollback", page="/deployments").status_code == 303
    assert "<b>90 %</b>" in browser.get("/deployments").text


def test_a_deployment_is_woken_stopped_and_deleted(browser: Browser) -> None:
    ids = add_shown_deployments()
    for action, name in (("wake", "asleep"), ("stop", "waiting"), ("delete", "ill")):
        assert browser.post(f"/deployments/{ids[name]}/{action}", page="/deployments").status_code == 303
    assert "Queued" in browser.get(f"/deployments/{ids['asleep']}").text
    assert browser.get(f"/deployments/{ids['ill']}").status_code == 404
    refused = browser.post(f"/deployments/{ids['news-v1']}/stop", page="/deployments")
    assert refused.status_code == 409 and "routes to" in refused.text


def test_a_button_that_cannot_be_used_has_its_reason(
    browser: Browser, make_secret: Callable[..., str]
) -> None:
    stopped = add_deployment("old", status=DeploymentStatus.stopped, address=None)
    shown = browser.get(f"/deployments/{stopped}").text
    assert "Possible only when the deployment is: Asleep." in shown
    browser.post("/login", key=make_secret(Scope.read, Scope.write))
    assert "lacks the scope “inference”" in browser.get(f"/deployments/{stopped}").text


def test_the_requests_to_a_name_are_counted_on_its_page(browser: Browser) -> None:
    # The process counts the requests of all its tests: no other one sends any to this name.
    add_shown_deployments()
    deployment = add_deployment("counted-on-its-page")
    for status, seconds in ((200, 0.2), (200, 0.4), (500, 0.6), (429, 0.0), (400, 0.0), (499, 0.6)):
        requests = REQUEST_METRICS.for_model("counted-on-its-page")
        requests.observe(status, seconds, None, 10, 20 if status == 200 else None)
    shown = browser.get(f"/deployments/{deployment}").text
    assert re.search(r"6 · <span class=\"bad\">2 failed</span> · 1 not valid<br>", shown)
    assert "0.30 s on average" in shown and "40 tokens generated" in shown
    assert "not valid" not in browser.get("/aliases/news").text


def test_a_thousand_deployments_are_pages(browser: Browser) -> None:
    for number in range(60):
        add_deployment(f"d{number}", status=DeploymentStatus.stopped, address=None)
    first = browser.get("/deployments").text
    following = re.search(r'rel="next" href="([^"]+)"', first)
    assert following is not None and first.count("<tr id=") == 50
    assert browser.get(following[1]).text.count("<tr id=") == 10
