"""Stored evaluations: lists, rows next to those of another evaluation, downloads, leaderboards, deletion.

Method: evaluations are published as a worker publishes them, on both databases, and read over HTTP.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from app.backup.backup import create_backup
from app.retention.collector import hold_storage_lease
from app.settings import Settings
from app.storage.database import get_engine
from app.storage.opening import get_store
from app.tables import Dataset, Evaluation, Run
from tests.integration.app.stored_artifacts import list_faults, run_collection, stored_keys
from tests.integration.app.stored_evaluations import (
    METRIC,
    make_difference,
    store_evaluations,
)

Make = Callable[..., list[Run]]
BETTER, BASE = [1, 0, 1, 1], [1, 1, 0, 0]


@pytest.fixture
def stored(client: TestClient, make_job: Make, tmp_path: Path) -> list[Evaluation]:
    differences = [make_difference("model", "baseline", 0.25)]
    return store_evaluations(make_job, tmp_path, {"model": BETTER, "baseline": BASE}, differences=differences)


def get(client: TestClient, path: str, **params: Any) -> Any:
    response = client.get(f"/api/v1{path}", params=params)
    assert response.status_code == 200, response.text
    return response.json()


def test_evaluations_are_listed_by_dataset_model_job_and_metric(
    client: TestClient, make_job: Make, make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset = make_dataset("held-out")
    columns: dict[str, Any] = {"dataset_id": dataset.id, "model_id": "model_1"}
    first, second = store_evaluations(make_job, tmp_path, {"model": BETTER, "baseline": BASE})
    (third,) = store_evaluations(make_job, tmp_path, {"model": BASE}, **columns)

    def ids(**params: Any) -> list[str]:
        return [each["id"] for each in get(client, "/evaluations", **params)["items"]]

    assert ids() == [third.id, *sorted([first.id, second.id], reverse=True)]
    assert ids(dataset=dataset.id) == ids(model="model_1") == ids(job=third.job_id) == [third.id]
    assert ids(model="org/baseline") == [second.id]
    assert ids(metric=METRIC) == ids() and ids(metric="bleu") == []
    page = get(client, "/evaluations", limit=2)
    assert [each["id"] for each in page["items"]] + ids(after=page["next"]) == ids()


def test_an_evaluation_has_the_differences_of_its_run(client: TestClient, stored: list[Evaluation]) -> None:
    model, baseline = stored
    view = get(client, f"/evaluations/{model.id}")
    assert (view["scores"][0]["value"], view["provenance"], view["n"]) == (0.75, {"seed": 42}, 4)
    assert [each["difference"] for each in view["differences"]] == [0.25]
    assert view["siblings"] == [baseline.id]
    missing = client.get(f"/api/v1/evaluations/{model.id[:-1]}_")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "evaluation_not_found")


def test_rows_that_changed_against_the_baseline_come_first(
    client: TestClient, stored: list[Evaluation]
) -> None:
    path = f"/evaluations/{stored[0].id}/rows"
    page = get(client, path, limit=3)
    assert [(row["row"], row["change"]) for row in page["items"]] == [(2, "lost"), (3, "won"), (4, "won")]
    assert page["items"][0]["responses"] == ["model says 2"]
    assert page["items"][0]["other"]["responses"] == ["baseline says 2"]
    reasons = [row["details"][METRIC]["reason"] for row in (page["items"][0], page["items"][0]["other"])]
    assert reasons == ["model 2", "baseline 2"]
    rest = get(client, path, limit=3, after=page["next"])
    assert [row["row"] for row in rest["items"]] == [1] and rest["next"] is None


def test_rows_are_filtered_by_their_change_and_by_their_value(
    client: TestClient, stored: list[Evaluation]
) -> None:
    def rows(evaluation: Evaluation, **params: Any) -> list[int]:
        return [row["row"] for row in get(client, f"/evaluations/{evaluation.id}/rows", **params)["items"]]

    model, baseline = stored
    assert rows(model, filter="won") == [3, 4]
    assert rows(model, filter="lost") == rows(model, filter="wrong") == [2]
    assert rows(baseline, filter="lost", against=model.id) == [3, 4]
    refused = client.get(f"/api/v1/evaluations/{baseline.id}/rows", params={"filter": "won"})
    assert refused.status_code == 422 and refused.json()["error"]["fields"][0]["field"] == "filter"
    unknown = client.get(f"/api/v1/evaluations/{model.id}/rows", params={"metric": "bleu"})
    assert unknown.status_code == 422 and "Its metrics: exact_match" in unknown.json()["error"]["message"]


def test_the_rows_of_another_run_are_found_by_prompt_and_reference(
    client: TestClient, make_job: Make, tmp_path: Path
) -> None:
    (own,) = store_evaluations(make_job, tmp_path, {"model": [1, 0, 1]}, prompts=["a", "b", "c"])
    (other,) = store_evaluations(make_job, tmp_path, {"model": [0, 1, 1]}, prompts=["c", "b", "x"])
    rows = get(client, f"/evaluations/{own.id}/rows", against=other.id)["items"]
    assert [(row["row"], row["change"]) for row in rows] == [(2, "lost"), (3, "won"), (1, None)]
    assert rows[1]["other"]["responses"] == ["model says 1"]


def test_equal_rows_are_paired_in_their_order(client: TestClient, make_job: Make, tmp_path: Path) -> None:
    values = {"model": [1, 0], "baseline": [0, 0]}
    own, _ = store_evaluations(make_job, tmp_path, values, prompts=["same", "same"])
    rows = get(client, f"/evaluations/{own.id}/rows")["items"]
    assert [row["other"]["responses"] for row in rows] == [["baseline says 1"], ["baseline says 2"]]


def test_all_rows_are_downloaded_as_json_lines_and_parquet(
    client: TestClient, stored: list[Evaluation], tmp_path: Path
) -> None:
    path = f"/api/v1/evaluations/{stored[0].id}/download"
    lines = client.get(path, params={"format": "jsonl"}).text.splitlines()
    assert [json.loads(line)["row"] for line in lines] == [1, 2, 3, 4]
    (tmp_path / "rows.parquet").write_bytes(client.get(path).content)
    table = pq.read_table(tmp_path / "rows.parquet")
    assert table.column(f"model.values.{METRIC}").to_pylist() == BETTER
    assert table.column("baseline.response").to_pylist()[0] == "baseline says 1"


def test_a_leaderboard_ranks_the_best_evaluation_of_each_model_by_signature_and_rows(
    client: TestClient, make_job: Make, make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset = make_dataset("held-out")
    on = {"dataset_id": dataset.id, "dataset_sha256": dataset.sha256}

    def store(values: list[int], model: str, **options: Any) -> Evaluation:
        return store_evaluations(make_job, tmp_path, {"model": values}, model_id=model, **(on | options))[0]

    store([1, 0, 0, 0], "model_a")
    best = store([1, 1, 1, 0], "model_a")
    equal = [store([1, 1, 0, 0], "model_b"), store([0, 0, 1, 1], "model_c")]
    last = store([0, 0, 0, 1], "model_d")
    store([1, 1, 1, 1], "model_e", signature="exact_match|version:2")
    store([1], "model_f")
    board = get(client, f"/datasets/{dataset.id}/leaderboard", metric=METRIC)
    first, *others = board["rankings"]
    ranks = {entry["evaluation_id"]: entry["rank"] for entry in first["entries"]}
    assert ranks == {best.id: 1, equal[0].id: 2, equal[1].id: 2, last.id: 4}
    assert [len(ranking["entries"]) for ranking in others] == [1, 1]
    assert get(client, f"/datasets/{dataset.id}/leaderboard", metric="bleu")["rankings"] == []


def test_a_score_of_no_rows_is_in_no_ranking(
    client: TestClient, make_job: Make, make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    dataset = make_dataset("held-out")
    columns: dict[str, Any] = {"dataset_id": dataset.id, "dataset_sha256": dataset.sha256}
    (measured,) = store_evaluations(make_job, tmp_path, {"model": [0, 1]}, model_id="model_a", **columns)
    # A metric that applies to none of the rows, such as numbers_kept, has the value 0.
    score = {"metric": METRIC, "value": 0.0, "interval_95": None, "n": 0, "signature": "of no rows"}
    store_evaluations(make_job, tmp_path, {"model": [0, 0]}, model_id="model_b", scores=[score], **columns)
    (ranking,) = get(client, f"/datasets/{dataset.id}/leaderboard", metric=METRIC)["rankings"]
    assert [(entry["evaluation_id"], entry["n"]) for entry in ranking["entries"]] == [(measured.id, 2)]


def test_the_evaluations_of_a_deleted_job_and_their_files_go(
    client: TestClient, settings: Settings, stored: list[Evaluation]
) -> None:
    run_collection(settings)
    assert {key.split("/")[0] for key in stored_keys()} == {"evaluations"}
    storage = get(client, "/storage")
    assert storage["evaluations"] == {"count": 2, "size_bytes": stored[0].size_bytes}
    assert client.delete(f"/api/v1/jobs/{stored[0].job_id}").status_code == 204
    assert get(client, "/evaluations")["items"] == []
    run_collection(settings)
    assert stored_keys() == set()


def test_a_damaged_row_is_reported_as_a_damaged_artifact(
    client: TestClient, settings: Settings, stored: list[Evaluation]
) -> None:
    path = settings.data_dir / "artifacts" / stored[0].artifact / "index.jsonl"
    path.write_text(path.read_text().replace("question", "other").replace("1", "2", 1))
    response = client.get(f"/api/v1/evaluations/{stored[0].id}/rows")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "artifact_corrupt")


def test_a_job_whose_evaluation_an_unfinished_comparison_reads_is_not_deleted(
    client: TestClient, stored: list[Evaluation]
) -> None:
    ids = [evaluation.id for evaluation in stored]
    job = client.post("/api/v1/comparisons", json={"evaluations": ids})
    assert job.status_code == 202, job.text
    refused = client.delete(f"/api/v1/jobs/{stored[0].job_id}")
    assert refused.status_code == 409 and refused.json()["error"]["used_by"] == [job.json()["id"]]
    client.post(f"/api/v1/jobs/{job.json()['id']}/cancel")
    assert client.delete(f"/api/v1/jobs/{stored[0].job_id}").status_code == 204
    retried = client.post(f"/api/v1/jobs/{job.json()['id']}/retry")
    assert (retried.status_code, retried.json()["error"]["code"]) == (409, "input_deleted")


def test_a_comparison_names_each_evaluation_that_does_not_exist(
    client: TestClient, stored: list[Evaluation]
) -> None:
    known = stored[0].id
    unknown = client.post("/api/v1/comparisons", json={"evaluations": [known, "evaluation_x"]})
    twice = client.post("/api/v1/comparisons", json={"evaluations": [known, known]})
    for refused, field in ((unknown, "evaluations.1"), (twice, "evaluations.1")):
        assert refused.status_code == 422
        assert refused.json()["error"]["fields"][0]["field"] == field
    stages = [{"stage": "compare", "evaluations": [known, {"stage": "evaluate"}]}]
    refused = client.post("/api/v1/jobs", json={"name": "x", "stages": stages})
    assert refused.json()["error"]["fields"][0]["field"] == "stages.0.evaluations.1"


def test_evaluations_are_verified_and_in_a_backup(
    client: TestClient, settings: Settings, stored: list[Evaluation], tmp_path: Path
) -> None:
    assert list_faults() == []
    with hold_storage_lease() as lease:
        assert lease is not None
        create_backup(get_engine(), get_store(), lease, tmp_path / "backup", 1, lambda progress: None)
    copied = tmp_path / "backup" / "artifacts" / stored[0].artifact
    assert {path.name for path in copied.iterdir()} >= {"rows.parquet", "report.html"}
    Path(get_store().root, stored[0].artifact, "rows.parquet").write_bytes(b"damaged")
    assert list_faults() == [f"damaged {stored[0].artifact}"]


def test_a_metric_may_have_the_name_of_another_column(
    client: TestClient, make_job: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.integration.app.stored_evaluations.METRIC", "responses")
    (evaluation,) = store_evaluations(make_job, tmp_path, {"model": [1, 0]})
    (tmp_path / "rows").write_bytes(client.get(f"/api/v1/evaluations/{evaluation.id}/download").content)
    assert pq.read_table(tmp_path / "rows").column("model.values.responses").to_pylist() == [1, 0]
