"""The engine `hf` as others start it: transformers, on whatever device there is."""

import sys

from serving.engines.openai_server.engine import BuiltinEngine
from trainers.configs.engines import EngineKind


class HfEngine(BuiltinEngine):
    """transformers and PEFT: the fallback that runs everywhere."""

    kind = EngineKind.hf
    default_program = (sys.executable, "-m", "serving.engines.hf")
