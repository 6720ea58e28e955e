"""The form of a new job: inputs from the schema, JSON in both directions, plan, preflight, one job."""

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import func, select

from app.jobs.examples import JOB_EXAMPLES
from app.models.starter import find_progress_file
from app.runs.names import make_full_name
from app.settings import Settings
from app.storage.database import read_session
from app.storage.opening import get_store
from app.tables import Dataset, Job, Run, RunStatus, Scope
from app.web.views.new_job.draft import apply_inputs, parse_json, read_path, show_value
from app.web.views.new_job.schema import InputKind, stage_form
from tests.integration.app.web import seeded_datasets, seeded_models
from tests.integration.app.web.conftest import Browser
from trainers.configs import StageKind

MakeJob = Callable[..., list[Run]]
MODEL = "Qwen/Qwen2.5-0.5B-Instruct"


def make_spec(**fields: Any) -> dict[str, Any]:
    return {"name": "mine", "stages": [{"stage": "sft", "base": MODEL, "dataset": "ko-chat", **fields}]}


def send(
    browser: Browser,
    spec: dict[str, Any] | str,
    inputs: dict[str, str] | None = None,
    *,
    htmx: bool = True,
    **fields: str,
) -> Any:
    """Send the form with a JSON text and the inputs that a person has changed."""
    text = spec if isinstance(spec, str) else json.dumps(spec)
    headers = {"X-CSRF-Token": browser.csrf("/jobs/new"), **({"HX-Request": "true"} if htmx else {})}
    data = {"json": text, "key": "k1", "source": "form", **fields, **(inputs or {})}
    return browser.client.post("/jobs/new", data=data, headers=headers, follow_redirects=False)


def shown_spec(text: str) -> dict[str, Any]:
    """Return the JSON beside the form."""
    found = re.search(r'<textarea id="json"[^>]*>(.*?)</textarea>', text, re.DOTALL)
    assert found is not None, text
    spec: dict[str, Any] = json.loads(html.unescape(found[1]))
    return spec


def count_jobs() -> int:
    with read_session() as session:
        return session.exec(select(func.count()).select_from(Job)).one()


def test_a_form_begins_with_the_newest_dataset_or_asks_for_one(browser: Browser) -> None:
    assert "There is no dataset that a job can use yet." in browser.get("/jobs/new").text
    seeded_datasets.add_dataset()
    assert shown_spec(browser.get("/jobs/new").text)["stages"][0]["dataset"] == "ko-chat"
    seeded_datasets.add_dataset(f"{make_full_name('preflight of mine', 'prepare')}-test", n=3)
    assert shown_spec(browser.get("/jobs/new").text)["stages"][0]["dataset"] == "ko-chat"


def test_lists_and_forms_show_how_far_the_example_model_is(browser: Browser, settings: Settings) -> None:
    progress = find_progress_file(settings)
    progress.parent.mkdir()
    progress.write_text('{"step": 340, "total_steps": 800, "remaining_seconds": 45}')
    for page in ("/jobs", "/jobs/new", "/jobs/new/starter"):
        assert "340 / 800 · 45s left" in browser.get(page).text
    progress.unlink()
    ended = browser.get("/jobs/new/starter")
    assert "340" not in ended.text and "hx-get" not in ended.text
    assert ended.headers["HX-Trigger"] in browser.get("/jobs/new").text


@pytest.mark.parametrize(
    ("goal", "kinds"),
    [
        ("train", ["sft"]),
        ("compare", ["prepare", "sft", "evaluate"]),
        ("serve", ["prepare", "sft", "evaluate", "deploy"]),
    ],
)
def test_a_goal_is_a_whole_job_for_a_dataset(browser: Browser, goal: str, kinds: list[str]) -> None:
    dataset = seeded_datasets.add_dataset()
    shown = browser.get(f"/jobs/new?dataset={dataset}&goal={goal}").text
    spec = shown_spec(shown)
    assert [stage["stage"] for stage in spec["stages"]] == kinds
    assert spec["stages"][0]["dataset"] == "ko-chat"
    assert f'goal={goal}" aria-current="page"' in shown
    if goal != "train":
        assert spec["stages"][2]["metrics"] == ["chrf", "exact_match"]
        assert spec["stages"][2]["dataset"] == {"stage": "prepare", "part": "test"}


def test_references_with_a_final_number_are_compared_by_it(browser: Browser) -> None:
    shown = browser.get(f"/jobs/new?dataset={seeded_datasets.add_sums()}&goal=compare").text
    assert shown_spec(shown)["stages"][2]["metrics"] == ["maths_exact_match"]


def test_a_dataset_whose_file_is_damaged_or_lost_has_its_pages(browser: Browser) -> None:
    dataset_id = seeded_datasets.add_dataset()
    with read_session() as session:
        file = Path(get_store().root) / session.get_one(Dataset, dataset_id).artifact
    for break_file in (lambda: file.write_bytes(b"{}"), file.unlink):
        break_file()
        shown = browser.get(f"/jobs/new?dataset={dataset_id}&goal=compare")
        assert shown.status_code == 200 and len(shown_spec(shown.text)["stages"]) == 3
        rows = browser.get(f"/datasets/{dataset_id}/rows")
        assert rows.status_code == 200 and "is damaged" in rows.text


