"""The engine `vllm`: the real program, in an environment of its own."""

import json
import re
from pathlib import Path

from serving.engines.engine import (
    LOAD_TIMEOUT_SECONDS,
    Engine,
    EngineConfig,
    EngineRequestFailed,
    send_request,
)
from serving.engines.tokenizers import shared_tokenizer
from serving.http.addresses import is_loopback
from trainers.configs.engines import EngineKind, EngineOptions, EngineQuantization, ToolCallParser

# awq and gptq are missing: vLLM reads them in the weights' own config and picks the fastest kernel by itself.
QUANTIZATIONS = {
    EngineQuantization.int8: "int8_per_channel_weight_only",
    EngineQuantization.fp8: "fp8",
}
# `hermes` is what vLLM's own name for Qwen's JSON calls stands for.
TOOL_CALL_PARSERS = {
    ToolCallParser.qwen: "hermes",
    ToolCallParser.qwen3_coder: "qwen3_coder",
    ToolCallParser.llama3: "llama3_json",
    ToolCallParser.mistral: "mistral",
    ToolCallParser.gemma4: "gemma4",
    ToolCallParser.phi4_mini: "phi4_mini_json",
}
# vLLM refuses to do without white space unless the backend is named.
COMPACT_JSON = json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})
DRAIN_SECONDS = 5
# A server that is busy with answers is slow to tell of them, and must not be taken for an idle one.
METRICS_SECONDS = 10.0
# One line for each engine core.
RUNNING = re.compile(r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} (\S+)$", re.MULTILINE)


class VllmEngine(Engine):
    """vLLM's own server; written against 0.32."""

    kind = EngineKind.vllm
    default_program = ("vllm", "serve")
    auto_halves = True
    # It drains, then ends its engine core and workers one after the other.
    stop_seconds = 30.0

    def command(self, serve: EngineConfig) -> list[str]:
        """Raises ValueError for adapters of different templates, and for sleep mode on an open address."""
        if serve.options.sleep_mode and not is_loopback(serve.host):
            raise ValueError(
                f"sleep_mode opens vLLM's development paths, so {serve.host} must be a loopback address."
            )
        return [
            *self.program,
            *("--model", serve.model, "--served-model-name", serve.served_name),
            *("--host", serve.host, "--port", str(serve.port)),
            # The sampling defaults of generation_config.json (a repetition penalty, say) would change even
            # greedy answers; its end tokens are read all the same.
            *("--generation-config", "vllm"),
            *("--shutdown-timeout", str(DRAIN_SECONDS)),
            *_flags(serve.options),
            *_adapters(serve),
        ]

    def environment(self, serve: EngineConfig) -> dict[str, str]:
        """Adapters at run time, no telemetry, its processes on loopback, and no hub for a local folder."""
        variables = {
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_DO_NOT_TRACK": "1",
            "VLLM_HOST_IP": "127.0.0.1",
            # Read on CPUs only, where vLLM would take its share of all of the host's memory.
            "VLLM_CPU_KVCACHE_SPACE": str(serve.options.cpu_cache_gib),
        }
        if serve.options.sleep_mode:
            variables["VLLM_SERVER_DEV_MODE"] = "1"
        if Path(serve.model).is_dir():
            variables["HF_HUB_OFFLINE"] = "1"
        return variables

    def running(self, address: str) -> int | None:
        """Answers being generated or waiting to be, as its metrics tell."""
        try:
            told = send_request(f"{address}/metrics", None, METRICS_SECONDS)
        except EngineRequestFailed:
            return None
        counts = RUNNING.findall(told) if isinstance(told, str) else []
        return sum(int(float(count)) for count in counts) if counts else None

    def sleep(self, address: str) -> None:
        """Move the weights to the host's memory and drop the KV cache; raises EngineRefused."""
        send_request(f"{address}/sleep?level=1", {}, LOAD_TIMEOUT_SECONDS)

    def wake_up(self, address: str) -> None:
        """Undo `sleep`; raises EngineRefused."""
        send_request(f"{address}/wake_up", {}, LOAD_TIMEOUT_SECONDS)


def _flags(options: EngineOptions) -> list[str]:
    flags = ["--dtype", options.dtype, "--tensor-parallel-size", str(options.tensor_parallel)]
    flags += ["--gpu-memory-utilization", str(options.memory_share)]
    flags += ["--enable-prefix-caching" if options.prefix_caching else "--no-enable-prefix-caching"]
    if options.max_model_len is not None:
        flags += ["--max-model-len", str(options.max_model_len)]
    if options.max_batch_size is not None:
        flags += ["--max-num-seqs", str(options.max_batch_size)]
    if options.quantization in QUANTIZATIONS:
        flags += ["--quantization", QUANTIZATIONS[options.quantization]]
    if options.tool_call_parser is not None:
        parser = TOOL_CALL_PARSERS[options.tool_call_parser]
        flags += ["--enable-auto-tool-choice", "--tool-call-parser", parser]
    if options.compact_json:
        flags += ["--structured-outputs-config", COMPACT_JSON]
    return [*flags, "--enable-sleep-mode"] if options.sleep_mode else flags


def _adapters(serve: EngineConfig) -> list[str]:
    """LoRA is always on, since adapters may come later."""
    options = serve.options
    flags = ["--enable-lora", "--max-loras", str(options.max_adapters)]
    flags += ["--max-cpu-loras", str(options.max_adapters), "--max-lora-rank", str(_rank(options))]
    if serve.adapters:
        flags += ["--lora-modules", *(f"{name}={path}" for name, path in serve.adapters.items())]
    tokenizer = shared_tokenizer(serve)
    return [*flags, "--tokenizer", tokenizer] if tokenizer else flags


def _rank(options: EngineOptions) -> int:
    """vLLM knows some ranks only: the next that holds the asked one."""
    return next(rank for rank in (1, 8, 16, 32, 64, 128, 256, 320, 512) if rank >= options.max_adapter_rank)
