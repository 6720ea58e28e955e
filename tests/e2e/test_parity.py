"""Parity of the served and the trained model.

Goal: a deployment becomes ready only if its engine generates what the trained model generates. Method: real
engines, one of which ignores adapters.
"""

import json
import sys
from pathlib import Path

import pytest

from tests.e2e.platform import Platform, sft_stage


@pytest.fixture(scope="module")
def trained(shared: Platform) -> str:
    """Return an adapter that was trained long enough to change the completions."""
    (run,) = shared.wait_until_finished(shared.submit(sft_stage(learning_rate=2e-3)))["runs"]
    model: str = run["model_id"]
    return model


def deploy(name: str, model: object) -> dict[str, object]:
    return {"stage": "deploy", "name": f"serve-{name}", "model": model, "deployment": name, "parity": "on"}


def test_the_served_model_equals_the_trained_one_and_the_report_is_public(
    shared: Platform, trained: str
) -> None:
    job = shared.wait_until_finished(shared.submit(deploy("tuned", trained)))
    assert job["status"] == "succeeded", job
    (deployment,) = shared.get("/deployments", name="tuned")["items"]
    report = deployment["parity"]
    assert (deployment["status"], report["passed"], report["message"]) == ("ready", True, "They agree.")
    assert abs(report["adapter_scale"] - 1) < 0.01
    assert report["equal_completions"] == report["chats"] > 4


def test_merged_weights_are_compared_with_the_adapter_from_which_they_were_merged(
    shared: Platform, trained: str
) -> None:
    merge = {"stage": "merge", "model": trained}
    job = shared.wait_until_finished(shared.submit(merge, deploy("merged", {"stage": "merge"})))
    assert job["status"] == "succeeded", job
    (deployment,) = shared.get("/deployments", name="merged")["items"]
    assert deployment["parity"]["passed"]
    # The scale is measured on the adapter: merged weights have none.
    assert abs(deployment["parity"]["adapter_scale"] - 1) < 0.01


def test_an_engine_that_ignores_the_adapter_fails_the_deployment(
    embedded: Platform, adapters: dict[str, Path]
) -> None:
    program = {"hf": [sys.executable, "-m", "tests.e2e.adapterless_engine"]}
    embedded.start_worker(TUNESMITH_ENGINE_COMMANDS=json.dumps(program))
    job = embedded.wait_until_finished(
        embedded.submit(deploy("tuned", embedded.register_adapter("tuned", adapters["a"])))
    )
    assert (job["status"], job["runs"][0]["error"]["code"]) == ("failed", "parity_failed"), job
    (deployment,) = embedded.get("/deployments", name="tuned")["items"]
    assert (deployment["status"], deployment["error"]["code"]) == ("failed", "parity_failed")
    assert "the adapter is ignored" in deployment["parity"]["message"]
    assert deployment["parity"]["difference"]["expected"]["text"]
    assert [row["id"] for row in embedded.client.get("/v1/models").json()["data"]] == []
