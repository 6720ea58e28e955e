"""A job that scores a trained model on an own task of lm-eval: in the program, and by an engine."""

from typing import Any

import pytest

from tests.e2e.platform import Platform, sft_stage

TASK = {
    "definition": {
        "task": "sums",
        "test_split": "test",
        "doc_to_text": "{{ question }}",
        "doc_to_target": "{{ answer }}",
        "metric_list": [{"metric": "exact_match", "regexes_to_ignore": ["(?s).*#### "]}],
    },
    "data": [{"split": "test", "dataset": "test"}],
}


@pytest.mark.slow
def test_an_adapter_scores_the_same_in_the_program_and_on_an_engine(embedded: Platform) -> None:
    embedded.start_worker()
    stage: dict[str, Any] = {"stage": "lm_eval", "model": {"stage": "sft"}, "tasks": [TASK]}
    stage |= {"max_rows": 8, "max_new_tokens": 24}
    served = stage | {"name": "served", "backend": "completions"}
    runs = embedded.wait_until_finished(embedded.submit(sft_stage(), stage | {"name": "own"}, served))["runs"]
    assert [run["status"] for run in runs] == ["succeeded"] * 3, runs
    own, engine = (run["result"]["models"][0] for run in runs[1:])
    assert own["scores"][0]["metric"] == "sums/exact_match"
    assert own["scores"][0]["value"] == engine["scores"][0]["value"]
    assert own["provenance"]["model"]["adapter_sha256"] is not None
    stored = embedded.client.get("/api/v1/evaluations").json()["items"]
    assert {item["run_id"] for item in stored} == {run["id"] for run in runs[1:]}


@pytest.mark.slow
def test_gates_decide_on_the_scores_of_two_stages(embedded: Platform) -> None:
    embedded.start_worker()
    stage: dict[str, Any] = {"stage": "lm_eval", "tasks": [TASK], "max_rows": 8, "max_new_tokens": 24}
    gate: dict[str, Any] = {"stage": "gate", "metric": "sums/exact_match", "evaluation": "tuned"}
    job = embedded.wait_until_finished(
        embedded.submit(
            sft_stage(),
            stage | {"name": "tuned", "model": {"stage": "sft"}},
            stage | {"name": "base", "model": "starter"},
            gate | {"name": "constant", "against": 0, "on": "value", "needs": ["tuned"]},
            gate | {"name": "pair", "against": {"stage": "base"}, "on": "test", "margin": 0.9,
                    "needs": ["tuned", "base"]},
        )
    )  # fmt: skip
    assert [run["status"] for run in job["runs"]] == ["succeeded"] * 5, job["runs"]
    assert [run["result"]["n"] for run in job["runs"][3:]] == [8, 8]
