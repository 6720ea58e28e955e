"""Later stages of a job read the datasets that its prepare stage produces."""

from tests.e2e.platform import Platform, sft_stage, wait_until


def test_later_stages_train_and_evaluate_on_the_parts_of_prepare(team: Platform) -> None:
    team.start_worker()
    split = {
        "stage": "prepare",
        "name": "parts",
        "dataset": "train",
        "base": "starter",
        "split": {"test": 24},
    }
    evaluation = {
        "stage": "evaluate",
        "model": {"stage": "sft"},
        "dataset": {"stage": "parts", "part": "test"},
        "max_new_tokens": 8,
    }
    job = team.submit(split, sft_stage(dataset={"stage": "parts"}, max_steps=4), evaluation)
    ended = team.wait_until_finished(job)
    assert ended["status"] == "succeeded", ended
    prepared, trained, evaluated = ended["runs"]
    assert (
        prepared["finished_at"] <= trained["started_at"] < trained["finished_at"] <= evaluated["started_at"]
    )
    shown = prepared["result"]["rows"][0]
    assert 0 < shown["loss_token_count"] < shown["token_count"]
    parts = {part["part"]: part for part in prepared["result"]["datasets"]}
    assert parts["train"]["rows"] + parts["test"]["rows"] == 160
    assert team.get(f"/datasets/{parts['test']['id']}")["row_count"] == parts["test"]["rows"]
    assert evaluated["result"]["n"] == parts["test"]["rows"]
    model = team.get(f"/models/{trained['model_id']}")
    assert (model["kind"], model["run_id"]) == ("adapter", trained["id"])
    assert model["dataset"]["id"] == parts["train"]["id"]


def test_preflight_checks_a_job_before_it_is_submitted(embedded: Platform) -> None:
    embedded.start_worker()
    wait_until(lambda: bool(embedded.get("/workers")["items"]), 120, "no worker")
    evaluation = {"stage": "evaluate", "model": {"stage": "sft"}, "dataset": "train"}
    body = {"name": "leaky", "stages": [sft_stage(), evaluation]}
    posted = embedded.post("/jobs/preflight", body)
    run, checked = embedded.wait_until_finished(posted["job"]["id"])["runs"]
    assert (run["status"], checked["status"]) == ("succeeded", "succeeded"), run
    assert checked["result"]["passed"] is True, checked["result"]
    assert run["result"]["passed"] is False
    assert "test_rows_in_training" in [finding["code"] for finding in run["result"]["findings"]]
