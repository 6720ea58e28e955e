"""The programs that generate text, each with a small class that starts and calls it."""

from collections.abc import Sequence

from serving.engines.engine import Engine, EngineConfig, EngineRequestFailed
from serving.engines.hf.engine import HfEngine
from serving.engines.mlx.engine import MlxEngine
from serving.engines.sglang import SglangEngine
from serving.engines.vllm import VllmEngine
from trainers.configs.engines import EngineKind

ENGINES: dict[EngineKind, type[Engine]] = {
    engine.kind: engine for engine in (HfEngine, MlxEngine, VllmEngine, SglangEngine)
}

__all__ = ["ENGINES", "Engine", "EngineConfig", "EngineKind", "EngineRequestFailed", "find_engine"]


def find_engine(kind: str, program: Sequence[str] = ()) -> Engine:
    """Return the engine of a kind. Raises ValueError for an unknown kind."""
    if kind not in ENGINES:
        raise ValueError(f"The engine {kind!r} is unknown; choose one of: {', '.join(ENGINES)}.")
    return ENGINES[EngineKind(kind)](program)
