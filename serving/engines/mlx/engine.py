"""The engine `mlx` as others start it: Apple's GPU, and on Linux the CPU."""

import sys

from serving.engines.openai_server.engine import BuiltinEngine
from trainers.configs.engines import EngineKind


class MlxEngine(BuiltinEngine):
    """mlx-lm's models under our own server, with PEFT's adapters as they are."""

    kind = EngineKind.mlx
    default_program = (sys.executable, "-m", "serving.engines.mlx")
