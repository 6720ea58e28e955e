"""Cancel, pause, resume and retry reach the programs themselves."""

from tests.e2e.platform import LONG, Platform, family_of, sft, short, until


def test_cancel_leaves_no_process_and_event_and_status_agree(platform: Platform) -> None:
    worker = platform.start_worker()
    job = platform.submit(sft(**LONG), short())
    until(lambda: platform.run(job)["step"] > 0, 120, "training does not begin")
    programs = family_of(worker)
    assert len(programs) >= 2, "a guard and its program"
    assert platform.post(f"/jobs/{job}/cancel")["status"] in ("cancelling", "cancelled")
    until(lambda: not any(program.is_running() for program in programs), 120, "a process is left")
    until(lambda: platform.job(job)["status"] == "cancelled", 120, "the row was not told")
    first, second = platform.job(job)["runs"]
    assert platform.events(first["id"], "status")[-1]["data"]["status"] == "cancelled"
    assert (second["status"], second["error"]["code"]) == ("cancelled", "earlier_stage_ended")


def test_paused_run_resumes_where_it_was(embedded: Platform) -> None:
    embedded.start_worker()
    job = embedded.submit(sft(**{**LONG, "save_every_steps": 100_000}))
    until(lambda: embedded.run(job)["step"] > 10, 120, "training does not begin")
    embedded.post(f"/jobs/{job}/pause")
    until(lambda: embedded.job(job)["status"] == "paused", 120, "it does not pause")
    run = embedded.run(job)
    (saved,) = embedded.get(f"/runs/{run['id']}/checkpoints")["items"]
    assert saved["step"] >= 10
    embedded.post(f"/jobs/{job}/resume")
    assert embedded.resumed_at(job) > saved["step"]
    embedded.post(f"/jobs/{job}/cancel")
    assert embedded.finish(job)["status"] == "cancelled"


def test_retry_of_a_failed_job_runs_the_stages_that_are_left(embedded: Platform) -> None:
    hidden = embedded.folder / "models" / "later"
    embedded.start_worker()
    job = embedded.submit(short() | {"base": str(hidden)}, short() | {"name": "second"})
    assert embedded.finish(job)["runs"][0]["error"]["code"] == "model_not_found"
    hidden.symlink_to(embedded.folder / "models" / "starter")
    embedded.post(f"/jobs/{job}/retry")
    assert embedded.finish(job)["status"] == "succeeded"
    assert [run["error"] for run in embedded.job(job)["runs"]] == [None, None]
