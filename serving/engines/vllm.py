"""The engine `vllm`: vLLM's own server, in an environment of its own."""

import json
import re

from serving.engines.engine import (
    LOAD_TIMEOUT_SECONDS,
    Engine,
    EngineConfig,
    EngineRequestFailed,
    send_request,
)
from serving.engines.tokenizers import find_tool_call_parser, shared_tokenizer
from serving.http.addresses import is_loopback
from trainers.configs.engines import (
    EngineKind,
    EngineOptions,
    EngineQuantization,
    EngineTask,
    ToolCallParser,
    check_quantization,
)

# awq and gptq are missing: vLLM reads them from the weights' config and picks the fastest kernel itself.
QUANTIZATIONS = {EngineQuantization.fp8: "fp8"}
# vLLM's default differs between its versions.
DEFAULT_MEMORY_SHARE = 0.9
# Other names are vLLM's own. Qwen's JSON calls have the Hermes format.
TOOL_CALL_PARSERS = {
    ToolCallParser.qwen: "hermes",
    ToolCallParser.llama3: "llama3_json",
    ToolCallParser.phi4_mini: "phi4_mini_json",
}
# vLLM rejects `disable_any_whitespace` unless the backend is named.
COMPACT_JSON = json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})
DRAIN_SECONDS = 5
# A busy server responds slowly, and must not be mistaken for an idle one.
METRICS_SECONDS = 10.0
# One line for each engine core.
REQUEST_COUNT = re.compile(r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} (\S+)$", re.MULTILINE)


class VllmEngine(Engine):
    """vLLM's server; run with version 0.32, and its flags read in 0.33."""

    kind = EngineKind.vllm
    default_program = ("vllm", "serve")
    auto_dtype_is_16_bit = True
    # It drains, then stops its engine core and workers one after the other.
    stop_seconds = 30.0

    def command(self, config: EngineConfig) -> list[str]:
        """Return the command; raise ValueError for options that cannot be used."""
        if config.options.sleep_mode and not is_loopback(config.host):
            raise ValueError(
                "sleep_mode enables vLLM's development endpoints, which can run code. The host is "
                f"{config.host}; use a loopback address."
            )
        return [
            *self.program,
            *("--model", config.model, "--served-model-name", config.served_name),
            *("--host", config.host, "--port", str(config.port)),
            *("--shutdown-timeout", str(DRAIN_SECONDS)),
            *_option_flags(config.options),
            *(_embedding_flags(config) if config.task is EngineTask.embed else _generation_flags(config)),
        ]

    def environment(self, config: EngineConfig) -> dict[str, str]:
        """Allow adapters at run time; disable telemetry and the hub."""
        variables = super().environment(config) | {
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_DO_NOT_TRACK": "1",
            "VLLM_HOST_IP": "127.0.0.1",
            # Read on CPUs only, where vLLM would otherwise take a share of the host's whole memory.
            "VLLM_CPU_KVCACHE_SPACE": str(config.options.cpu_cache_gib),
        }
        if config.options.sleep_mode:
            variables["VLLM_SERVER_DEV_MODE"] = "1"
        return variables

    def count_requests(self, address: str) -> int | None:
        """Return the number of running and waiting requests in its Prometheus metrics."""
        try:
            metrics = send_request(f"{address}/metrics", None, METRICS_SECONDS)
        except EngineRequestFailed:
            return None
        counts = REQUEST_COUNT.findall(metrics) if isinstance(metrics, str) else []
        return sum(int(float(count)) for count in counts) if counts else None

    def sleep(self, address: str) -> None:
        """Move the weights to the host's memory and drop the KV cache. Raises EngineRequestFailed."""
        send_request(f"{address}/sleep?level=1", {}, LOAD_TIMEOUT_SECONDS)

    def wake_up(self, address: str) -> None:
        """Undo `sleep`. Raises EngineRequestFailed."""
        send_request(f"{address}/wake_up", {}, LOAD_TIMEOUT_SECONDS)


def _option_flags(options: EngineOptions) -> list[str]:
    # A deployment that was stored by an earlier version may have int8.
    check_quantization(EngineKind.vllm, options)
    flags = ["--dtype", options.dtype, "--tensor-parallel-size", str(options.tensor_parallel)]
    flags += ["--gpu-memory-utilization", str(options.memory_share or DEFAULT_MEMORY_SHARE)]
    if not options.prefix_caching:
        flags += ["--no-enable-prefix-caching"]
    if options.max_model_len is not None:
        flags += ["--max-model-len", str(options.max_model_len)]
    if options.max_batch_size is not None:
        flags += ["--max-num-seqs", str(options.max_batch_size)]
    if options.quantization in QUANTIZATIONS:
        flags += ["--quantization", QUANTIZATIONS[options.quantization]]
    return [*flags, "--enable-sleep-mode"] if options.sleep_mode else flags


def _embedding_flags(config: EngineConfig) -> list[str]:
    """Return the flags of an embedding model; a pooling implies a normalization."""
    flags = ["--runner", "pooling", "--convert", "embed"]
    if config.pooling is not None:
        flags += ["--pooler-config", json.dumps({"pooling_type": config.pooling.upper()})]
    return flags


def _generation_flags(config: EngineConfig) -> list[str]:
    options = config.options
    # The sampling defaults of generation_config.json (such as a repetition penalty) would change even greedy
    # completions. The end tokens of that file are read in any case.
    flags = ["--generation-config", "vllm"]
    if options.prefix_caching:
        # Encoders have no cache, and do not start with this flag.
        flags += ["--enable-prefix-caching"]
    # Without these flags, vLLM rejects requests with tools.
    if (family := options.tool_call_parser or find_tool_call_parser(config)) is not None:
        flags += ["--enable-auto-tool-choice", "--tool-call-parser", TOOL_CALL_PARSERS.get(family, family)]
        # Arguments follow the schemas of all functions, as on hf and mlx, not of those with `strict` alone.
        flags += ["--tool-strict-level", "parameter"]
    if options.compact_json:
        flags += ["--structured-outputs-config", COMPACT_JSON]
    if options.max_adapters:
        # Adapters may be loaded later, too.
        flags += ["--enable-lora", "--max-loras", str(options.max_adapters)]
        flags += ["--max-cpu-loras", str(options.max_adapters)]
        flags += ["--max-lora-rank", str(_supported_rank(options))]
    if config.adapters:
        flags += ["--lora-modules", *(f"{name}={path}" for name, path in config.adapters.items())]
    tokenizer = shared_tokenizer(config)
    return [*flags, "--tokenizer", tokenizer] if tokenizer else flags


def _supported_rank(options: EngineOptions) -> int:
    """Round a rank up to one that vLLM supports."""
    return next(rank for rank in (1, 8, 16, 32, 64, 128, 256, 320, 512) if rank >= options.max_adapter_rank)
