"""A deployment is ready only once its engine is proved to serve what was trained."""

import json
import sys
from pathlib import Path

import pytest

from tests.e2e.platform import Platform, sft


@pytest.fixture(scope="module")
def trained(shared: Platform) -> str:
    """An adapter of steps enough that it does something that can be told from its absence."""
    (run,) = shared.finish(shared.submit(sft(learning_rate=2e-3)))["runs"]
    model: str = run["model_id"]
    return model


def deploy(name: str, model: object) -> dict[str, object]:
    return {"stage": "deploy", "name": f"serve-{name}", "model": model, "deployment": name, "parity": "on"}


def test_what_is_served_is_what_was_trained_and_the_proof_can_be_read(shared: Platform, trained: str) -> None:
    job = shared.finish(shared.submit(deploy("tuned", trained)))
    assert job["status"] == "succeeded", job
    (deployment,) = shared.get("/deployments", name="tuned")["items"]
    proof = deployment["parity"]
    assert (deployment["status"], proof["passed"], proof["message"]) == ("ready", True, "They agree.")
    assert abs(proof["adapter_scale"] - 1) < 0.01
    assert proof["equal_completions"] == proof["chats"] > 4


def test_merged_weights_are_held_against_the_adapter_that_they_were_merged_from(
    shared: Platform, trained: str
) -> None:
    merge = {"stage": "merge", "model": trained}
    job = shared.finish(shared.submit(merge, deploy("merged", {"stage": "merge"})))
    assert job["status"] == "succeeded", job
    (deployment,) = shared.get("/deployments", name="merged")["items"]
    assert deployment["parity"]["passed"]
    # Only an adapter has a strength to measure, and the merged weights have none of their own.
    assert abs(deployment["parity"]["adapter_scale"] - 1) < 0.01


def test_an_engine_that_ignores_the_adapter_is_kept_out_of_service(
    embedded: Platform, adapters: dict[str, Path]
) -> None:
    program = {"hf": [sys.executable, "-m", "tests.e2e.adapterless_engine"]}
    embedded.start_worker(TUNESMITH_ENGINE_COMMANDS=json.dumps(program))
    job = embedded.finish(embedded.submit(deploy("tuned", embedded.register("tuned", adapters["a"]))))
    assert (job["status"], job["runs"][0]["error"]["code"]) == ("failed", "parity_failed"), job
    (deployment,) = embedded.get("/deployments", name="tuned")["items"]
    assert (deployment["status"], deployment["error"]["code"]) == ("failed", "parity_failed")
    assert "the adapter is ignored" in deployment["parity"]["message"]
    assert deployment["parity"]["difference"]["expected"]["text"]
    assert [row["id"] for row in embedded.client.get("/v1/models").json()["data"]] == []
