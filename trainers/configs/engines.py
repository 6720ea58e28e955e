"""Engines as a person may ask for them: which program generates text, and its options, an allow-list."""

from collections.abc import Collection
from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, model_validator

from trainers.configs.base import Config


class EngineKind(StrEnum):
    """The program that generates text."""

    vllm = "vllm"
    sglang = "sglang"
    hf = "hf"
    mlx = "mlx"

    @property
    def one_template(self) -> bool:
        """Whether every name of one engine is rendered with one chat template, so that models which were
        trained with different ones cannot share it."""
        return self in {EngineKind.vllm, EngineKind.sglang}


class EngineQuantization(StrEnum):
    """How the base's weights are kept in fewer bits."""

    int4 = "int4"
    int8 = "int8"
    fp8 = "fp8"
    awq = "awq"
    gptq = "gptq"


class ToolCallParser(StrEnum):
    """Family of models whose way of writing the calls of tools is read; engines have names of their own."""

    qwen = "qwen"
    qwen3_coder = "qwen3_coder"
    llama3 = "llama3"
    mistral = "mistral"
    gemma4 = "gemma4"
    phi4_mini = "phi4_mini"


SUPPORTED_QUANTIZATIONS = {
    EngineKind.vllm: {
        EngineQuantization.fp8,
        EngineQuantization.awq,
        EngineQuantization.gptq,
        EngineQuantization.int8,
    },
    EngineKind.sglang: {
        EngineQuantization.fp8,
        EngineQuantization.awq,
        EngineQuantization.gptq,
        EngineQuantization.int8,
    },
    EngineKind.hf: {EngineQuantization.int4, EngineQuantization.int8},
    EngineKind.mlx: {EngineQuantization.int4, EngineQuantization.int8},
}
# hf and mlx read no calls in what a model writes: they refuse requests with tools.
SUPPORTED_TOOL_CALL_PARSERS = {
    EngineKind.vllm: set(ToolCallParser),
    EngineKind.sglang: set(ToolCallParser) - {ToolCallParser.phi4_mini},
}


class EngineOptions(Config):
    """What may be set of an engine; what an engine knows by another name is translated for it."""

    max_model_len: int | None = Field(
        None, ge=16, description="Tokens of prompt and answer together; by default what the model knows."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: EngineQuantization | None = Field(
        None, description="int4 and int8 quantise on loading; awq and gptq say how the weights are stored."
    )
    tensor_parallel: int = Field(1, ge=1, le=64, description="GPUs that share one copy of the model.")
    memory_share: float = Field(
        0.9, gt=0, le=1, description="Share of a GPU's memory that vllm and sglang may take."
    )
    cpu_cache_gib: int = Field(
        2, ge=1, le=1024, description="KV cache of vllm on a CPU in GiB, where memory_share is not heeded."
    )
    prefix_caching: bool = Field(True, description="Keep the KV cache of prompts that begin alike.")
    max_batch_size: int | None = Field(None, ge=1, le=4096, description="Answers decoded together.")
    max_adapters: int = Field(8, ge=1, le=256, description="Adapters that the engine holds at once.")
    max_adapter_rank: int = Field(64, ge=1, le=512, description="Largest LoRA rank that may be loaded.")
    tool_call_parser: ToolCallParser | None = Field(
        None, description="Family whose tool calls vllm and sglang read; vllm refuses tools without it."
    )
    compact_json: bool = Field(
        True,
        description="Allow vllm and sglang no white space between the parts of JSON that a request asks for, "
        "since a small model may go on with it until it is cut off.",
    )
    sleep_mode: bool = Field(
        False, description="Let vllm free its GPU while idle; opens its development paths on loopback."
    )


class EngineChoice(Config):
    """An engine and its options, for configs that start one."""

    engine: EngineKind = EngineKind.hf
    options: EngineOptions = EngineOptions()

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        self._must_be_known("quantization", self.options.quantization, SUPPORTED_QUANTIZATIONS[self.engine])
        if self.options.tool_call_parser is not None and self.engine not in SUPPORTED_TOOL_CALL_PARSERS:
            raise ValueError(f"options.tool_call_parser is for vllm and sglang; {self.engine} refuses tools")
        self._must_be_known(
            "tool_call_parser",
            self.options.tool_call_parser,
            SUPPORTED_TOOL_CALL_PARSERS.get(self.engine, set()),
        )
        if self.options.tensor_parallel > 1 and self.engine in (EngineKind.hf, EngineKind.mlx):
            raise ValueError(
                f"options.tensor_parallel is for vllm and sglang; {self.engine} serves from one device"
            )
        if self.options.sleep_mode and self.engine is not EngineKind.vllm:
            raise ValueError(f"options.sleep_mode is for vllm; {self.engine} has none")
        return self

    def _must_be_known(self, option: str, value: StrEnum | None, known: Collection[StrEnum]) -> None:
        if value is not None and value not in known:
            names = ", ".join(sorted(known))
            raise ValueError(f"options.{option} '{value}' is unknown to {self.engine}; choose of: {names}")
