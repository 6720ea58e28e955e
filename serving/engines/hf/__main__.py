"""Serve a base model and its LoRA adapters, or an embedding model, with transformers.

    python -m serving.engines.hf --model PATH_OR_ID --adapter ko-en=PATH --host 127.0.0.1 --port 8001
    python -m serving.engines.hf --model PATH_OR_ID --task embed --port 8001

Exit status: 0 after SIGTERM or SIGINT, 1 if the address is in use, 3 if the model cannot be loaded, 4 if
generation failed.
"""

import sys

from serving.engines.embedding.server import prepare_embeddings
from serving.engines.hf.model import load_runner
from serving.engines.openai_server.program import run_server
from trainers.configs.engines import EngineKind

if __name__ == "__main__":
    run_server(EngineKind.hf, load_runner, sys.argv[1:], prepare_embeddings)
