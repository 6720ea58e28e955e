"""Which worker takes which run, and when."""

from concurrent.futures import ThreadPoolExecutor

from tests.e2e.platform import LONG, Platform, sft_stage, short_stage, wait_until


def test_many_notifications_and_two_workers_run_each_run_once(platform: Platform) -> None:
    jobs = [platform.submit(short_stage()) for _ in range(3)]
    notify = [
        "-c",
        "from app.scheduling.queue import notify; from trainers.configs import Queue;"
        "[notify(Queue.cpu) for _ in range(9)]",
    ]
    assert platform.start(notify, "notify").wait(60) == 0
    with ThreadPoolExecutor() as pool:
        list(pool.map(platform.start_worker, ("one", "two")))
    for job in jobs:
        assert platform.wait_until_finished(job)["status"] == "succeeded"
        run = platform.run(job)
        assert run["attempt"] == 1
        starts = [
            event for event in platform.events(run["id"], "status") if event["data"]["status"] == "running"
        ]
        assert len(starts) == 1


def test_a_busy_worker_takes_no_notification_from_an_idle_one(platform: Platform) -> None:
    platform.start_worker("busy")
    long_job = platform.submit(sft_stage(**LONG))
    wait_until(lambda: platform.run(long_job)["status"] == "running", 120, "no worker claimed the long run")
    busy = platform.run(long_job)["worker_id"]
    platform.start_worker("idle")
    jobs = [platform.submit(short_stage()) for _ in range(5)]
    for job in jobs:
        assert platform.wait_until_finished(job)["status"] == "succeeded"
        started = next(
            e for e in platform.events(platform.run(job)["id"], "status") if "worker_id" in e["data"]
        )
        assert started["data"]["worker_id"] != busy
    assert platform.run(long_job)["status"] == "running"


def test_higher_priority_posted_later_starts_first(embedded: Platform) -> None:
    low, high = embedded.submit(short_stage(), priority=0), embedded.submit(short_stage(), priority=50)
    embedded.start_worker()
    embedded.wait_until_finished(low)
    assert embedded.run(high)["started_at"] < embedded.run(low)["started_at"]


def test_job_without_a_worker_says_what_it_waits_for(embedded: Platform) -> None:
    embedded.start_worker()
    job = embedded.submit(short_stage(), queue="cuda")
    assert "cuda" in embedded.run(job)["waiting_for"]
    assert "python -m workers --queue cuda" in embedded.run(job)["waiting_for"]
