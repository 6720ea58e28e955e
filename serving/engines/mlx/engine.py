"""The class that starts the engine `mlx`; it imports no ML package."""

import sys

from serving.engines.openai_server.engine import BuiltinEngine
from trainers.configs.engines import EngineKind


class MlxEngine(BuiltinEngine):
    """mlx-lm's models and PEFT's adapters under our own server, on Apple's GPU or Linux CPUs."""

    kind = EngineKind.mlx
    default_program = (sys.executable, "-m", "serving.engines.mlx")
