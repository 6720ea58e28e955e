"""Fine-tuning jobs that train, requests to their models, and the guide, through OpenAI's client."""

import base64
import csv
import io
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from tests.e2e.platform import Platform, wait_until
from trainers.data.recipes.arithmetic import ProblemSplit, generate_problems

GUIDE = Path(__file__).parents[3] / "docs/guides/moving-from-openai.md"
MODEL = "gpt-4o-mini-2024-07-18"
FINISHED = ("succeeded", "failed", "cancelled")
# The first test includes three trainings.
pytestmark = pytest.mark.timeout(900)
QUICK = {"max_length": 128, "tuning": {"rank": 4}, "learning_rate": 2e-3}


def chat(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


class Trained:
    """A service with jobs that have ended."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.openai = OpenAI(base_url=f"{platform.base_url}/v1", api_key="unused", max_retries=0)
        problems = list(generate_problems(24, ProblemSplit.train, seed=3))
        rows = [{"messages": chat(each["question"], each["answer"])} for each in problems]
        pairs = [
            {
                "input": {"messages": row["messages"][:1]},
                "preferred_output": row["messages"][1:],
                "non_preferred_output": [{"role": "assistant", "content": "No."}],
            }
            for row in rows
        ]
        self.validation = self.upload(rows[16:])
        self.supervised = self.create(rows[:16], "supervised", validation_file=self.validation)
        self.dpo = self.create(pairs[:16], "dpo")
        self.reinforcement = self.create_reinforcement(problems[:4])
        ids = (self.supervised, self.dpo, self.reinforcement)
        wait_until(lambda: all(self.job(each).status in FINISHED for each in ids), 600, f"{ids} do not end")

    def upload(self, rows: list[dict[str, Any]]) -> str:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        return self.openai.files.create(file=("rows.jsonl", content), purpose="fine-tune").id

    def create(self, rows: list[dict[str, Any]], method: str, **fields: Any) -> str:
        chosen: Any = {"type": method, method: {"hyperparameters": {"n_epochs": 3, "batch_size": 8}}}
        job = self.openai.fine_tuning.jobs.create(
            model=MODEL,
            training_file=self.upload(rows),
            suffix=method,
            method=chosen,
            extra_body={"training": QUICK},
            **fields,
        )
        return job.id

    def create_reinforcement(self, problems: list[Any]) -> str:
        rows = [
            {"messages": chat(each["question"], "")[:1], "reference": {"answer": each["answer"]}}
            for each in problems
        ]
        grader = {
            "type": "text_similarity",
            "name": "similar",
            "input": "{{sample.output_text}}",
            "reference": "{{item.reference.answer}}",
            "evaluation_metric": "fuzzy_match",
        }
        hyperparameters = {"n_epochs": 2, "batch_size": 2, "compute_multiplier": 0.5}
        chosen: Any = {
            "type": "reinforcement",
            "reinforcement": {"grader": grader, "hyperparameters": hyperparameters},
        }
        job = self.openai.fine_tuning.jobs.create(
            model=MODEL,
            training_file=self.upload(rows),
            validation_file=self.upload(rows[:1]),
            method=chosen,
            extra_body={"training": {"tuning": {"rank": 4}, "max_completion_length": 12}},
        )
        return job.id

    def job(self, job_id: str) -> Any:
        return self.openai.fine_tuning.jobs.retrieve(job_id)

    def ask(self, model: str) -> Any:
        return self.openai.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "1 + 1"}], max_tokens=4
        )


@pytest.fixture(scope="module")
def trained(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    settings = {
        "TUNESMITH_OPENAI_MODELS": json.dumps({MODEL: "starter"}),
        "TUNESMITH_ORGANIZATION": "acme",
        # An engine starts within seconds, on a busy machine within a minute.
        "TUNESMITH_WAKE_TIMEOUT_SECONDS": "300",
    }
    platform = Platform(tmp_path_factory.mktemp("fine-tuning") / "data", starter, **settings)
    platform.environment["TUNESMITH_WARM_START"] = "true"
    try:
        platform.start_service()
        yield Trained(platform)
    finally:
        platform.stop()


def test_a_succeeded_job_names_its_model_its_tokens_and_its_results(trained: Trained) -> None:
    job = trained.job(trained.supervised)
    assert (job.status, job.error) == ("succeeded", None)
    assert job.fine_tuned_model == f"ft:{MODEL}:acme:supervised:{job.id[-8:]}"
    assert job.trained_tokens > 0 and job.finished_at >= job.created_at
    text = base64.b64decode(trained.openai.files.content(job.result_files[0]).read()).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert text.splitlines()[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 7)]
    assert all(float(row["train_loss"]) > 0 and 0 <= float(row["train_accuracy"]) <= 1 for row in rows)
    assert [bool(row["valid_loss"]) for row in rows] == [False, True] * 3


def test_each_epoch_has_a_checkpoint_with_validation_metrics(trained: Trained) -> None:
    found = list(trained.openai.fine_tuning.jobs.checkpoints.list(trained.supervised, limit=2))
    assert [checkpoint.step_number for checkpoint in found] == [6, 4, 2]
    model = trained.job(trained.supervised).fine_tuned_model
    assert [checkpoint.fine_tuned_model_checkpoint for checkpoint in found] == [
        model,
        f"{model}:ckpt-step-4",
        f"{model}:ckpt-step-2",
    ]
    for checkpoint in found:
        metrics = checkpoint.metrics
        assert metrics.full_valid_loss is not None and metrics.full_valid_loss > 0
        assert metrics.train_mean_token_accuracy is not None
        assert metrics.valid_mean_token_accuracy is not None


def test_events_tell_the_story_of_the_job(trained: Trained) -> None:
    events = list(trained.openai.fine_tuning.jobs.list_events(trained.supervised, limit=3))
    messages = [event.message for event in events][::-1]
    assert messages[0].startswith("Created fine-tuning job")
    assert messages[1].startswith("Hyperparameters for 16 rows: ")
    assert messages[-1].startswith("The job has succeeded; its model is ft:")
    assert "Checkpoint created at step 2." in messages
    assert len({event.id for event in events}) == len(events)
    first_metrics: Any = [event.data for event in events if event.type == "metrics"][-1]
    assert (first_metrics["step"], first_metrics["total_steps"]) == (1, 6)


def test_reinforcement_trains_on_the_scores_of_its_grader(trained: Trained) -> None:
    job = trained.job(trained.reinforcement)
    assert (job.status, job.error) == ("succeeded", None)
    assert job.method.reinforcement.grader.name == "similar"
    steps = [
        checkpoint.step_number for checkpoint in trained.openai.fine_tuning.jobs.checkpoints.list(job.id)
    ]
    assert steps == [4, 2]
    text = base64.b64decode(trained.openai.files.content(job.result_files[0]).read()).decode()
    table = list(csv.DictReader(io.StringIO(text)))
    assert all(0 <= float(row["train_mean_reward"]) <= 1 for row in table)
    assert [bool(row["valid_mean_reward"]) for row in table] == [False, True] * 2


@pytest.mark.parametrize("method", ["supervised", "dpo", "reinforcement"])
def test_a_model_and_its_checkpoint_can_be_requested(trained: Trained, method: str) -> None:
    job = trained.job(getattr(trained, method))
    assert (job.status, job.error) == ("succeeded", None)
    listed = {model.id: model.owned_by for model in trained.openai.models.list()}
    for name in (job.fine_tuned_model, f"{job.fine_tuned_model}:ckpt-step-2"):
        assert listed[name] == "acme"
        completion = trained.ask(name)
        assert completion.model == name
        assert completion.choices[0].message.content is not None


def test_permissions_of_a_model_are_created_listed_and_deleted(trained: Trained) -> None:
    permissions = trained.openai.fine_tuning.checkpoints.permissions
    name = trained.job(trained.supervised).fine_tuned_model
    created = list(permissions.create(name, project_ids=["proj_a", "proj_b", "proj_a"]))
    assert [each.project_id for each in created] == ["proj_a", "proj_b"]
    assert [each.id for each in permissions.list(name, limit=1, order="ascending")] == [
        each.id for each in created
    ]
    assert permissions.delete(created[0].id, fine_tuned_model_checkpoint=name).deleted
    with pytest.deprecated_call():
        retrieved = permissions.retrieve(name)
    assert [each.project_id for each in retrieved.data] == ["proj_b"]


def test_a_model_is_deleted_once_it_is_not_deployed(trained: Trained) -> None:
    models, name = trained.openai.models, f"{trained.job(trained.dpo).fine_tuned_model}:ckpt-step-2"
    trained.ask(name)
    with pytest.raises(BadRequestError, match="is deployed") as caught:
        models.delete(name)
    [path] = re.findall(r"POST (/\S+)/stop", caught.value.message)
    deployment = str(trained.openai.base_url.join(path))
    trained.openai.post(f"{deployment}/stop", cast_to=object)
    shown: Any = lambda: trained.openai.get(deployment, cast_to=object)  # noqa: E731
    wait_until(lambda: shown()["status"] == "asleep", 120, "it does not stop")
    deleted = models.delete(name)
    assert (deleted.id, deleted.deleted, deleted.object) == (name, True, "model")
    with pytest.raises(NotFoundError) as missing:
        models.delete(name)
    assert missing.value.code == "model_not_found"


def test_the_blocks_of_the_guide_run_in_their_order(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = trained.platform
    platform.deploy("starter", store_days=1)
    platform.deploy("embedder", task="embed", pooling="last")
    row = {"messages": chat("What is 1 + 2?", "3")}
    prompt = {"messages": row["messages"][:1], "answer": "3"}
    request = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "starter", "messages": row["messages"][:1], "max_tokens": 4},
    }
    for name, line in (("rows", row), ("prompts", prompt), ("requests", request)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    program = tmp_path / "guide.py"
    program.write_text("".join(blocks).replace("http://127.0.0.1:8000", platform.base_url))
    monkeypatch.chdir(tmp_path)
    values = runpy.run_path(str(program))
    values["client"].close()
    assert len(blocks) == GUIDE.read_text(encoding="utf-8").count("```python")
    assert values["file"].status == "processed" == values["upload"].file.status
    assert values["result"].reward == 1.0
    assert values["second"].previous_response_id == values["first"].id
    assert isinstance(values["completion"].choices[0].message.parsed, values["Ticket"])
    assert values["batch"].errors is None
    assert len(values["vectors"].data) == 2 and values["vectors"].usage.prompt_tokens > 0
    assert {values["job"].object, values["run"].object} == {"fine_tuning.job", "eval.run"}
