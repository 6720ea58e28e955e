"""Checks of a stage on several hosts when a job is posted."""

from collections.abc import Iterator

from app.http.errors import UnprocessableContent, field_error
from app.settings import Settings
from trainers.configs import Queue
from trainers.configs.stage_config import AnyStage


def check_nodes(
    stage: AnyStage, queue: Queue, path: str, settings: Settings, *, has_own_host: bool
) -> Iterator[UnprocessableContent]:
    """Yield an error for more hosts than are allowed, or than the installation or the queue can have.

    Too few workers are not an error: others may join, and the run reports what it waits for.
    """
    nodes = stage.node_count
    if nodes == 1:
        return
    fault: str | None = None
    if nodes > settings.max_nodes:
        fault = (
            f"The service allows at most {settings.max_nodes}. Lower it, or ask an operator to raise "
            "TUNESMITH_MAX_NODES."
        )
    elif queue is Queue.mlx:
        fault = "MLX trains on one host. Omit nodes, or set the queue to cuda."
    elif has_own_host:
        fault = "The job asks for a host of its own, which is one machine. Omit nodes, or `host` of the job."
    elif not settings.is_team:
        fault = (
            "Several hosts need PostgreSQL and Redis, which all of them reach; this service uses files on "
            "one host. Omit nodes, or move the service: docs/guides/team-deployment.md."
        )
    if fault is not None:
        yield field_error(f"{path}.nodes", f"The stage asks for {nodes} hosts. {fault}")
