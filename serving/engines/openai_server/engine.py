"""The engines that are programs of this project, as others start them."""

from serving.engines.engine import (
    HEALTH_TIMEOUT_SECONDS,
    Engine,
    EngineConfig,
    EngineRequestFailed,
    send_request,
)

ARGUMENTS = (
    "max_model_len",
    "dtype",
    "quantization",
    "max_batch_size",
    "max_adapters",
    "max_adapter_rank",
)


class BuiltinEngine(Engine):
    """One of our own servers; both take the same arguments."""

    def command(self, serve: EngineConfig) -> list[str]:
        """What of the options it knows; what is not set is left to the program."""
        command = [*self.program, "--model", serve.model, "--served-name", serve.served_name]
        for name, path in serve.adapters.items():
            command += ["--adapter", f"{name}={path}"]
        for option in ARGUMENTS:
            value = getattr(serve.options, option)
            if value is not None:
                command += [f"--{option.replace('_', '-')}", str(value)]
        return [*command, "--host", serve.host, "--port", str(serve.port)]

    def running(self, address: str) -> int | None:
        """Answers being generated or waiting to be, as its health page tells."""
        try:
            health = send_request(f"{address}/health", None, HEALTH_TIMEOUT_SECONDS)
        except EngineRequestFailed:
            return None
        return int(health["running"]) + int(health["waiting"])