def test_a_model_that_is_not_there_is_named_with_what_to_do(browser: Browser) -> None:
    seeded_datasets.add_dataset()
    assert "Only a service with examples has this model" in browser.get("/jobs/new").text


def test_every_field_has_the_description_of_its_schema(browser: Browser) -> None:
    shown = browser.get("/jobs/new").text
    fields = stage_form(StageKind.sft, {}).fields
    assert len(fields) > 50 and all(field.description for field in fields if len(field.path) == 1)
    assert [field.name for field in fields if f'id="f-stages.0.{field.name}"' not in shown] == []
    assert "Rows per optimizer step over all devices." in shown
    assert (
        shown.index("f-stages.0.learning_rate")
        < shown.index("More settings")
        < shown.index("f-stages.0.seed")
    )


def test_an_input_changes_the_json(browser: Browser) -> None:
    seeded_datasets.add_dataset()
    changes = {
        "n:stages.0.epochs": "2.5",
        "n:stages.0.tuning.rank": "32",
        "c:stages.0.packing": "true",
    }
    changed = send(browser, make_spec(seed=7), changes | {"n:stages.0.seed": ""})
    expected = make_spec(epochs=2.5, tuning={"rank": 32}, packing=True)
    assert shown_spec(changed.text) == expected
    assert 'hx-target="#fields"' not in changed.text


def test_the_json_changes_the_form(browser: Browser) -> None:
    changed = send(browser, make_spec(epochs=3, tuning={"method": "full"}), source="json")
    assert re.search(r'name="n:stages.0.epochs"[^>]* value="3"', changed.text)
    assert "f-stages.0.tuning.rank" not in changed.text and 'hx-target="#json"' not in changed.text
    broken = send(browser, '{"name": }', source="json")
    assert "The text is not JSON: line 1, column 10: Expecting value." in broken.text


def test_another_kind_of_stage_has_other_inputs(browser: Browser) -> None:
    changed = send(
        browser, make_spec(), {"c:stages.0.tuning.method": '"full"', "n:stages.0.tuning.rank": "4"}
    )
    assert shown_spec(changed.text)["stages"][0]["tuning"] == {"method": "full"}
    added = send(browser, make_spec(), do="add:evaluate")
    assert shown_spec(added.text)["stages"][1] == {
        "stage": "evaluate", "model": {"stage": "sft"}, "baseline": MODEL,
    }  # fmt: skip
    assert shown_spec(send(browser, make_spec(), do="remove:0").text)["stages"] == []


def test_presets_are_defaults_that_the_inputs_show(browser: Browser) -> None:
    preset = re.search(
        r'<option value="([^"]+)">[^<]*</option>', browser.get("/jobs/new").text.split("p:stages")[1]
    )
    assert preset is not None
    changed = send(browser, make_spec(), {"p:stages.0.preset": preset[1]})
    assert shown_spec(changed.text)["stages"][0]["preset"] == preset[1]
    assert 'hx-target="#fields"' in changed.text


def test_errors_are_at_their_fields(browser: Browser) -> None:
    seeded_datasets.add_dataset()
    wrong = send(browser, make_spec(), {"n:stages.0.batch_size": "many", "r:stages.0.dataset": "gone"})
    assert "stages.0.batch_size" in wrong.text
    wrong = send(browser, make_spec(), {"r:stages.0.dataset": "gone"}, htmx=False)
    assert re.search(r'data-error="stages.0.dataset">[^<]+gone', html.unescape(wrong.text))


def test_the_plan_of_the_dry_run_is_shown(browser: Browser) -> None:
    seeded_datasets.add_dataset()
    planned = send(browser, make_spec(batch_size=5, micro_batch_size=5)).text
    assert "45 rows of ko-chat" in planned and "9 steps" in planned
    assert "curl http://127.0.0.1/api/v1/jobs" in html.unescape(planned)


def test_a_form_that_is_sent_twice_creates_one_job(browser: Browser) -> None:
    seeded_datasets.add_dataset()
    sent = [send(browser, make_spec(), do="submit").headers["hx-redirect"] for _ in range(2)]
    assert sent[0] == sent[1] and count_jobs() == 1
    other = send(browser, make_spec(seed=1), do="submit", htmx=False)
    assert (other.status_code, count_jobs()) == (303, 2)
    refused = send(browser, make_spec(dataset="gone"), do="submit")
    assert "gone" in refused.text and count_jobs() == 2


def test_a_job_is_copied_as_a_new_one(browser: Browser) -> None:
    seeded_datasets.add_dataset()
    page = send(browser, make_spec(epochs=2), do="submit").headers["hx-redirect"]
    shown = browser.get(page).text
    copied = re.search(r'href="(/jobs/new\?from=[^"]+)"', shown)
    assert copied is not None
    copy = shown_spec(browser.get(copied[1]).text)["stages"][0]
    assert copy | make_spec(epochs=2)["stages"][0] == copy
    assert browser.get("/jobs/new?from=job_0").status_code == 404


