"""The engine `hf` that takes every adapter and uses none, as engines do that do not know an adapter's names.

python -m tests.e2e.adapterless_engine --model PATH_OR_ID --port PORT
"""

import sys

from serving.engines.hf.model import HfBase, load_base
from serving.engines.openai_server.program import run
from trainers.configs import EngineKind

HfBase.attach = HfBase.detach = HfBase._select = lambda self, *what: None  # type: ignore[method-assign,assignment]

if __name__ == "__main__":
    run(EngineKind.hf, load_base, sys.argv[1:])
