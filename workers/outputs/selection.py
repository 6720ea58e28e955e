"""The model that a `select` stage has chosen, which becomes the stage's own."""

from typing import Any

from sqlmodel import col, select

from app.storage.database import read_session
from app.tables import Run, RunStatus
from trainers.configs import SelectConfig


def find_selected_model(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    """Return the column with the id of the chosen model; nothing for a stage of another kind."""
    config = run.stage_config()
    if not isinstance(config, SelectConfig):
        return {}
    chosen = result.get("chosen")
    # The program is not trusted: it may only choose one of the tries.
    assert chosen in [each.stage for each in config.tries], f"{chosen!r} is not a try of {run.id}"
    of_try = select(Run.model_id).where(
        col(Run.job_id) == run.job_id, col(Run.name) == chosen, col(Run.status) == RunStatus.succeeded
    )
    with read_session() as session:
        return {"model_id": session.exec(of_try).one()}