def test_a_preflight_is_started_and_shown_live(browser: Browser) -> None:
    seeded_datasets.add_dataset()
    started = send(browser, make_spec(), do="preflight", probe_steps="3", price_per_hour="2")
    address = started.headers["hx-replace-url"]
    assert "preflight/job_" in started.text and 'hx-target="#preflight"' in started.text
    assert 'id="preflight-title"' in browser.get(address).text
    refused = send(browser, make_spec(), do="preflight", probe_steps="many")
    assert refused.status_code == 422 and "probe_steps" in refused.text


def test_an_example_is_unchanged_by_its_own_form() -> None:
    changed = [name for name, each in JOB_EXAMPLES.items() if apply_form(each["value"]) != each["value"]]
    assert len(JOB_EXAMPLES) > 20 and changed == []


def apply_form(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a spec after its form was sent as it was shown."""
    inputs = {
        f"{field.kind}:{'.'.join(path)}": [show_value(field.kind, read_path(spec, path))]
        for index, stage in enumerate(spec["stages"])
        for field in stage_form(StageKind(stage["stage"]), stage).fields
        for path in (("stages", str(index), *field.path),)
        if field.kind is not InputKind.presets
    }
    return apply_inputs(spec, inputs)


@pytest.mark.parametrize(
    "text", ["[1]", "nul", "[" * 100_000, "", '{"name": "\\ud800"}', '{"a": ' * 99 + "1" + "}" * 99]
)
def test_what_is_not_a_spec_is_refused(browser: Browser, text: str) -> None:
    assert "The text is " in send(browser, text, source="json").text


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"stages": 5},
        {"stages": [5, {"stage": 7}, {"stage": "sft", "tuning": []}, {"stage": []}]},
        {"stages": [{"stage": "sft", "name": {}, "preset": [[]], "tuning": {"method": []}, "epochs": {}}]},
    ],
)
def test_a_spec_of_any_shape_has_a_form(browser: Browser, spec: dict[str, Any]) -> None:
    inputs = {
        "n:stages.0.epochs": "1",
        "n:stages.2.tuning.rank": "3",
        "c:stages.1.stage": '"sft"',
        "x": "1",
        "j:a": '"\\ud800"',
    }
    assert send(browser, spec, inputs, htmx=False).status_code == 200
    assert parse_json("{}") == {}


def test_a_key_that_may_only_read_sees_why_it_cannot_submit(
    browser: Browser, make_secret: Callable[..., str], make_job: MakeJob
) -> None:
    make_job(RunStatus.queued)
    browser.post("/login", key=make_secret(Scope.read))
    shown = browser.get("/jobs/new").text
    assert shown.count("data-disabled") == 2 and "lacks the scope" in shown
    assert send(browser, make_spec(), do="submit").status_code == 403


def test_models_and_outputs_of_stages_are_suggested(browser: Browser, make_job: MakeJob) -> None:
    seeded_datasets.add_dataset()
    seeded_models.add_many_models(1)
    shown = browser.get("/jobs/new?goal=compare").text
    options = re.findall(r'<option value="([^"]*)">([^<]*)</option>', shown)
    values = [value for value, _ in options]
    assert {"ko-chat", "stage:prepare/test", "stage:sft"} <= set(values)
    assert [label for value, label in options if value.startswith("model_")] == ["nightly-0000"]
    job = make_job(RunStatus.succeeded, config={"stage": "sft", "base": "org/used"})
    assert job and '<option value="org/used">' in browser.get("/jobs/new").text


def test_a_reference_to_a_stage_is_written_without_json(browser: Browser) -> None:
    seeded_datasets.add_dataset()
    shown = browser.get("/jobs/new?goal=compare").text
    assert re.search(r'name="r:stages.2.dataset"[^>]* value="stage:prepare/test"', shown)
    spec = shown_spec(shown)
    changed = send(browser, spec, {"r:stages.2.dataset": "stage:prepare", "r:stages.2.model": "stage:sft"})
    evaluated = shown_spec(changed.text)["stages"][2]
    assert (evaluated["dataset"], evaluated["model"]) == ({"stage": "prepare"}, {"stage": "sft"})


@pytest.mark.parametrize("value", [{"stage": "a"}, {"stage": "a", "part": "test"}, {"part": "x"}, "stage:a"])
def test_what_the_form_shows_of_a_reference_is_what_it_reads(value: Any) -> None:
    inputs = {"r:stages.0.dataset": [show_value(InputKind.reference, value)]}
    assert apply_inputs({"stages": [{"stage": "sft"}]}, inputs)["stages"][0]["dataset"] == value


def test_a_dataset_with_an_old_name_that_reorders_text_is_named_by_its_id(
    browser: Browser, make_dataset: Callable[..., Dataset]
) -> None:
    dataset = make_dataset("rows\u202egnp")
    spec = shown_spec(browser.get("/jobs/new").text)
    assert spec["stages"][0]["dataset"] == dataset.id
    preview = browser.client.post(f"/api/v1/datasets/{dataset.id}/previews", json={"model": "org/base"})
    assert preview.status_code == 202, preview.text
