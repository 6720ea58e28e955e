"""Check of an embedding model's files before its engine starts."""

from pathlib import Path

from app.tables import Deployment
from trainers.configs import EngineTask
from trainers.modeling.embedding.recipe import (
    EmbeddingModelUnsupported,
    check_engine,
    check_generates,
    read_recipe,
)
from workers.inputs.models import ResolvedModel


def check_recipe(deployment: Deployment, model: ResolvedModel) -> None:
    """Raise EmbeddingModelUnsupported for an embedding model that the engine would not serve as it is.

    That is also one with the task `generate`.
    """
    if deployment.task is not EngineTask.embed:
        check_generates(Path(model.base))
        return
    if model.adapter is not None:
        raise EmbeddingModelUnsupported(
            f"{deployment.model_id or deployment.base} is an adapter, which embeddings do not apply.",
            "Merge it into its base, and deploy the merged model.",
        )
    check_engine(read_recipe(Path(model.base), deployment.pooling), deployment.engine)
