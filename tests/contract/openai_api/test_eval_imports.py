"""Evals that were exported from an API of OpenAI's: the export of the guide, and the import of its files.

The API of the tests is the source of the export, and then, without these evals, the one that imports.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, OpenAI
from sqlalchemy import func, select
from sqlmodel import col
from starlette.testclient import TestClient

from app.evals.imports.command import run_import
from app.settings import Settings, get_settings
from app.storage.database import read_session
from app.tables import ImportedEvalItem
from tests.contract.openai_api.test_evals import CRITERIA, ITEMS, content, define, engine, worker
from tests.counting_engine import CountingEngine
from tests.integration.workers.conftest import execute_next
from workers.hosts.worker import WorkerContext

__all__ = ["engine", "worker"]

GUIDE = Path(__file__).parents[3] / "docs/guides/moving-from-openai.md"
KEPT = ("testing_criteria", "data_source_config", "name", "created_at")
IMPORTS = "/api/v1/evals/imports"
OWN = {"id", "eval_id", "run_id", "imported_id", "updated_at", "unusable", "job", "evaluation"}

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def export(client: OpenAI) -> Path:
    """Run the script of the guide in the current folder, and return its file of objects."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    [script] = [block for block in blocks if "evals.jsonl" in block]
    exec(script, {"client": client, "Path": Path})
    return Path("evals.jsonl").absolute()


def read_all(openai: OpenAI) -> list[Any]:
    """Return all evals, runs and items without ids and what is not in OpenAI's API."""
    found: list[Any] = []
    for each in openai.evals.list():
        found.append(each)
        for run in openai.evals.runs.list(each.id):
            found.append(run)
            found += openai.evals.runs.output_items.list(run.id, eval_id=each.id)
    return [{name: value for name, value in one.to_dict().items() if name not in OWN} for one in found]


def send(client: TestClient, *files: tuple[str, Any]) -> Any:
    lines = [
        (name, value if isinstance(value, str | bytes) else "\n".join(map(json.dumps, value)))
        for name, value in files
    ]
    return client.post(IMPORTS, files=[("file", each) for each in lines])


def test_an_export_by_the_guide_is_imported_as_finished_history(
    openai: OpenAI,
    client: TestClient,
    engine: CountingEngine,
    worker: WorkerContext,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    created = define(openai)
    rows: Any = [{"item": ITEMS[0], "sample": {"output_text": "#### 1"}}, {"item": ITEMS[1]}]
    openai.evals.runs.create(created.id, name="run", data_source={"type": "jsonl", "source": content(rows)})
    assert execute_next(worker)
    before = read_all(openai)
    folder = tmp_path / "export"
    folder.mkdir()
    monkeypatch.chdir(folder)
    path = export(openai)
    assert [json.loads(line)["object"] for line in path.read_text().splitlines()] == [
        "eval",
        "eval.run",
        "eval.run.output_item",
        "eval.run.output_item",
    ]
    openai.evals.delete(created.id)
    assert read_all(openai) == []

    run_import(get_settings(), [folder])
    assert read_all(openai) == before
    [imported] = openai.evals.list()
    [run] = openai.evals.runs.list(imported.id, status="completed")
    assert (run.result_counts.passed, run.result_counts.total) == (1, 2)
    failed = openai.evals.runs.output_items.list(run.id, eval_id=imported.id, status="fail", order="desc")
    assert [item.datasource_item for item in failed] == [ITEMS[1]]
    item = openai.evals.runs.output_items.retrieve(failed.data[0].id, eval_id=imported.id, run_id=run.id)
    assert item.to_dict() == failed.data[0].to_dict()
    capsys.readouterr()
    run_import(get_settings(), [path])
    report = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] + " " + line.split("\t")[3] for line in report] == [
        "eval unchanged",
        "run unchanged",
    ]
    assert "0 new of 2 items in the files; the run has 2" in report[1]
    assert read_all(openai) == before

    # An imported eval judges new runs.
    openai.evals.runs.create(imported.id, data_source={"type": "jsonl", "source": content(rows)})
    assert openai.evals.runs.cancel(run.id, eval_id=imported.id).status == "completed"
    runs = openai.evals.runs.list(imported.id, order="desc").data
    assert [each.status for each in runs] == ["queued", "completed"]
    openai.evals.runs.cancel(runs[0].id, eval_id=imported.id)
    assert openai.evals.delete(imported.id).deleted
    with read_session() as session:
        assert session.scalar(select(func.count(col(ImportedEvalItem.position)))) == 0


