"""Workers: which are alive, what they hold, and why none of them can take a run."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from sqlalchemy import ColumnElement, Select, and_, delete, select
from sqlmodel import Session, col

from app.http.errors import Conflict, InUse, NotFound
from app.http.paging import PageQuery, paginate_newest_first
from app.settings import Settings, get_settings
from app.storage.database import database_now, read_session
from app.tables import HELD, Deployment, DeploymentStatus, Run, Worker
from app.workers.capable import explain_missing_nodes, filter_capable_workers
from app.workers.schemas import WorkerView
from app.workers.slots import count_gpus, select_held_nodes
from trainers.configs import EngineKind, Queue, StageKind
from trainers.configs.engines import split_capabilities
from trainers.configs.stages.migration.fetch import OPENAI
from trainers.runtime.error_codes import ErrorCode

MAX_MISSED_HEARTBEATS = 3
MAX_SHOWN_PROBLEMS = 10
# How a worker gets each capability.
ENGINE_HINT = (
    "Install it on the worker's host, or name its program in TUNESMITH_ENGINE_COMMANDS, and restart the "
    "worker."
)
CAPABILITIES = {
    **{engine.value: ENGINE_HINT for engine in EngineKind},
    "gguf": "Run `make gguf` on the worker's host, set TUNESMITH_GGUF_ENVIRONMENT to the folder that it "
    "prints, and restart the worker.",
    "python_grader": "Install bubblewrap on the worker's host, set TUNESMITH_PYTHON_GRADERS=true on it, and "
    "restart it; it logs why it cannot run a sandbox.",
    "text_similarity": "Install the extra `evaluation` on the worker's host, as in the workers' image, and "
    "restart it: bleu, gleu, meteor and rouge of `text_similarity` need sacrebleu, nltk and rouge-score.",
    OPENAI: "Set OPENAI_API_KEY on the worker's host to a key of the organization, and restart the worker.",
    "comet": "Run `make comet` on the worker's host, set TUNESMITH_COMET_ENVIRONMENT to the folder that it "
    "prints, and restart the worker.",
}


class WorkersUnwell(Exception):
    """No worker is alive, or one of them reports a problem."""


@dataclass(frozen=True)
class WorkerAssignments:
    """The ids of the runs and deployments that a worker holds."""

    runs: list[str]
    deployments: list[str]


def is_alive(settings: Settings) -> ColumnElement[bool]:
    """Return the SQL condition that a worker sent a heartbeat recently and has not stopped."""
    return _seen_recently(settings.heartbeat_seconds)


def _seen_recently(heartbeat_seconds: float) -> ColumnElement[bool]:
    recently = database_now(-MAX_MISSED_HEARTBEATS * heartbeat_seconds)
    return and_(col(Worker.stopped_at).is_(None), col(Worker.last_seen_at) > recently)


def list_alive_workers(session: Session, settings: Settings) -> Sequence[Worker]:
    """Return the workers that are alive, busy or not, oldest first."""
    return session.scalars(_select_alive(settings.heartbeat_seconds)).all()


@lru_cache(maxsize=1)
def _select_alive(heartbeat_seconds: float) -> Select[Worker]:
    """Return the statement of `list_alive_workers`: building it costs more than executing it."""
    return select(Worker).where(_seen_recently(heartbeat_seconds)).order_by(col(Worker.id))


class AliveWorkers:
    """The workers that are alive as of one request, which reads them once, and only if they matter."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workers: Sequence[Worker] | None = None

    def read(self, session: Session) -> Sequence[Worker]:
        """Return the workers, oldest first."""
        if self._workers is None:
            self._workers = list_alive_workers(session, self._settings)
        return self._workers


def read_alive_workers() -> Sequence[Worker]:
    """Return the workers that are alive, in a session of its own."""
    with read_session() as session:
        return list_alive_workers(session, get_settings())


def list_served_queues(workers: Sequence[Worker]) -> list[Queue]:
    """Return the queues that at least one of the workers serves."""
    return [queue for queue in Queue if any(queue in worker.queues for worker in workers)]


def check_workers(workers: Sequence[Worker]) -> None:
    """Check that there is a live worker, and that none reports a problem; raises WorkersUnwell."""
    if not workers:
        raise WorkersUnwell("no live worker: start one with `python -m workers --queue …`")
    problems = [f"{worker.name}: {problem}" for worker in workers for problem in worker.problems]
    if problems:
        raise WorkersUnwell("; ".join(problems[:MAX_SHOWN_PROBLEMS]))


def list_workers(
    session: Session, settings: Settings, paging: PageQuery, only_alive: bool, stopped: bool = True
) -> tuple[Sequence[Worker], str | None]:
    """Return a page of workers, newest first, with or without those that have stopped in order."""
    statement = select(Worker).where(is_alive(settings)) if only_alive else select(Worker)
    if not stopped:
        statement = statement.where(col(Worker.stopped_at).is_(None))
    return paginate_newest_first(session, statement, col(Worker.id), paging)


