"""The base class of the engines whose server is a program of this project."""

from serving.engines.engine import (
    HEALTH_TIMEOUT_SECONDS,
    Engine,
    EngineConfig,
    EngineRequestFailed,
    send_request,
)
from trainers.configs.engines import EngineTask

ARGUMENTS = (
    "max_model_len",
    "dtype",
    "quantization",
    "max_batch_size",
    "max_adapters",
    "max_adapter_rank",
    "tool_call_parser",
    "compact_json",
)


class BuiltinEngine(Engine):
    """One of our own servers, which all take the same arguments."""

    def command(self, config: EngineConfig) -> list[str]:
        """Return the command, without the options that are unset or that our servers lack."""
        command = [*self.program, "--model", config.model, "--served-name", config.served_name]
        for name, path in config.adapters.items():
            command += ["--adapter", f"{name}={path}"]
        for option in ARGUMENTS:
            value, flag = getattr(config.options, option), option.replace("_", "-")
            if isinstance(value, bool):
                command.append(f"--{flag}" if value else f"--no-{flag}")
            elif value is not None:
                command += [f"--{flag}", str(value)]
        if config.task is not EngineTask.generate:
            command += ["--task", config.task]
        if config.pooling is not None:
            command += ["--pooling", config.pooling]
        return [*command, "--host", config.host, "--port", str(config.port)]

    def count_requests(self, address: str) -> int | None:
        """Return the number of running and waiting sequences, and of prompts that are being tokenized."""
        try:
            health = send_request(f"{address}/health", None, HEALTH_TIMEOUT_SECONDS)
        except EngineRequestFailed:
            return None
        return sum(int(health[count]) for count in ("running", "waiting", "tokenizing"))
