"""A failure has a code, a message and a hint; the traceback is in the log only."""

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.e2e.platform import Platform, sft_stage


def read_error(platform: Platform, job: str, position: int = 0) -> dict[str, str]:
    """Return the error of a failed run, which must not contain a traceback."""
    assert platform.wait_until_finished(job)["status"] == "failed"
    error: dict[str, str] = platform.run(job, position)["error"]
    assert "Traceback" not in error["message"]
    assert error["hint"]
    return error


def test_bad_spec_is_refused_before_anything_is_queued(embedded: Platform) -> None:
    answer = embedded.client.post(
        "/api/v1/jobs",
        json={"name": "bad", "stages": [sft_stage(learning_rate=-1), sft_stage(name="two", epoch=3)]},
    )
    assert answer.status_code == 422
    fields = {fault["field"] for fault in answer.json()["error"]["fields"]}
    assert {"stages.0.learning_rate", "stages.1.epoch"} <= fields
    assert embedded.get("/jobs")["items"] == []


def test_model_folder_that_does_not_exist_is_named(embedded: Platform) -> None:
    embedded.start_worker()
    folder = embedded.folder / "models" / "nowhere"
    error = read_error(embedded, embedded.submit(sft_stage(base=str(folder))))
    assert error["code"] == "model_not_found"
    assert str(folder) in error["message"]


def test_later_stage_that_would_fail_ends_the_job_before_it_trains(embedded: Platform) -> None:
    embedded.start_worker()
    sums = [{"prompt": f"{n} + 1?", "completion": f"#### {n + 1}"} for n in range(1001)]
    # The API reads the first 1,000 rows.
    embedded.upload("scored", [*sums, {"prompt": "1 + 1?", "completion": "I do not know."}])
    job = embedded.submit(
        sft_stage(base=str(embedded.folder / "models" / "starter")),
        {"stage": "evaluate", "name": "score", "model": {"stage": "sft"}, "dataset": "scored"},
    )
    error = read_error(embedded, job)
    assert error["code"] == "later_stage_invalid"
    assert "'score' (evaluate) would fail. Row 1002 " in error["message"]
    assert error["hint"].endswith("Nothing has been trained yet.")
    assert embedded.events(embedded.run(job)["id"], "metrics") == []
    assert embedded.run(job, 1)["status"] == "cancelled"


def test_unreadable_adapter_is_named_and_its_traceback_is_in_the_log(
    embedded: Platform, adapters: dict[str, Path], tmp_path: Path
) -> None:
    embedded.start_worker()
    other = tmp_path / "other"
    shutil.copytree(adapters["a"], other)
    save_file({"base_model.model.other": np.zeros(4, np.float32)}, other / "adapter_model.safetensors")
    again = embedded.submit(sft_stage(base=embedded.register_adapter("other", other)))
    assert read_error(embedded, again)["code"] == "adapter_unreadable"
    log = embedded.client.get(f"/api/v1/runs/{embedded.run(again)['id']}/files/log.txt")
    assert "Traceback" in log.text
