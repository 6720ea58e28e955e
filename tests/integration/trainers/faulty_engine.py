"""The engine hf with a planted fault: with its fourth adapter it keeps the third, refuses it, or hangs.

The first argument is `stale`, `refused` or `hanging`; the others are those of the engine.
"""

import os
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from serving.engines.decoding.adapters import AdapterNotLoadable
from serving.engines.hf.model import HfModelRunner, load_runner
from serving.engines.openai_server.program import run_server
from trainers.configs.engines import EngineKind

LAST_GOOD = 3


def plant(fault: str) -> None:
    """Replace the function that reads an adapter's weights."""
    attach = HfModelRunner.attach
    kept = Path(tempfile.mkdtemp()) / "adapter"
    loaded: list[str] = []

    def attach_wrongly(runner: HfModelRunner, adapter: str, path: str, config: Any) -> None:
        loaded.append(path)
        if len(loaded) <= LAST_GOOD:
            shutil.copytree(path, kept, dirs_exist_ok=True)
        elif fault == "hanging":
            # The adapter is loaded, and then no process does anything any more.
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGSTOP)).start()
        elif fault == "refused":
            raise AdapterNotLoadable(path, "its weights are planted.")
        else:
            path = str(kept)
        attach(runner, adapter, path, config)

    setattr(HfModelRunner, "attach", attach_wrongly)  # noqa: B010  # A method is replaced.


if __name__ == "__main__":
    plant(sys.argv[1])
    run_server(EngineKind.hf, load_runner, sys.argv[2:])
