"""OpenAI's Evals API, on evaluations of this service."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request

from app.evals import history, results, service
from app.evals.service import EvalRunSpec, EvalStatus
from app.evals.usability import list_unusable
from app.http.auth import CallerDependency
from app.http.paging import CursorQuery
from app.idempotency.creation import Creation
from app.openai_api.evals.schemas import (
    EvalCreate,
    EvalDeleted,
    EvalId,
    EvalObject,
    EvalOutputItem,
    EvalRunCreate,
    EvalRunDeleted,
    EvalRunId,
    EvalRunObject,
    EvalUpdate,
    OutputItemId,
)
from app.openai_api.evals.views import (
    ITEM_STATUSES,
    make_item_id,
    read_item_position,
    view_eval,
    view_imported_item,
    view_imported_run,
    view_item,
    view_run,
)
from app.openai_api.paging import DEFAULT_LIMIT, MAX_LIMIT, After, ListPage, Order, list_page
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession, read_session
from app.tables import Eval, EvalRun, Evaluation, Run
from trainers.evaluation.row_index import IndexedRow

router = APIRouter(prefix="/evals", tags=["evals"])

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Maximum number of items.")]


@router.post("", status_code=201)
def create_eval(caller: CallerDependency, body: EvalCreate, creation: Creation) -> EvalObject:
    """Define an eval: what the items look like, and the graders that judge the responses."""
    definition = Eval(
        name=body.name,
        data_source_config=body.data_source_config.model_dump(),
        testing_criteria=body.testing_criteria,
        custom=body.metadata or {},
    )
    eval_id = creation.once(lambda record: service.create_eval(definition, caller.key_id, record))
    with read_session() as session:
        return view_eval(service.get_eval(session, eval_id))


@router.get("")
def list_evals(
    session: ReadSession,
    limit: Limit = DEFAULT_LIMIT,
    after: After = None,
    order: Order = "asc",
    order_by: Annotated[
        Literal["created_at", "updated_at"], Query(description="Order by creation, or by the last change.")
    ] = "created_at",
) -> ListPage[EvalObject]:
    """List the evals."""
    definitions, has_more = service.list_evals(session, CursorQuery(limit, after, order == "desc"), order_by)
    return list_page([view_eval(definition) for definition in definitions], has_more)


@router.get("/{eval_id}")
def get_eval(session: ReadSession, eval_id: EvalId) -> EvalObject:
    """Return an eval."""
    definition = service.get_eval(session, eval_id)
    imported = definition.imported_id is not None
    return view_eval(definition, list_unusable(session, definition, get_settings()) if imported else None)


@router.post("/{eval_id}")
def update_eval(session: WriteSession, eval_id: EvalId, body: EvalUpdate) -> EvalObject:
    """Change the name or the metadata of an eval."""
    return view_eval(service.update_eval(session, eval_id, body.name, body.metadata))


@router.delete("/{eval_id}")
def delete_eval(session: WriteSession, eval_id: EvalId) -> EvalDeleted:
    """Delete an eval whose runs have ended, and these runs."""
    service.delete_eval(session, eval_id)
    return EvalDeleted(eval_id=eval_id, object="eval.deleted", deleted=True)


@router.post("/{eval_id}/runs", status_code=201)
def create_eval_run(
    request: Request, caller: CallerDependency, eval_id: EvalId, body: EvalRunCreate, creation: Creation
) -> EvalRunObject:
    """Start a run: a model responds to each item, and the graders judge the responses."""
    spec = EvalRunSpec(eval_id, body.name, body.data_source, body.metadata or {})
    run_id = creation.once(lambda record: service.create_run(get_settings(), spec, caller, record))
    return get_eval_run(request, eval_id, run_id)


@router.get("/{eval_id}/runs")
def list_eval_runs(
    request: Request,
    eval_id: EvalId,
    limit: Limit = DEFAULT_LIMIT,
    after: After = None,
    order: Order = "asc",
    status: Annotated[EvalStatus | None, Query(description="Return only runs with this status.")] = None,
) -> ListPage[EvalRunObject]:
    """List the runs of an eval."""
    with read_session() as session:
        runs, has_more = service.list_runs(
            session, eval_id, CursorQuery(limit, after, order == "desc"), status
        )
        progress = service.find_progress(session, runs)
    base_url = _base_url(request)
    return list_page([_view(run, progress.get(run.id), base_url) for run in runs], has_more)


@router.get("/{eval_id}/runs/{run_id}")
def get_eval_run(request: Request, eval_id: EvalId, run_id: EvalRunId) -> EvalRunObject:
    """Return a run."""
    with read_session() as session:
        run = service.get_run(session, eval_id, run_id)
    return _load_view(run, _base_url(request))


@router.post("/{eval_id}/runs/{run_id}/cancel")
def cancel_eval_run(request: Request, eval_id: EvalId, run_id: EvalRunId) -> EvalRunObject:
    """Cancel a run; one that has ended stays as it is."""
    service.cancel_run(eval_id, run_id)
    return get_eval_run(request, eval_id, run_id)


@router.delete("/{eval_id}/runs/{run_id}")
def delete_eval_run(session: WriteSession, eval_id: EvalId, run_id: EvalRunId) -> EvalRunDeleted:
    """Delete a run that has ended; its job and its evaluation remain."""
    service.delete_run(session, eval_id, run_id)
    return EvalRunDeleted(run_id=run_id, object="eval.run.deleted", deleted=True)


@router.get("/{eval_id}/runs/{run_id}/output_items")
def list_output_items(
    eval_id: EvalId,
    run_id: EvalRunId,
    limit: Limit = DEFAULT_LIMIT,
    after: After = None,
    order: Order = "asc",
    status: Annotated[Literal["fail", "pass"] | None, Query(description="Return only these items.")] = None,
) -> ListPage[EvalOutputItem]:
    """List the items of a run with their results; there are none before it is completed."""
    with read_session() as session:
        run = service.get_run(session, eval_id, run_id)
        progress = service.find_progress(session, [run]).get(run.id)
        if progress is None:
            place = None if after is None else read_item_position(run, after)
            descending = order == "desc"
            items, has_more = history.list_items(session, run, limit, place, status, descending=descending)
            return list_page([view_imported_item(run, item) for item in items], has_more)
    stage, evaluation = progress
    if evaluation is None:
        return list_page([], has_more=False)
    found = results.list_items(stage, evaluation)
    if status is not None:
        found = [item for item in found if ITEM_STATUSES[results.decide(item[1])] == status]
    if order == "desc":
        found.reverse()
    if after is not None:
        # Ids sort by the number of the row, whichever of them are listed.
        ids = [(item, make_item_id(run, item[0].row)) for item in found]
        found = [item for item, item_id in ids if (item_id < after if order == "desc" else item_id > after)]
    return list_page(_view_items(run, stage, evaluation, found[:limit]), has_more=len(found) > limit)


@router.get("/{eval_id}/runs/{run_id}/output_items/{output_item_id}")
def get_output_item(eval_id: EvalId, run_id: EvalRunId, output_item_id: OutputItemId) -> EvalOutputItem:
    """Return an item of a run with its results."""
    with read_session() as session:
        run = service.get_run(session, eval_id, run_id)
        progress = service.find_progress(session, [run]).get(run.id)
        position = read_item_position(run, output_item_id)
        item = history.get_item(session, run, position) if progress is None and position is not None else None
    if item is not None:
        return view_imported_item(run, item)
    stage, evaluation = progress if progress is not None else (None, None)
    items = results.list_items(stage, evaluation) if stage is not None and evaluation is not None else []
    found = [one for one in items if make_item_id(run, one[0].row) == output_item_id]
    if stage is None or evaluation is None or not found:
        raise service.EvalNotFound(f"The run {run_id} has no output item {output_item_id!r}.")
    return _view_items(run, stage, evaluation, found)[0]


def _view_items(
    run: EvalRun, stage: Run, evaluation: Evaluation, found: list[tuple[IndexedRow, list[bool | None]]]
) -> list[EvalOutputItem]:
    stored = results.read_items(evaluation, [row for row, _ in found])
    return [
        view_item(run, stage, evaluation, judged, row) for (_, judged), row in zip(found, stored, strict=True)
    ]


def _load_view(run: EvalRun, base_url: str) -> EvalRunObject:
    with read_session() as session:
        progress = service.find_progress(session, [run])
    return _view(run, progress.get(run.id), base_url)


def _view(run: EvalRun, progress: tuple[Run, Evaluation | None] | None, base_url: str) -> EvalRunObject:
    if progress is None:
        return view_imported_run(run)
    stage, evaluation = progress
    counts = results.count_results(stage, evaluation) if evaluation is not None else None
    return view_run(run, stage, evaluation, counts, base_url)


def _base_url(request: Request) -> str:
    return str(request.url.replace(path="/", query=""))