MESSAGE = {"role": "user", "content": "x"}
EVAL: dict[str, Any] = {
    "object": "eval",
    "id": "eval_68a1",
    "name": "support",
    "created_at": 1_750_000_000,
    "data_source_config": {"type": "logs", "schema": {"type": "object"}, "metadata": {"usecase": "bot"}},
    "testing_criteria": [
        CRITERIA[0],
        {
            "type": "score_model",
            "name": "judge-1",
            "model": "o3",
            "input": [{"role": "user", "content": "x"}],
        },
        {"type": "endpoint_grader", "name": "ours-2", "url": "https://x"},
    ],
    "metadata": None,
    "shared_with_openai": True,
}
RUN: dict[str, Any] = {
    "object": "eval.run",
    "id": "evalrun_68a2",
    "eval_id": "eval_68a1",
    "name": "nightly",
    "created_at": 1_750_000_100,
    "model": "gpt-4.1",
    "status": "in_progress",
    "data_source": {"type": "completions", "source": {"type": "file_id", "id": "file-68"}},
    "error": {"code": "", "message": ""},
    "metadata": {"a": "b"},
    "per_model_usage": [{"run_model_name": "gpt-4.1", "invocation_count": 1, "total_tokens": 12}],
    "per_testing_criteria_results": [{"testing_criteria": "exact", "passed": 1, "failed": 0}],
    "report_url": "https://platform.openai.com/x",
    "result_counts": {"total": 2, "passed": 1, "failed": 1, "errored": 0},
}
ITEM: dict[str, Any] = {
    "object": "eval.run.output_item",
    "id": "outputitem_68a3",
    "run_id": "evalrun_68a2",
    "eval_id": "eval_68a1",
    "created_at": 1_750_000_200,
    "status": "pass",
    "datasource_item": {"input": "a\0b"},
    "datasource_item_id": 0,
    "results": [{"name": "exact", "passed": True, "score": 1.0}],
    "sample": {"input": [], "output": [{"role": "assistant", "content": "ok"}], "model": "gpt-4.1"},
}


def test_what_cannot_be_used_here_is_kept_and_named_with_its_reason(
    openai: OpenAI, client: TestClient
) -> None:
    # Pages of lists, an array, and rows; runs before their eval.
    page = json.dumps({"object": "list", "data": [RUN], "has_more": False}, indent=1)
    rows = json.dumps({"item": {"a": 1}}) + "\n"
    answer = send(
        client, ("runs.json", page), ("rest.json", json.dumps([ITEM, EVAL])), ("file-68.jsonl", rows)
    )
    report = answer.json()
    assert answer.status_code == 201, report
    [found] = report["evals"]
    assert (found["imported_id"], found["outcome"], found["criteria"]) == ("eval_68a1", "created", 3)
    reasons = {each["name"]: each["reason"] for each in found["unusable"]}
    assert "TUNESMITH_GRADER_MODELS can name another model for 'o3'" in reasons["judge-1"]
    assert "endpoint_grader" in reasons["ours-2"]
    [run] = report["runs"]
    assert (run["status"], run["items_created"], run["items_total"]) == ("in_progress", 1, 2)
    assert [file["rows"] for file in report["files"]] == [1]

    imported: Any = openai.evals.retrieve(found["id"])
    assert (imported.created_at, imported.imported_id) == (1_750_000_000, "eval_68a1")
    shown = client.get(f"/v1/evals/{found['id']}").json()
    assert {name: shown[name] for name in KEPT} == {name: EVAL[name] for name in KEPT}
    kept: Any = openai.evals.runs.retrieve(run["id"], eval_id=found["id"])
    assert (kept.status, kept.model, kept.report_url) == ("canceled", "gpt-4.1", RUN["report_url"])
    assert kept.per_model_usage[0].run_model_name == "gpt-4.1"
    [item] = openai.evals.runs.output_items.list(run["id"], eval_id=found["id"])
    assert item.datasource_item == ITEM["datasource_item"]
    with pytest.raises(APIStatusError, match="judge-1: There is no live deployment"):
        openai.evals.runs.create(
            found["id"], data_source={"type": "jsonl", "source": content([{"item": {}}])}
        )

    again = send(
        client, ("all.jsonl", [EVAL | {"name": "renamed"}, RUN, ITEM]), ("file-68.jsonl", rows)
    ).json()
    assert [each["outcome"] for each in (*again["evals"], *again["runs"], *again["files"])] == [
        "different",
        "unchanged",
        "unchanged",
    ]
    assert again["runs"][0]["items_unchanged"] == 1
    assert openai.evals.retrieve(found["id"]).name == "support"


UNRUNNABLE: dict[str, tuple[dict[str, Any], str]] = {
    "no graders": ({"testing_criteria": []}, "testing_criteria: it has 0 graders; a run has 1 to 32"),
    "many graders": ({"testing_criteria": [CRITERIA[0]] * 33}, "testing_criteria: it has 33 graders"),
    "another metadata": (
        {"data_source_config": {"type": "logs", "metadata": ["x"]}, "testing_criteria": CRITERIA[:1]},
        "data_source_config: metadata is not an object",
    ),
}


