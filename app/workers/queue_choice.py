"""The hardware of a stage that names none: the best that a live worker has, as of the request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlmodel import Session

from app.settings import Settings
from app.tables import Worker
from app.workers import service as workers
from app.workers.capable import filter_capable_workers
from app.workers.host_hardware import HostHardware, describe_devices, local_hardware
from app.workers.slots import count_gpus
from trainers.configs import Queue, StageKind

NONE: Mapping[Queue, str | None] = {}


@dataclass(frozen=True)
class QueueChoice:
    """A queue, and why it was chosen."""

    queue: Queue
    reason: str


class QueueChooser:
    """Chooses the queues of one request."""

    def __init__(self, session: Session, settings: Settings, alive: workers.AliveWorkers) -> None:
        self._session = session
        self._settings = settings
        self._alive = alive

    def choose(
        self, kind: StageKind, suitable: Sequence[Queue], capabilities: Mapping[Queue, str | None] = NONE
    ) -> QueueChoice:
        """Choose for a stage that names no queue; the queues that it can use are sorted, the best first.

        `capabilities` contains what a worker of a queue must announce.
        """
        if self._settings.default_queue is not None:
            default = self._settings.default_queue
            return QueueChoice(default, f"TUNESMITH_DEFAULT_QUEUE is {default}.")
        return choose_queue(kind, suitable, self._alive.read(self._session), local_hardware(), capabilities)


def choose_queue(
    kind: StageKind,
    suitable: Sequence[Queue],
    alive_workers: Sequence[Worker],
    host: HostHardware,
    capabilities: Mapping[Queue, str | None] = NONE,
) -> QueueChoice:
    """Choose the first queue that a live worker serves for this kind of stage, busy or not.

    While no worker is alive, as when the service starts, the hardware of this host decides: a worker on the
    same host is probably about to register.
    """
    for queue in suitable:
        capable = [
            worker
            for worker in filter_capable_workers(
                alive_workers, queue, kind, capability=capabilities.get(queue)
            )
            if queue is not Queue.cuda or count_gpus(worker)
        ]
        if capable:
            return QueueChoice(queue, _explain(kind, queue, suitable, capable, alive_workers))
    if not alive_workers:
        expected = next((queue for queue in suitable if queue in host.queues), suitable[0])
        return QueueChoice(expected, f"No worker is alive yet; this host has {host.description}.")
    queue = Queue.cpu if Queue.cpu in suitable else suitable[0]
    return QueueChoice(queue, f"No live worker can run the stage {kind}.")


def _explain(
    kind: StageKind,
    queue: Queue,
    suitable: Sequence[Queue],
    capable: Sequence[Worker],
    alive_workers: Sequence[Worker],
) -> str:
    if queue is Queue.cuda:
        worker = max(capable, key=count_gpus)
        devices = describe_devices([gpu["name"] for gpu in worker.hardware["gpus"]])
        return f"The best hardware of the live workers: {devices} ({worker.name})."
    if queue is suitable[0]:
        reason = "an Apple chip" if queue is Queue.mlx else "it needs no GPU"
        return f"The best hardware for the stage {kind}: {reason}."
    if suitable[0] is Queue.cpu:
        return f"No live worker of queue cpu can run the stage {kind}."
    names = {Queue.cuda: "a GPU", Queue.mlx: "an Apple chip"}
    missing = " or ".join(names[better] for better in suitable[: suitable.index(queue)])
    chosen = [f"The next best is {names[queue]}."] if queue in names else []
    notes = {note for worker in alive_workers if (note := worker.hardware.get("unused")) is not None}
    return " ".join([f"No live worker that runs the stage {kind} has {missing}.", *chosen, *sorted(notes)])
