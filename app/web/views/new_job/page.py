"""The form of a new job: each change is checked by a dry run, and form and JSON follow each other."""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Query, Request, Response
from fastapi.responses import HTMLResponse
from sqlmodel import Session
from starlette.concurrency import run_in_threadpool

from app.datasets.training_job import JobGoal
from app.http.errors import HttpError
from app.jobs import service
from app.jobs.examples import JOB_EXAMPLES
from app.models.starter import read_starter_progress
from app.models.suggestions import SuggestedModel
from app.settings import get_settings
from app.storage.database import read_session
from app.web.live import Parts
from app.web.rendering import go_to, is_htmx, render_macro, render_page, render_partial
from app.web.views.new_job import preflight
from app.web.views.new_job.checks import CheckedDraft, check_draft, describe_error, parse_spec
from app.web.views.new_job.commands import list_commands
from app.web.views.new_job.draft import (
    DraftUnreadable,
    Spec,
    add_stage,
    apply_inputs,
    format_json,
    kind_of,
    parse_json,
    read_path,
    remove_stage,
    shape_of,
    show_value,
)
from app.web.views.new_job.schema import InputKind, encode_option, job_fields, stage_form, summarize_stages
from app.web.views.new_job.start import Goals, start_from_model, start_spec
from app.web.views.new_job.suggestions import (
    Suggestions,
    choose_list,
    list_dataset_references,
    list_model_references,
    load_suggestions,
)
from app.web.visitor import CurrentVisitor, Visitor, view_router
from trainers.configs import StageKind
from trainers.configs.presets import apply_presets, load_presets

PARTS = "new_job/parts.jinja"
# Those of the largest job; each stage has about 60.
MAX_INPUTS = 3000

router = view_router()

JobId = Annotated[str | None, Query(pattern=r"^job_[0-9a-z]{1,40}$")]
ModelId = Annotated[str | None, Query(pattern=r"^model_[0-9a-z]{1,40}$")]
DatasetId = Annotated[str | None, Query(pattern=r"^dataset_[0-9a-z]{1,40}$")]


@dataclass(frozen=True)
class Draft:
    """A spec with its text, which differs from it while the text cannot be read, and its check."""

    spec: Spec
    text: str
    checked: CheckedDraft
    key: str
    """Part of the idempotency key: a form that is sent twice creates one job."""


@router.get("/jobs/new")
def show_form(
    request: Request,
    visitor: CurrentVisitor,
    source: Annotated[JobId, Query(alias="from")] = None,
    example: Annotated[str | None, Query(max_length=100)] = None,
    dataset: DatasetId = None,
    base: Annotated[str | None, Query(min_length=1, max_length=500)] = None,
    model: ModelId = None,
    goal: JobGoal = JobGoal.train,
    checked: Annotated[JobId, Query(alias="preflight")] = None,
) -> Response:
    """Show the form, filled from a job, an example, a model or a dataset, with its preflight."""
    assert visitor.caller is not None
    of_model = base is not None or model is not None
    spec = start_from_model(base, model, dataset) if of_model else start_spec(source, example, dataset, goal)
    with read_session() as session:
        draft = _check(session, visitor, spec, format_json(spec), secrets.token_hex(16))
        suggestions = load_suggestions(session)
        state = preflight.load(session, checked) if checked else None
    goals = None if source or example or of_model else Goals(goal, dataset)
    return _render_form(request, visitor, draft, suggestions, state, goals)


@router.get("/jobs/new/starter")
def show_starter(visitor: CurrentVisitor) -> Response:
    """Show how far the example model is; at its end, the form checks its draft again."""
    training = read_starter_progress()
    html = render_macro(visitor.language, "parts.jinja", "starter", training, "/jobs/new/starter")
    return HTMLResponse(html, headers={} if training else {"HX-Trigger": "starter-ready"})


@router.post("/jobs/new")
async def change_form(request: Request, visitor: CurrentVisitor) -> Response:
    """Check, change, preflight or submit the draft of a form; `do` says which."""
    form = await request.form(max_fields=MAX_INPUTS)
    inputs = {name: [str(each) for each in form.getlist(name)] for name in form}
    return await run_in_threadpool(_change, request, visitor, inputs)


def _change(request: Request, visitor: Visitor, inputs: Mapping[str, list[str]]) -> Response:
    assert visitor.caller is not None
    key, action = inputs.get("key", [""])[0][:64], inputs.get("do", [""])[0]
    text = inputs.get("json", ["{}"])[0]
    try:
        before = parse_json(text)
    except DraftUnreadable as error:
        unreadable = Draft({}, text, describe_error(error), key)
        return _respond(request, visitor, unreadable, is_changed=False, with_text=False)
    is_of_json = inputs.get("source", [""])[0] == "json"
    spec = _apply_action(before if is_of_json else apply_inputs(before, inputs), action)
    problem = None
    if action in ("submit", "preflight"):
        try:
            if action == "submit":
                return _submit(request, visitor, spec, key)
            return preflight.start(request, visitor, parse_spec(spec), inputs)
        except HttpError as error:
            if error.status >= 500:
                raise
            problem = describe_error(error)
    with read_session() as session:
        draft = _check(session, visitor, spec, text if is_of_json else format_json(spec), key)
    if problem is not None:
        draft = Draft(draft.spec, draft.text, problem, key)
    is_changed = is_of_json or bool(inputs.get("render")) or shape_of(spec) != shape_of(before)
    return _respond(request, visitor, draft, is_changed=is_changed, with_text=not is_of_json)


