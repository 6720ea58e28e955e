"""The pages of hosts and queues: what each host has and does, why runs wait, and machines that cost money."""

import re
from collections.abc import Callable

from app.storage.database import read_session
from app.tables import Host, HostStatus, Scope, Worker
from tests.integration.app.web.conftest import Browser
from tests.integration.app.web.seeded_hosts import (
    add_cloud_host,
    add_run,
    add_shown_cloud_hosts,
    add_shown_hosts,
    add_worker,
)
from trainers.configs import Queue


def test_a_service_without_workers_shows_the_commands_that_start_one(browser: Browser) -> None:
    shown = browser.get("/hosts").text
    assert "No worker is alive." in shown and "tunesmith worker" in shown
    assert "tunesmith join --url http://127.0.0.1" in shown


def test_a_host_shows_its_devices_and_what_runs_on_it(browser: Browser) -> None:
    ids = add_shown_hosts()
    shown = browser.get("/hosts").text
    assert "8 × NVIDIA H200" in shown and "576 GiB of 1.1 TiB free" in shown
    assert f'href="/runs/{ids["translate-large"]}">translate-large-sft</a>' in shown
    assert "connection to the broker: refused" in shown and "Idle" in shown
    assert "old.lab" not in shown and "old.lab" in browser.get("/hosts?shown=all").text


def test_a_run_that_waits_has_its_reason(browser: Browser) -> None:
    add_shown_hosts()
    shown = browser.get("/hosts").text
    assert "This run is the next one; the only worker on queue cuda is busy." in shown
    assert "0 of 8 GPUs free" in shown and "Show all 5 waiting runs" in shown
    queue = browser.get("/hosts/queues/cuda").text
    assert queue.index("waiting-4-sft") < queue.index("waiting-0-sft")
    assert "4 runs are ahead of this one" in queue


def test_a_queue_of_many_runs_is_shown_in_pages(browser: Browser) -> None:
    for number in range(60):
        add_run(f"job-{number}", Queue.cpu)
    first = browser.get("/hosts/queues/cpu").text
    following = re.search(r'rel="next" href="([^"]+)"', first)
    assert following is not None and first.count("<tr id=") == 50
    assert browser.get(following[1]).text.count("<tr id=") == 10
    assert "Start one: python -m workers --queue cpu" in first


def test_many_workers_are_shown_in_pages(browser: Browser) -> None:
    for number in range(60):
        add_worker(f"w{number}", f"h{number}.lab", [Queue.cpu])
    first = browser.get("/hosts").text
    following = re.search(r'rel="next" href="([^"]+)"', first)
    assert following is not None and first.count('<tr id="row-worker_') == 25
    second = browser.get(following[1]).text
    assert second.count('<tr id="row-worker_') == 25 and 'rel="next"' in second


def test_the_record_of_a_lost_worker_is_deleted_and_that_of_a_live_one_is_not(browser: Browser) -> None:
    ids = add_shown_hosts()
    shown = browser.get("/hosts").text
    assert "No heartbeat of the worker gpu-b since" in shown
    assert browser.post(f"/hosts/workers/{ids['lost']}/delete", page="/hosts").status_code == 303
    refused = browser.post(f"/hosts/workers/{ids['gpu']}/delete", page="/hosts")
    assert refused.status_code == 409 and "is alive" in refused.text
    with read_session() as session:
        assert session.get(Worker, ids["lost"]) is None and session.get(Worker, ids["gpu"]) is not None


def test_a_machine_of_a_cloud_shows_its_cost_and_is_terminated(
    browser: Browser, make_secret: Callable[..., str]
) -> None:
    ids = log_in_to_cloud_hosts(browser, make_secret(Scope.admin))
    overview, shown = browser.get("/hosts").text, browser.get("/hosts/clouds").text
    assert ids["ended"] not in overview and "The cloud has no capacity for gpu_1x_a10" in overview
    assert "$23.92" in shown and "$53." in shown and "It was idle" in shown
    path = f"/hosts/clouds/{ids['ready']}/terminate"
    assert browser.post(path, page="/hosts/clouds").status_code == 303
    with read_session() as session:
        assert session.get_one(Host, ids["ready"]).status is HostStatus.stopping


def test_a_machine_is_launched_within_a_budget(browser: Browser, make_secret: Callable[..., str]) -> None:
    log_in_to_cloud_hosts(browser, make_secret(Scope.admin))
    page, fields = "/hosts/clouds", {"offer": "lambda gpu_1x_a10 us-west-1", "max_usd": "4.5"}
    key = re.search('name="key" value="([0-9a-f]+)"', browser.get(page).text)
    assert key is not None
    for _ in range(2):
        assert browser.post(f"{page}/launch", page=page, key=key[1], **fields).status_code == 303
    poor = browser.post(f"{page}/launch", page=page, **fields | {"max_usd": "0.1"})
    wrong = browser.post(f"{page}/launch", page=page, **fields | {"max_usd": "much"})
    assert (poor.status_code, wrong.status_code) == (422, 422) and "One hour of gpu_1x_a10" in poor.text
    launched = re.findall(r'id="row-(host_\w+)"', browser.get(f"{page}?status=launching").text)
    with read_session() as session:
        budgets = [session.get_one(Host, host_id).max_usd for host_id in launched]
    assert budgets.count(4.5) == 1, "a form that is sent twice launches one machine"


def test_actions_without_their_scope_are_shown_with_the_reason(
    browser: Browser, make_secret: Callable[..., str]
) -> None:
    ids = log_in_to_cloud_hosts(browser, make_secret(Scope.read, Scope.write))
    assert "lacks the scope “admin”" in browser.get("/hosts").text
    path = f"/hosts/clouds/{ids['ready']}/terminate"
    assert browser.post(path, page="/hosts").status_code == 403


def test_machines_are_filtered_by_status(browser: Browser, make_secret: Callable[..., str]) -> None:
    ids = log_in_to_cloud_hosts(browser, make_secret(Scope.read))
    shown = browser.get("/hosts/clouds?status=launching").text
    assert ids["launching"] in shown and ids["ready"] not in shown
    assert "No machine matches these filters." in browser.get("/hosts/clouds?status=booting").text


def test_many_machines_are_shown_in_pages(browser: Browser) -> None:
    for _ in range(60):
        add_cloud_host(status=HostStatus.terminated)
    first = browser.get("/hosts/clouds").text
    following = re.search(r'rel="next" href="([^"]+)"', first)
    assert following is not None and first.count('<tr id="row-host_') == 50
    assert browser.get(following[1]).text.count('<tr id="row-host_') == 10


def log_in_to_cloud_hosts(browser: Browser, secret: str) -> dict[str, str]:
    """Insert machines, with which every request needs a key, and return their ids by name."""
    browser.post("/login", key=secret)
    return add_shown_cloud_hosts()
