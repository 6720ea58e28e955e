"""A task of lm-eval that a user brings runs no code, reads no file of its choice and fetches no metric.

Attacks: tags of task files, templates that leave the sandbox or never end, metrics that are code on a hub,
tasks that execute what the model writes, and a cache of pickles. The configs' tests refuse other fields.
"""

import json
import pickle
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from starlette.testclient import TestClient

from tests.security.regression import Regression, ignore
from tests.security.test_templates import BOMBS, ESCAPES

TASK = {"task": "own", "test_split": "test", "doc_to_text": "{{ question }}", "doc_to_target": "{{ answer }}"}
TAGS = [
    "!!python/object/apply:os.system ['touch MARKER']",
    "!!python/object/new:os.system ['touch MARKER']",
    "!function MARKER.run",
]


class Unpickled:
    """A pickle that creates a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


class PlainRenderer:
    """Renders as lm-eval does: in the process, without a sandbox."""

    def render_rows(self, template: str, rows: list[dict[str, Any]], as_list: bool = False) -> list[Any]:
        return [jinja2.Template(template).render(**row) for row in rows]

    def close(self) -> None:
        pass


def load_task(tmp_path: Path, **fields: Any) -> None:
    """Load an own task, or a stock task of that name, on one row."""
    # It loads torch, which the other modules of this folder do without.
    from trainers.configs import LmEvalConfig, parse_stage
    from trainers.lm_eval.tasks import load_tasks

    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "1 + 1?", "answer": "2", "prompt": "def f():"}) + "\n")
    task: dict[str, Any] = {"definition": TASK | fields} if "task" not in fields else fields
    task["data"] = [{"split": "test", "dataset": str(rows)}]
    config = parse_stage({"stage": "lm_eval", "model": "starter", "tasks": [task], "num_fewshot": 0})
    assert isinstance(config, LmEvalConfig)
    load_tasks(config)


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_in_a_task_file_runs_nothing(client: TestClient, tmp_path: Path, tag: str) -> None:
    marker = tmp_path / "marker"
    text = f"task: own\ndoc_to_target: x\ntest_split: {tag.replace('MARKER', str(marker))}\n"
    task = {"definition": text, "data": [{"split": "test", "dataset": "rows"}]}
    job = {"name": "x", "stages": [{"stage": "lm_eval", "model": "starter", "tasks": [task]}]}
    answer = client.post("/api/v1/jobs", json=job)
    assert answer.status_code == 422 and "stages.0.tasks.0.definition" in answer.text
    assert not marker.exists()


@pytest.mark.parametrize("field", ["doc_to_text", "doc_to_target", "doc_to_choice"])
@pytest.mark.parametrize("template", ESCAPES[:3])
def test_a_template_of_a_task_stays_in_its_sandbox(tmp_path: Path, template: str, field: str) -> None:
    from trainers.lm_eval.definitions import TaskTemplateInvalid

    marker = tmp_path / "marker"
    fields = {field: template.replace("MARKER", str(marker)), "output_type": "multiple_choice"}
    with pytest.raises(TaskTemplateInvalid, match=f"The template {field} of the task own"):
        load_task(tmp_path, **({"doc_to_choice": ["2", "3"]} | fields))
    assert not marker.exists()


@pytest.mark.parametrize("template", [BOMBS[0], BOMBS[2]])
def test_a_template_of_a_task_without_end_is_refused_soon(tmp_path: Path, template: str) -> None:
    from trainers.lm_eval.definitions import TaskTemplateInvalid

    with pytest.raises(TaskTemplateInvalid) as error:
        load_task(tmp_path, doc_to_text=template)
    assert error.value.code in ("template_too_slow", "template_too_large")


def test_lm_eval_itself_renders_in_a_sandbox(tmp_path: Path) -> None:
    from lm_eval.utils import apply_template

    load_task(tmp_path)
    with pytest.raises(jinja2.exceptions.SecurityError):
        apply_template(ESCAPES[0].replace("MARKER", str(tmp_path / "marker")), {})
    assert not (tmp_path / "marker").exists()


def test_a_stock_task_that_executes_code_of_the_model_is_refused(tmp_path: Path) -> None:
    from trainers.lm_eval.tasks import TaskRefused

    with pytest.raises(TaskRefused, match="code"):
        load_task(tmp_path, task="humaneval")


def test_a_cache_of_pickles_is_not_read(tmp_path: Path) -> None:
    from trainers.lm_eval.response_cache import ResponseCache

    marker, path = tmp_path / "marker", tmp_path / "responses.jsonl"
    path.write_bytes(pickle.dumps(Unpickled(marker)) + b"\n")
    with ResponseCache(path, lambda count: None) as cache:
        assert cache.count == 0
    assert not marker.exists()


REGRESSIONS = [
    # First: the protection lasts as long as the process.
    Regression(
        "lm-eval keeps its own templates and metrics",
        "trainers.lm_eval.tasks:_confine_lm_eval",
        ignore,
        "test_lm_eval_itself_renders_in_a_sandbox",
    ),
    Regression(
        "task files are read by a loader that creates objects",
        "trainers.configs.stages.harness.tasks:load_yaml",
        yaml.unsafe_load,
        "test_a_tag_in_a_task_file_runs_nothing",
    ),
    Regression(
        "templates of tasks are rendered without a sandbox",
        "trainers.lm_eval.tasks:TemplateRenderer",
        PlainRenderer,
        "test_a_template_of_a_task_stays_in_its_sandbox",
    ),
    Regression(
        "the cache is unpickled",
        "trainers.lm_eval.response_cache:files.read_lines",
        lambda path: [pickle.loads(path.read_bytes())],
        "test_a_cache_of_pickles_is_not_read",
    ),
]
