"""Cancel, pause, resume and retry reach the programs themselves."""

from tests.e2e.platform import LONG, Platform, list_children, sft_stage, short_stage, wait_until


def test_cancel_leaves_no_process_and_event_and_status_agree(platform: Platform) -> None:
    worker = platform.start_worker()
    job = platform.submit(sft_stage(**LONG), short_stage())
    wait_until(lambda: platform.run(job)["step"] > 0, 120, "training does not begin")
    programs = list_children(worker)
    assert len(programs) >= 2, "a guard and its program"
    assert platform.post(f"/jobs/{job}/cancel")["status"] in ("cancelling", "cancelled")
    wait_until(lambda: not any(program.is_running() for program in programs), 120, "a process is left")
    wait_until(lambda: platform.job(job)["status"] == "cancelled", 120, "the row does not show it")
    first, second = platform.job(job)["runs"]
    assert platform.events(first["id"], "status")[-1]["data"]["status"] == "cancelled"
    assert (second["status"], second["error"]) == ("cancelled", None), "a person has cancelled it as well"


def test_a_paused_run_resumes_from_its_checkpoint(embedded: Platform) -> None:
    embedded.start_worker()
    job = embedded.submit(sft_stage(**{**LONG, "save_every_steps": 100_000}))
    wait_until(lambda: embedded.run(job)["step"] > 10, 120, "training does not begin")
    embedded.post(f"/jobs/{job}/pause")
    wait_until(lambda: embedded.job(job)["status"] == "paused", 120, "it does not pause")
    run = embedded.run(job)
    (saved,) = embedded.get(f"/runs/{run['id']}/checkpoints")["items"]
    assert saved["step"] >= 10
    embedded.post(f"/jobs/{job}/resume")
    assert embedded.first_resumed_step(job) > saved["step"]
    embedded.post(f"/jobs/{job}/cancel")
    assert embedded.wait_until_finished(job)["status"] == "cancelled"


def test_a_retry_runs_the_failed_stage_and_those_after_it(embedded: Platform) -> None:
    hidden = embedded.folder / "models" / "later"
    embedded.start_worker()
    job = embedded.submit(short_stage() | {"base": str(hidden)}, short_stage() | {"name": "second"})
    assert embedded.wait_until_finished(job)["runs"][0]["error"]["code"] == "model_not_found"
    hidden.symlink_to(embedded.folder / "models" / "starter")
    embedded.post(f"/jobs/{job}/retry")
    assert embedded.wait_until_finished(job)["status"] == "succeeded"
    assert [run["error"] for run in embedded.job(job)["runs"]] == [None, None]
