"""Datasets that one stage makes are what later stages of the job read."""

from tests.e2e.platform import Platform, sft, until


def test_later_stages_train_and_are_judged_on_the_parts_that_prepare_has_made(platform: Platform) -> None:
    platform.start_worker()
    split = {
        "stage": "prepare",
        "name": "parts",
        "dataset": "train",
        "base": "starter",
        "split": {"test": 24},
    }
    judged = {
        "stage": "evaluate",
        "model": {"stage": "sft"},
        "dataset": {"stage": "parts", "part": "test"},
        "max_new_tokens": 8,
    }
    job = platform.submit(split, sft(dataset={"stage": "parts"}, max_steps=4), judged)
    ended = platform.finish(job)
    assert ended["status"] == "succeeded", ended
    prepared, trained, evaluated = ended["runs"]
    assert (
        prepared["finished_at"] <= trained["started_at"] < trained["finished_at"] <= evaluated["started_at"]
    )
    shown = prepared["result"]["rows"][0]
    assert 0 < shown["loss_token_count"] < shown["token_count"]
    made = {part["part"]: part for part in prepared["result"]["datasets"]}
    assert made["train"]["rows"] + made["test"]["rows"] == 160
    assert platform.get(f"/datasets/{made['test']['id']}")["row_count"] == made["test"]["rows"]
    assert evaluated["result"]["model"]["n"] == made["test"]["rows"]
    model = platform.get(f"/models/{trained['model_id']}")
    assert (model["kind"], model["run_id"]) == ("adapter", trained["id"])
    assert model["dataset"]["id"] == made["train"]["id"]


def test_preflight_judges_a_job_before_it_is_posted(embedded: Platform) -> None:
    embedded.start_worker()
    until(lambda: bool(embedded.get("/workers")["items"]), 120, "no worker")
    judged = {"stage": "evaluate", "model": {"stage": "sft"}, "dataset": "train"}
    body = {"name": "leaky", "stages": [sft(), judged]}
    posted = embedded.post("/jobs/preflight", body)
    (run,) = embedded.finish(posted["job"]["id"])["runs"]
    assert run["status"] == "succeeded", run
    assert run["result"]["passed"] is False
    assert "test_rows_in_training" in [finding["code"] for finding in run["result"]["findings"]]
