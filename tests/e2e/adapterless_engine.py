"""The engine `hf`, changed to accept every adapter and use none.

Real engines do so with adapters whose weight names they do not know.

python -m tests.e2e.adapterless_engine --model PATH_OR_ID --port PORT
"""

import sys

from serving.engines.hf.model import HfModelRunner, load_runner
from serving.engines.openai_server.program import run_server
from trainers.configs import EngineKind

HfModelRunner.attach = HfModelRunner.detach = HfModelRunner._select = lambda self, *what: None  # type: ignore[method-assign,assignment]

if __name__ == "__main__":
    run_server(EngineKind.hf, load_runner, sys.argv[1:])
