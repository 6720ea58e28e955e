"""A job that generates a completion for every row of a dataset, with an engine of its own."""

import json

from tests.e2e.platform import Platform, sft_stage


def test_a_trained_model_completes_a_dataset_in_the_order_of_its_rows(embedded: Platform) -> None:
    embedded.start_worker()
    stage = {"stage": "generate", "model": {"stage": "sft"}, "dataset": "test", "max_new_tokens": 24}
    (_, generated) = embedded.wait_until_finished(embedded.submit(sft_stage(), stage))["runs"]
    assert generated["status"] == "succeeded", generated
    assert (generated["result"]["rows"], generated["result"]["failed"]) == (24, 0)
    file = embedded.client.get(f"/api/v1/runs/{generated['id']}/files/predictions.jsonl")
    lines = [json.loads(line) for line in file.text.splitlines()]
    assert [line["row"] for line in lines] == list(range(1, 25))
    assert all(line["prediction"] and line["reference"] for line in lines)


def test_a_job_may_not_name_the_url_of_an_engine(embedded: Platform) -> None:
    stage = {"stage": "generate", "model": "starter", "dataset": "test", "engine_url": "http://127.0.0.1:1"}
    refused = embedded.client.post("/api/v1/jobs", json={"name": "x", "stages": [stage]})
    assert refused.status_code == 422
    assert "stages.0.engine_url" in refused.text
