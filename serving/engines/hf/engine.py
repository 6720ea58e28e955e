"""The engine `hf` as others start it: transformers, on whatever device there is."""

import sys

from serving.engines.engine import LOOK_SECONDS, Engine, EngineRefused, Serve, call
from trainers.configs.engines import EngineKind


class HfEngine(Engine):
    """transformers and PEFT: the fallback that runs everywhere."""

    kind = EngineKind.hf
    default_program = (sys.executable, "-m", "serving.engines.hf")

    def running(self, address: str) -> int | None:
        """Answers being generated or waiting to be, as its health page tells."""
        try:
            health = call(f"{address}/health", None, LOOK_SECONDS)
        except EngineRefused:
            return None
        return int(health["running"]) + int(health["waiting"])

    def command(self, serve: Serve) -> list[str]:
        """Our own server over transformers."""
        options = serve.options
        command = [*self.program, "--model", serve.model, "--served-name", serve.served_name]
        for name, path in serve.adapters.items():
            command += ["--adapter", f"{name}={path}"]
        if options.max_model_len is not None:
            command += ["--max-model-len", str(options.max_model_len)]
        if options.max_batch_size is not None:
            command += ["--max-batch-size", str(options.max_batch_size)]
        command += ["--dtype", options.dtype]
        return [*command, "--host", serve.host, "--port", str(serve.port)]
