"""The list of models, and the page of a model: lineage both ways, files, deployment and deletion."""

import hashlib
import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from app.models.lineage import make_next_spec
from app.storage.database import read_session, transaction
from app.storage.manifest import MANIFEST
from app.storage.opening import get_store
from app.tables import Job, Model, Run, Scope
from tests.integration.app.web.conftest import Browser
from tests.integration.app.web.seeded_models import Lineage, add_lineage, add_many_models


@pytest.fixture
def lineage(browser: Browser, tmp_path: Path) -> Lineage:
    """Return an adapter with everything that it is connected with."""
    return add_lineage(tmp_path / "files")


def test_an_empty_registry_says_what_to_do_first(browser: Browser) -> None:
    assert "No model yet." in browser.get("/models").text
    assert "No model matches" in browser.get("/models?name=x").text


def test_a_model_links_to_its_origin_and_to_what_was_made_of_it(browser: Browser, lineage: Lineage) -> None:
    shown = browser.get(f"/models/{lineage.model.id}").text
    linked = set(re.findall(r'href="(/\w+/\w+)"', shown))
    assert {
        f"/models/{lineage.base.id}",
        f"/datasets/{lineage.model.dataset_id}",
        f"/runs/{lineage.run.id}",
        f"/jobs/{lineage.run.job_id}",
        f"/evaluations/{lineage.evaluation.id}",
        f"/deployments/{lineage.deployment.id}",
        f"/models/{lineage.child.id}",
    } <= linked
    assert f"/models/{lineage.model.id}" in browser.get(f"/models/{lineage.base.id}").text


def test_files_have_hashes_and_are_downloaded_with_the_login(
    browser: Browser, lineage: Lineage, make_secret: Callable[..., str]
) -> None:
    browser.post("/login", key=make_secret(Scope.read))
    shown = browser.get(f"/models/{lineage.model.id}").text
    (path,) = re.findall(r'href="(/models/\w+/files/model.safetensors)"', shown)
    assert hashlib.sha256(browser.get(path).content).hexdigest() in shown
    archive = browser.get(f"/models/{lineage.model.id}/download")
    assert archive.headers["content-type"] == "application/x-tar" and len(archive.content) > 3000


def test_damaged_files_are_an_error_on_the_page(browser: Browser, lineage: Lineage) -> None:
    folder = get_store().local_path(lineage.model.artifact)
    assert folder is not None
    (folder / MANIFEST).unlink()
    shown = browser.get(f"/models/{lineage.model.id}")
    assert (shown.status_code, "artifact_corrupt" in shown.text) == (200, True)


def test_the_copied_spec_trains_the_model_as_it_was_trained(browser: Browser, lineage: Lineage) -> None:
    shown = browser.get(f"/models/{lineage.model.id}").text
    block = re.search(r'<pre id="next-spec"[^>]*><code>(.*?)</code>', shown, re.DOTALL)
    assert block is not None
    (stage,) = json.loads(unescape(block[1]))["stages"]
    assert stage == {
        "stage": "sft",
        "base": lineage.model.id,
        "dataset": lineage.model.dataset_id,
        "epochs": 2,
    }


def test_a_model_in_use_has_the_reason_and_is_kept(browser: Browser, lineage: Lineage) -> None:
    page = f"/models/{lineage.model.id}"
    assert "0 live deployments, 1 models made of it" in browser.get(page).text
    assert browser.post(f"{page}/delete", page=page).status_code == 409
    child = f"/models/{lineage.child.id}"
    deleted = browser.post(f"{child}/delete", page=child)
    assert (deleted.status_code, deleted.headers["location"]) == (303, "/models")
    assert browser.get(child).status_code == 404
    assert "aria-disabled" not in browser.get(page).text


def test_a_model_is_deployed_under_a_name(browser: Browser, lineage: Lineage) -> None:
    page = f"/models/{lineage.model.id}"
    assert browser.post(f"{page}/deploy", page=page, name="news").status_code == 303
    shown = browser.get(page).text
    assert ">news</a>" in shown and ">Queued<" in shown
    assert browser.post(f"{page}/deploy", page=page, name="Not a name").status_code == 422


def test_a_thousand_models_are_pages_and_the_name_filters(browser: Browser) -> None:
    add_many_models(1000)
    first = browser.get("/models").text
    following = re.search(r'rel="next" href="([^"]+)"', first)
    assert following is not None
    shown = browser.get(unescape(following[1])).text
    assert "nightly-0949" in shown and "nightly-0950" not in shown
    assert browser.get("/models?name=nightly-0007").text.count("<tr id=") == 1


def shown_stage(browser: Browser, query: str) -> dict[str, Any]:
    """Return the one stage of the form of a new job."""
    found = re.search(r'<textarea id="json"[^>]*>(.*?)</textarea>', browser.get(query).text, re.DOTALL)
    assert found is not None
    (stage,) = json.loads(unescape(found[1]))["stages"]
    return dict(stage)


def test_the_form_of_a_new_job_begins_with_the_model(browser: Browser, lineage: Lineage) -> None:
    model = lineage.model
    links = re.findall(r'href="(/jobs/new\?\w+=\w+)"', browser.get(f"/models/{model.id}").text)
    assert links == [f"/jobs/new?base={model.id}", f"/jobs/new?model={model.id}"]
    trained = {"stage": "sft", "base": model.id, "dataset": model.dataset_id, "epochs": 2}
    assert shown_stage(browser, links[0]) == trained
    evaluated = {"stage": "evaluate", "model": model.id, "baseline": lineage.base.id, "dataset": "ko-en-news"}
    assert shown_stage(browser, links[1]) == evaluated
    other = shown_stage(browser, "/jobs/new?base=org%2Ftiny")
    assert other == {"stage": "sft", "base": "org/tiny", "dataset": "ko-en-news"}
    assert browser.get("/jobs/new?base=model_none").status_code == 404


@pytest.mark.parametrize(
    ("stage", "changed"),
    [
        ({"dataset": [{"dataset": "a", "weight": 1}]}, {"dataset": [{"dataset": "a", "weight": 1}]}),
        ({"dataset": {"stage": "prepare", "part": "train"}, "needs": ["prepare"]}, {}),
        ({"validation_dataset": {"stage": "prepare", "part": "test"}}, {}),
        (
            {"tuning": {"kind": "lora", "rank": 4}, "sweep": {"tuning.rank": [4, 8], "epochs": [2, 3]}},
            {"tuning": {"kind": "lora", "rank": 8}, "epochs": 2},
        ),
    ],
)
def test_the_copied_stage_stands_alone(
    lineage: Lineage, stage: dict[str, Any], changed: dict[str, Any]
) -> None:
    with transaction() as session:
        run, job = session.get_one(Run, lineage.run.id), session.get_one(Job, lineage.run.job_id)
        job.spec = {"name": "j", "stages": [{"stage": "sft", "base": "starter", "dataset": "news", **stage}]}
        if "sweep" in stage:
            run.name, run.config = "sft-2", {**run.config, "tuning": {"kind": "lora", "rank": 8}}
    with read_session() as session:
        (made,) = make_next_spec(session, session.get_one(Model, lineage.model.id))["stages"]
    model = lineage.model
    assert made == {"stage": "sft", "base": model.id, "dataset": model.dataset_id, **changed}