def _apply_action(spec: Spec, action: str) -> Spec:
    name, _, value = action.partition(":")
    if name == "add" and value in set(StageKind):
        return add_stage(spec, StageKind(value))
    if name == "remove" and value.isdigit():
        return remove_stage(spec, int(value))
    return spec


def _submit(request: Request, visitor: Visitor, spec: Spec, key: str) -> Response:
    """Submit the draft; a form that is sent twice with the same content creates one job."""
    assert visitor.caller is not None
    content = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
    job, _ = service.submit_job(
        get_settings(), parse_spec(spec), visitor.caller.key_id, f"page-{key}-{content}" if key else None
    )
    return go_to(request, f"/jobs/{job.id}")


def _check(session: Session, visitor: Visitor, spec: Spec, text: str, key: str) -> Draft:
    assert visitor.caller is not None
    return Draft(spec, text, check_draft(session, get_settings(), spec, visitor.caller.key_id), key)


def _respond(
    request: Request, visitor: Visitor, draft: Draft, *, is_changed: bool, with_text: bool
) -> Response:
    """Return the parts of the page that change, or the whole page without htmx."""
    if not is_htmx(request):
        with read_session() as session:
            suggestions = load_suggestions(session)
        return _render_form(request, visitor, draft, suggestions, None, None)
    language = visitor.language
    parts = {"plan": render_macro(language, PARTS, "plan", draft.checked, draft.spec)}
    if draft.spec:
        parts["commands"] = render_macro(language, PARTS, "commands", list_commands(request, draft.spec))
    if with_text:
        parts["json"] = render_macro(language, PARTS, "json_text", draft)
    if is_changed:
        with read_session() as session:
            suggestions = load_suggestions(session)
        parts["fields"] = render_macro(language, PARTS, "fields", describe_form(draft, suggestions))
    return HTMLResponse("".join(render_partial(name, html, "outerHTML") for name, html in parts.items()))


def _render_form(
    request: Request,
    visitor: Visitor,
    draft: Draft,
    suggestions: Suggestions,
    state: Any,
    goals: Goals | None,
) -> Response:
    return render_page(
        request,
        "new_job/page.jinja",
        draft=draft,
        form=describe_form(draft, suggestions),
        commands=list_commands(request, draft.spec),
        suggestions=suggestions.datasets,
        goals=goals,
        examples={name: each["summary"] for name, each in JOB_EXAMPLES.items()},
        kinds=summarize_stages(),
        training=read_starter_progress(),
        preflight=state,
        preflight_parts=preflight.render(state, visitor) if state else Parts(),
    )


def describe_form(draft: Draft, suggestions: Suggestions) -> dict[str, Any]:
    """Return the inputs of a draft: those of the job, and of each stage the most used and the others."""
    errors, spec = draft.checked.fields, draft.spec
    stages = spec.get("stages")
    shown = [
        _describe_stage(stage, index, draft)
        for index, stage in enumerate(stages if isinstance(stages, list) else [])
        if isinstance(stage, dict)
    ]
    job = [_describe_input(each, (), spec, errors, each.default) for each in job_fields()]
    return {
        "name": spec.get("name", ""),
        "error": errors.get("name"),
        "job": job,
        "stages": shown,
        "kinds": [kind.value for kind in StageKind],
        "datasets": [*suggestions.datasets, *list_dataset_references(spec)],
        "models": [*map(SuggestedModel, list_model_references(spec)), *suggestions.models],
    }


def _describe_stage(stage: Spec, index: int, draft: Draft) -> dict[str, Any]:
    prefix, errors = ("stages", str(index)), draft.checked.fields
    described: dict[str, Any] = {
        "index": index,
        "kind": stage.get("stage"),
        "name": stage.get("name") or stage.get("stage"),
        "error": errors.get(".".join(prefix)) or errors.get(f"stages.{index}.stage"),
        "most_used": [],
        "others": [],
    }
    if (kind := kind_of(stage)) is None:
        return described
    form = stage_form(kind, stage)
    defaults = _find_defaults(stage, index, draft)
    for each in form.fields:
        shown = _describe_input(
            each, prefix, draft.spec, errors, read_path(defaults, each.path) or each.default
        )
        described["most_used" if each.is_most_used else "others"].append(shown)
    return {**described, "summary": form.summary}


def _find_defaults(stage: Spec, index: int, draft: Draft) -> dict[str, Any]:
    """Return the values of the fields that are not set: as the plan resolves them, or those of presets."""
    plan, stages = draft.checked.plan, draft.spec["stages"]
    if plan is not None and len(plan.stages) == len(stages):
        return plan.stages[index].config
    try:
        return apply_presets(stage["stage"], {"preset": stage.get("preset")})
    except ValueError:
        return {}


def _describe_input(
    field: Any, prefix: tuple[str, ...], spec: Spec, errors: Mapping[str, str], default: Any
) -> dict[str, Any]:
    path = ".".join((*prefix, *field.path))
    value = read_path(spec, (*prefix, *field.path))
    return {
        "id": f"f-{path}",
        "input": f"{field.kind}:{path}",
        "path": path,
        "label": field.name,
        "kind": field.kind.name,
        "description": field.description,
        "is_required": field.is_required,
        "is_set": value is not None,
        "value": show_value(field.kind, value),
        "default": "" if default is None or isinstance(default, dict | list) else default,
        "options": [(encode_option(option), option) for option in field.options],
        "presets": _describe_presets(value) if field.kind is InputKind.presets else [],
        "error": errors.get(path),
        "list": choose_list(field.name),
    }


def _describe_presets(value: Any) -> list[dict[str, Any]]:
    chosen = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [
        {"name": name, "kind": preset.kind, "summary": preset.summary, "is_chosen": name in chosen}
        for name, preset in load_presets().items()
    ]
