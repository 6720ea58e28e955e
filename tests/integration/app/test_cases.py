"""Goal: the specs of the worked cases can be posted as they are. Method: dry-run and post every file."""

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.jobs.examples import CASE_FOLDER, CASE_SUMMARIES, JOB_EXAMPLES, SIZES
from app.models.starter import STARTER
from app.settings import Settings

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
FILES = sorted(CASE_FOLDER.glob("*.json"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_spec_is_planned_and_accepted_as_it_is(client: TestClient, settings: Settings, file: Path) -> None:
    (settings.model_roots[0] / STARTER).mkdir(parents=True)
    headers = {"content-type": "application/json"}
    plan, job = (
        client.post(path, content=file.read_bytes(), headers=headers)
        for path in ("/api/v1/jobs/dry-run", "/api/v1/jobs")
    )
    assert plan.status_code == 200, plan.text
    assert job.status_code == 201, job.text
    queues = {stage["name"]: stage["queue"] for stage in plan.json()["stages"]}
    assert queues["sft"] == {"gpu": "cuda", "mac": "mlx"}.get(file.stem.split("-")[1], "cpu")


def test_every_case_has_every_size_with_equal_stages(client: TestClient) -> None:
    assert {file.stem for file in FILES} == {f"{case}-{size}" for case in CASE_SUMMARIES for size in SIZES}
    for case in CASE_SUMMARIES:
        chains = [_list_stages(JOB_EXAMPLES[f"{case}-{size}"]["value"]) for size in SIZES]
        assert all(chain == chains[0] for chain in chains)


def test_a_deployment_is_behind_a_gate_on_rows_that_are_not_trained_on(client: TestClient) -> None:
    for file in FILES:
        stages = json.loads(file.read_text(encoding="utf-8"))["stages"]
        assert [stage["stage"] for stage in stages][-2:] == ["gate", "deploy"]
        [prepared] = [stage for stage in stages if "held_out" in str(stage.get("filters"))]
        assert {"kind": "held_out", "not_in": [{"stage": "held-out"}]} in prepared["filters"]
        evaluated = [stage["dataset"] for stage in stages if stage["stage"] == "evaluate"]
        assert all(dataset == {"stage": "held-out"} for dataset in evaluated)


def _list_stages(spec: dict[str, Any]) -> list[tuple[str, str]]:
    return [(stage["stage"], stage.get("name", stage["stage"])) for stage in spec["stages"]]