class WorkerNotFound(NotFound):
    """No worker has this id."""


class WorkerAlive(Conflict):
    """The worker still sends heartbeats."""

    code = ErrorCode.worker_alive


def delete_worker(session: Session, settings: Settings, worker_id: str) -> None:
    """Delete the row of an absent worker; raise WorkerNotFound, WorkerAlive or InUse.

    A worker that was suspended, and continues after its row was deleted, inserts it again.
    """
    if session.get(Worker, worker_id, with_for_update=True) is None:
        raise WorkerNotFound(f"There is no worker {worker_id}.", hint="List them with GET /api/v1/workers.")
    if session.scalar(select(col(Worker.id)).where(col(Worker.id) == worker_id, is_alive(settings))):
        raise WorkerAlive(
            f"The worker {worker_id} is alive.", hint="Stop its process first; its row can be deleted then."
        )
    assignments = _load_assignments(session, [worker_id])[worker_id]
    if held := [*assignments.runs, *assignments.deployments]:
        raise InUse(
            f"The worker {worker_id} still holds {held[0]}, whose lease has not been released yet.",
            hint="Repeat the request after the lease has expired.",
            used_by=held,
        )
    session.execute(delete(Worker).where(col(Worker.id) == worker_id))


def view_workers(session: Session, settings: Settings, workers: Sequence[Worker]) -> list[WorkerView]:
    """Return the responses for workers, with the runs and deployments that they hold."""
    ids = [worker.id for worker in workers]
    alive = set(session.scalars(select(col(Worker.id)).where(col(Worker.id).in_(ids), is_alive(settings))))
    assignments = _load_assignments(session, ids)
    return [
        WorkerView(
            **worker.model_dump(),
            alive=worker.id in alive,
            runs=assignments[worker.id].runs,
            deployments=assignments[worker.id].deployments,
        )
        for worker in workers
    ]


def explain_missing_worker(
    workers: Sequence[Worker],
    queue: Queue,
    stage: StageKind,
    device_count: int = 0,
    capability: str | None = None,
    nodes: int = 1,
) -> str | None:
    """Return why none of the workers, or too few for several nodes, can take a run; None if they can."""
    if found := filter_capable_workers(workers, queue, stage, device_count, capability):
        return explain_missing_nodes(found, queue, nodes, device_count)
    if lacking := filter_capable_workers(workers, queue, stage, device_count):
        return _explain_missing_capability(lacking, queue, str(capability))
    if capable := filter_capable_workers(workers, queue, stage):
        most = max(count_gpus(worker) for worker in capable)
        needs = "1 GPU" if device_count == 1 else f"{device_count} GPUs"
        return f"No live worker of queue {queue} has {needs}; the most is {most}."
    start = f"Start one: python -m workers --queue {queue}"
    if any(queue in worker.queues for worker in workers):
        return f"No live worker of queue {queue} can run the stage {stage}. {start}"
    return f"No live worker serves queue {queue}. {start}"


def _explain_missing_capability(lacking: Sequence[Worker], queue: Queue, capability: str) -> str:
    names = ", ".join(worker.name for worker in lacking[:MAX_SHOWN_PROBLEMS])
    needed = sorted(split_capabilities(capability))
    missing = [one for one in needed if not any(one in worker.capabilities for worker in lacking)]
    how = [CAPABILITIES.get(one, "Start a worker that has it.") for one in missing or needed]
    nouns = "capability" if len(needed) == 1 else "capabilities"
    lack = "lack it" if len(needed) == 1 else "lack one of them"
    return (
        f"No live worker of queue {queue} has the {nouns} {' and '.join(needed)}: {names} {lack}. "
        f"{' '.join(dict.fromkeys(how))}"
    )


def explain_missing_deployment_worker(session: Session, queue: Queue, engine: EngineKind) -> str | None:
    """Return why no live worker can hold deployments of the engine on the queue, or None if one can."""
    alive = list_alive_workers(session, get_settings())
    return explain_missing_worker(alive, queue, StageKind.deploy, capability=engine.capability)


def _load_assignments(session: Session, worker_ids: Sequence[str]) -> dict[str, WorkerAssignments]:
    assignments: dict[str, WorkerAssignments] = defaultdict(lambda: WorkerAssignments([], []))
    runs = select(col(Run.worker_id), col(Run.id)).where(
        col(Run.worker_id).in_(worker_ids), col(Run.status).in_(HELD)
    )
    for worker_id, run_id in [*session.execute(runs), *session.execute(select_held_nodes(worker_ids))]:
        assignments[worker_id].runs.append(run_id)
    statuses = [status for status in DeploymentStatus if status.held]
    deployments = select(col(Deployment.worker_id), col(Deployment.id)).where(
        col(Deployment.worker_id).in_(worker_ids), col(Deployment.status).in_(statuses)
    )
    for worker_id, deployment_id in session.execute(deployments):
        assignments[worker_id].deployments.append(deployment_id)
    return assignments
