"""Serve a base model and its LoRA adapters with mlx-lm.

    python -m serving.engines.mlx --model PATH_OR_ID --adapter ko-en=PATH --host 127.0.0.1 --port 8001

Exit status: 0 after SIGTERM or SIGINT, 1 if the address is in use, 3 if the model cannot be loaded, 4 if
generation failed.
"""

import sys

from serving.engines.mlx.model import load_runner
from serving.engines.openai_server.program import run_server
from trainers.configs.engines import EngineKind

if __name__ == "__main__":
    run_server(EngineKind.mlx, load_runner, sys.argv[1:])
