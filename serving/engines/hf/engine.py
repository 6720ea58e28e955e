"""The class that starts the engine `hf`; it imports no ML package."""

import sys

from serving.engines.openai_server.engine import BuiltinEngine
from trainers.configs.engines import EngineKind


class HfEngine(BuiltinEngine):
    """transformers and PEFT under our own server; it runs on every device."""

    kind = EngineKind.hf
    default_program = (sys.executable, "-m", "serving.engines.hf")
