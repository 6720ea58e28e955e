"""The programs that generate text, each behind a small class that starts it and speaks to it."""

from collections.abc import Sequence

from serving.engines.engine import Engine, EngineRefused, Serve
from serving.engines.hf.engine import HfEngine
from trainers.configs.engines import EngineKind

ENGINES: dict[EngineKind, type[Engine]] = {HfEngine.kind: HfEngine}

__all__ = ["ENGINES", "Engine", "EngineKind", "EngineRefused", "Serve", "find_engine"]


def find_engine(kind: str, program: Sequence[str] = ()) -> Engine:
    """The engine of this kind; raises ValueError for one that is not known."""
    if kind not in ENGINES:
        raise ValueError(f"Engine {kind!r} is not known; choose one of: {', '.join(ENGINES)}.")
    return ENGINES[EngineKind(kind)](program)
