"""The overview: the queues with their next runs, the hosts with what they run, and the machines of clouds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Path, Query, Request, Response
from sqlmodel import Session

from app.deployments.schemas import DeploymentView
from app.deployments.service import list_deployments, view_deployment
from app.hosts import readiness
from app.hosts import service as hosts
from app.hosts.schemas import HostView
from app.http.paging import PageQuery
from app.settings import get_settings
from app.storage.database import ReadSession, WriteSession
from app.tables import DeploymentStatus
from app.web.live import LiveView, Parts, Version, stream_view
from app.web.rendering import go_to, render_macro, render_page
from app.web.url_state import ListFilters
from app.web.views.new_job.commands import quote_address
from app.web.visitor import CurrentVisitor, Visitor, view_router
from app.workers import service
from app.workers.machines import HeldWork, HostMachine, group_by_host, list_held_work
from app.workers.queues import list_queues, list_waiting_runs
from app.workers.schemas import QueueView, WaitingRunView
from trainers.configs import Queue

PARTS = "hosts/parts.jinja"
# A host is several lines high.
N_WORKERS = 25
# Of each queue, and of the deployments; a queue has a page with all.
N_NEXT = 3

router = view_router()

WorkerId = Annotated[str, Path(pattern=r"^worker_[0-9a-z]{1,40}$")]


@dataclass(frozen=True)
class HostFilters(ListFilters):
    """The filters of the list of hosts, all of which are in the URL."""

    shown: str
    after: str | None


@dataclass(frozen=True)
class HostOverview:
    """What the page shows of queues, hosts and clouds."""

    problems: Sequence[str]
    queues: Sequence[QueueView]
    next_runs: dict[Queue, Sequence[WaitingRunView]]
    waiting_deployments: Sequence[DeploymentView]
    machines: Sequence[HostMachine]
    work: dict[str, HeldWork]
    cloud_hosts: Sequence[HostView]
    next: str | None


def host_filters(
    shown: Literal["", "all"] = "",
    after: Annotated[str | None, Query(pattern=r"^worker_[0-9a-z]{26}$")] = None,
) -> HostFilters:
    """Return the filters of a request; by default workers that have stopped in order are left out."""
    return HostFilters(shown, after)


Filters = Annotated[HostFilters, Depends(host_filters)]


@router.get("/hosts")
def show_hosts(request: Request, session: ReadSession, visitor: CurrentVisitor, filters: Filters) -> Response:
    """Show the queues, the hosts, and the machines of clouds."""
    view = _overview(filters)
    state = view.load(session)
    address = quote_address(f"{request.url.scheme}://{request.url.netloc}")
    return render_page(
        request,
        "hosts/list.jinja",
        state=state,
        parts=view.render(state, visitor),
        filters=filters,
        join=f"tunesmith join --url {address} --key ts_…",
    )


@router.get("/hosts/stream")
def stream_hosts(request: Request, filters: Filters, version: Version = "") -> Response:
    """Stream the parts that change."""
    return stream_view(request, _overview(filters), version)


@router.post("/hosts/workers/{worker_id}/delete")
def delete_worker(request: Request, session: WriteSession, worker_id: WorkerId) -> Response:
    """Delete the record of a worker that has stopped or is lost."""
    service.delete_worker(session, get_settings(), worker_id)
    return go_to(request, "/hosts")


def _overview(filters: HostFilters) -> LiveView[HostOverview]:
    def load(session: Session) -> HostOverview:
        settings, page = get_settings(), PageQuery(limit=N_WORKERS, after=filters.after)
        rows, after = service.list_workers(
            session, settings, page, only_alive=False, stopped=filters.shown == "all"
        )
        workers = service.view_workers(session, settings, rows)
        alive, few = service.AliveWorkers(settings), PageQuery(limit=N_NEXT)
        queues, unfinished = list_queues(session, alive), hosts.list_unfinished(session)
        waiting, _ = list_deployments(session, few, DeploymentStatus.queued, None)
        return HostOverview(
            problems=readiness.list_problems(session, settings),
            queues=queues,
            next_runs={
                each.queue: list_waiting_runs(session, alive, each.queue, few)[0]
                for each in queues
                if each.waiting
            },
            waiting_deployments=[view_deployment(session, row) for row in waiting],
            machines=group_by_host(workers),
            work=list_held_work(session, workers),
            cloud_hosts=hosts.view_hosts(session, settings, unfinished) if unfinished else (),
            next=after,
        )

    def render(state: HostOverview, visitor: Visitor) -> Parts:
        language = visitor.language
        parts = {
            "host-problems": render_macro(language, PARTS, "problems", state.problems),
            "queues": render_macro(language, PARTS, "queue_list", state),
            "cloud-hosts": render_macro(language, PARTS, "cloud_section", state.cloud_hosts, visitor),
        }
        rows = {
            f"row-{machine.id}": render_macro(language, PARTS, "machine_row", machine, state.work, visitor)
            for machine in state.machines
        }
        empty = render_macro(language, PARTS, "empty_row", filters)
        return Parts(parts=parts, rows=rows, table="hosts", empty=empty)

    return LiveView(load, render)
