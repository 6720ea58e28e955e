"""A deployment is ready only once its engine is proved to serve what was trained."""

import json
import sys

from tests.e2e.platform import Platform, sft

# Steps enough that the adapter does something that can be told from its absence.
TRAINED = sft(learning_rate=2e-3)


def deploy(name: str, stage: str = "sft") -> dict[str, object]:
    model = {"stage": stage}
    return {"stage": "deploy", "name": f"serve-{name}", "model": model, "deployment": name, "parity": "on"}


def test_what_is_served_is_what_was_trained_and_the_proof_can_be_read(embedded: Platform) -> None:
    embedded.start_worker()
    job = embedded.finish(embedded.submit(TRAINED, deploy("tuned")))
    assert job["status"] == "succeeded", job
    (deployment,) = embedded.get("/deployments", name="tuned")["items"]
    proof = deployment["parity"]
    assert (deployment["status"], proof["passed"], proof["message"]) == ("ready", True, "They agree.")
    assert abs(proof["adapter_scale"] - 1) < 0.01
    assert proof["equal_answers"] == proof["chats"] > 4


def test_merged_weights_are_held_against_the_adapter_that_they_were_merged_from(embedded: Platform) -> None:
    embedded.start_worker()
    merge = {"stage": "merge", "model": {"stage": "sft"}}
    job = embedded.finish(embedded.submit(TRAINED, merge, deploy("merged", "merge")))
    assert job["status"] == "succeeded", job
    (deployment,) = embedded.get("/deployments", name="merged")["items"]
    assert deployment["parity"]["passed"]
    # Only an adapter has a strength to measure, and the merged weights have none of their own.
    assert abs(deployment["parity"]["adapter_scale"] - 1) < 0.01


def test_an_engine_that_ignores_the_adapter_is_kept_out_of_service(embedded: Platform) -> None:
    program = {"hf": [sys.executable, "-m", "tests.e2e.deaf_engine"]}
    embedded.start_worker(TUNESMITH_ENGINE_PROGRAMS=json.dumps(program))
    job = embedded.finish(embedded.submit(TRAINED, deploy("tuned")))
    assert (job["status"], job["runs"][1]["error"]["code"]) == ("failed", "parity_failed"), job
    (deployment,) = embedded.get("/deployments", name="tuned")["items"]
    assert (deployment["status"], deployment["error"]["code"]) == ("failed", "parity_failed")
    assert "the adapter is ignored" in deployment["parity"]["message"]
    assert deployment["parity"]["difference"]["expected"]["text"]
    assert [row["id"] for row in embedded.client.get("/v1/models").json()["data"]] == []
