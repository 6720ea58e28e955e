"""Follows the program of a batch: its counts reach SQL, and it learns where the engines of its models are.

While requests to a model are left, its deployment is woken, and its use is recorded: it neither falls asleep
nor loses its place to one that is used less. A batch whose key has used its tokens of the day waits for the
next one.
"""

import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlmodel import Session

from app.batches import lifecycle as batches
from app.deployments import lifecycle as deployments
from app.routing_table.schemas import RouteView
from app.routing_table.service import record_use
from app.scheduling.incidents import describe_error
from app.storage.database import DATABASE_UNAVAILABLE, read_session, transaction
from app.tables import Batch
from serving.batch.files import (
    CONTROL,
    STATE,
    Availability,
    BatchState,
    Control,
    EngineTarget,
    ModelTargets,
    write_replaced,
)
from workers.batches.inputs import find_expiry
from workers.batches.key_limits import (
    find_creator,
    has_tokens_left,
    list_allowed_routes,
    record_batch_tokens,
)

CONTROL_SECONDS = 2.0
MAX_STATE_BYTES = 4 * 1024 * 1024
NO_TOKENS = ModelTargets(
    availability=Availability.waiting, reason="the API key has used its tokens of the day"
)

logger = logging.getLogger(__name__)


class BatchFollower:
    """The state of a batch's program that SQL does not have yet, and its control file."""

    def __init__(self, batch_id: str, run_dir: Path) -> None:
        self._batch_id = batch_id
        self._run_dir = run_dir
        self._control = Control.model_validate_json((run_dir / CONTROL).read_bytes())
        self._state = BatchState()
        self._controlled_at = float("-inf")
        self.has_unsaved = False

    def poll(self) -> None:
        """Read the program's state, and write the control file if it is due."""
        if (state := self._read_state()) is not None and state != self._state:
            if state.models != self._state.models:
                self._controlled_at = float("-inf")
            self._state, self.has_unsaved = state, True
        now = time.monotonic()
        if now - self._controlled_at >= CONTROL_SECONDS:
            self._controlled_at = now
            try:
                self._update_control()
            except DATABASE_UNAVAILABLE as error:
                # The engines that the program knows stay in use.
                logger.warning("cannot look up the engines of a batch: %s", describe_error(error))

    def save(self, session: Session) -> None:
        """Record the state; call `mark_saved` after the commit."""
        batches.record_progress(
            session,
            self._batch_id,
            progress_columns(self._state),
            validated=self._state.validated,
            finalizing=self._state.finalizing,
        )
        if (batch := session.get(Batch, self._batch_id)) is not None:
            record_batch_tokens(session, batch, self._state.usage)

    def mark_saved(self) -> None:
        """Note that the state is committed."""
        self.has_unsaved = False

    def _read_state(self) -> BatchState | None:
        path = self._run_dir / STATE
        try:
            if path.is_symlink() or path.stat().st_size > MAX_STATE_BYTES:
                return None
            return BatchState.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return None

    def _update_control(self) -> None:
        with read_session() as session:
            batch = session.get(Batch, self._batch_id)
            creator = find_creator(session, batch) if batch is not None else None
            allowed = list_allowed_routes(session, creator) if self._state.models else []
            waits = not has_tokens_left(session, creator)
        routes = {route.name: route for route in allowed}
        control = self._control.model_copy(
            update={
                "models": {
                    name: NO_TOKENS if waits else _find_targets(routes.get(name))
                    for name in self._state.models
                },
                "cancelled": batch is None or batch.cancelling_at is not None,
                "expires_at": None if batch is None else find_expiry(batch),
            }
        )
        used = [routes[name] for name in self._state.models if name in routes]
        if used and not control.cancelled and not waits:
            _keep_awake(used)
        if control != self._control:
            self._control = control
            write_replaced(self._run_dir / CONTROL, control)


def progress_columns(state: BatchState) -> dict[str, Any]:
    """Return the columns of a batch that a state fills."""
    columns: dict[str, Any] = state.model_dump(include={"total", "completed", "failed"})
    return columns | {
        "model": state.first_model,
        "usage": state.usage.model_dump() if state.completed else None,
        "errors": [fault.model_dump() for fault in state.faults] or None,
    }


def _find_targets(route: RouteView | None) -> ModelTargets:
    if route is None:
        return ModelTargets(availability=Availability.missing)
    targets = [
        EngineTarget(base_url=target.base_url, model=target.upstream_model, share=target.share)
        for target in route.targets
        if target.base_url and target.share > 0
    ]
    availability = Availability.ready if targets else Availability.waiting
    return ModelTargets(availability=availability, targets=targets)


def _keep_awake(routes: Iterable[RouteView]) -> None:
    targets = [target for route in routes for target in route.targets if target.share > 0]
    ids = sorted({target.deployment_id for target in targets if target.deployment_id})
    asleep = sorted({target.deployment_id for target in targets if not target.base_url})
    with transaction() as session:
        for deployment_id in asleep:
            deployments.wake(session, deployment_id)
        record_use(session, ids)