def test_an_imported_eval_that_no_run_can_have_is_refused_with_the_reason(
    openai: OpenAI, client: TestClient
) -> None:
    source: Any = {"type": "jsonl", "source": content([{"item": ITEMS[0], "sample": {"output_text": "1"}}])}
    for case, (fields, message) in UNRUNNABLE.items():
        [found] = send(client, ("all.jsonl", [EVAL | fields | {"id": f"eval_{case}"}])).json()["evals"]
        with pytest.raises(APIStatusError, match=message) as caught:
            openai.evals.runs.create(found["id"], data_source=source)
        assert caught.value.status_code == 400, case
    lines = {"name": "two\nlines", "testing_criteria": CRITERIA[:1]}
    [found] = send(client, ("all.jsonl", [EVAL | lines])).json()["evals"]
    assert openai.evals.runs.create(found["id"], data_source=source).status == "queued"


MALFORMED: dict[str, tuple[Any, str]] = {
    "no JSON": ([EVAL, "x"], "all.jsonl, line 2: an object is expected, not str"),
    "broken JSON": (json.dumps(EVAL) + '\n{"object": ', "all.jsonl, line 2: it is not valid JSON"),
    "nothing": ("\n", "all.jsonl, line 1: the file is empty"),
    "another object": ([{"object": "file"}], 'all.jsonl, line 1: object: it is "file"; known are: eval,'),
    "a missing field": ([{k: v for k, v in RUN.items() if k != "status"}], "line 1: status: Field required"),
    "a wrong type": ([EVAL | {"created_at": "today"}], "line 1: created_at: Input should be a valid integer"),
    "a time in milliseconds": ([EVAL | {"created_at": 10**13}], "created_at: Input should be less than"),
    "a wrong value inside": (
        [RUN | {"result_counts": {"total": -1}}],
        "line 1: result_counts.total: Input should be greater",
    ),
    "a member of a page": (
        json.dumps({"object": "list", "data": [EVAL, RUN | {"id": 7}]}, indent=1),
        "all.jsonl, line 1: data.1.id: Input should be a valid string",
    ),
    "a run without its eval": ([RUN], "line 1: eval_id: 'eval_68a1' is neither in these files nor imported"),
    "an item without its run": ([EVAL, ITEM], "line 2: run_id: 'evalrun_68a2' is neither"),
    "rows among objects": ([EVAL, {"item": {}}], "line 2: rows and objects are mixed"),
    "a wrong row": ([{"item": {}}, {"item": 3}], "line 2: item: Input should be a valid dictionary"),
    "a number that is no number": ('{"object": "eval", "created_at": NaN}', "line 1: it is not valid JSON"),
    "an infinite number": (json.dumps(EVAL)[:-1] + ', "x": 1e999}', "line 1: it is not valid JSON"),
    "half a character": (json.dumps(EVAL)[:-1] + ', "x": "\\ud800"}', "line 1: it is not valid JSON"),
    "NUL in a name": ([EVAL | {"name": "a\0"}], "line 1: name: it contains the character NUL"),
    "NUL in an item's status": (
        [EVAL, RUN, ITEM | {"status": "pass\0"}],
        "line 3: status: String should match",
    ),
    "a source of no type": (
        [EVAL | {"data_source_config": {}}],
        "line 1: data_source_config: Value error, the field `type` must be a string",
    ),
    "a source of a wrong type": (
        [EVAL, RUN | {"data_source": {"type": ["jsonl"]}}],
        "line 2: data_source: Value error, the field `type` must be a string",
    ),
    "too deep": ('{"item": ' + '{"a":' * 70 + "1" + "}" * 71, "line 1: it is nested more than 64 levels"),
    "much too deep": ("[" * 100_000, "line 1: it is not valid JSON"),
}


def test_a_malformed_file_is_refused_with_its_place_and_nothing_is_stored(
    openai: OpenAI, client: TestClient
) -> None:
    for case, (value, message) in MALFORMED.items():
        first = ("first.jsonl", [EVAL | {"id": "eval_other"}])
        refused = send(client, first, ("all.jsonl", value))
        error = refused.json()["error"]
        assert refused.status_code == 422 and message in error["message"], (case, error)
        assert error["fields"][0]["file"] == "all.jsonl"
    assert list(openai.evals.list()) == []


def test_the_command_names_the_place_of_an_error(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"object": "eval"}\n')
    with pytest.raises(SystemExit) as caught:
        run_import(settings, [tmp_path])
    assert str(caught.value).endswith("line 1: id: Field required. Nothing was imported.")
