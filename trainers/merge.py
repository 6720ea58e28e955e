"""Merge an adapter into its base, prove that the answers stay the same, and write whole weights.

The sum is taken in fp32, whatever the number format that is written. The written folder is loaded again and
compared with the adapted model before it is published, because what is written need not be what was in
memory: an output layer that is tied to the embeddings in the config is read from the embeddings.

    python -m trainers.merge --config merge.yaml --run-dir runs/merged
"""

import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from trainers.configs.base import AdaptedModel
from trainers.configs.references import get_base_model
from trainers.configs.stages.merge import MergeConfig, MergeDtype
from trainers.modeling.load import load_config, load_model, load_tokenizer, template_sha256
from trainers.runtime import run_dir as files
from trainers.runtime.errors import ConfigInvalid, MergeDiffers
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program

DTYPES = {MergeDtype.fp32: torch.float32, MergeDtype.bf16: torch.bfloat16, MergeDtype.fp16: torch.float16}
# Largest difference of a logit that rounding explains, as a share of the largest logit: fp32 keeps 24 bits of
# a number, fp16 11 and bf16 8, and errors add up over the layers.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
QUESTIONS = (
    "How many are 2 and 3?",
    "안녕하세요. Translate this, please.",
    "List three colours.\nThen stop.",
)

logger = logging.getLogger("trainers")


def merge(config: MergeConfig, run_dir: Path, report: EventWriter) -> dict[str, Any]:
    """Publish `model/` and return the result; raises MergeDiffers if the written model answers otherwise."""
    reference = _adapted(config)
    _refuse_few_bits(reference.base)
    tokenizer = load_tokenizer(reference)
    model = load_model(reference, torch.float32).eval()
    assert isinstance(model, PeftModel)
    prompts = [_prompt(tokenizer, question) for question in QUESTIONS]
    dtype = _dtype(config)
    expected = _logits(model, prompts)
    _untie(model)
    merged = model.merge_and_unload(safe_merge=True)
    checks = {"merged": _difference(expected, _logits(merged, prompts), torch.float32, "merged")}
    report.progress(1, 2)

    def fill(folder: Path) -> None:
        merged.to(dtype).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        written = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        checks["written"] = _difference(expected, _logits(written, prompts), dtype, "written")

    files.publish_folder(run_dir / files.MODEL, fill)
    report.progress(2, 2)
    logger.info("Largest differences of a logit, as a share of the largest: %s.", checks)
    return {
        "stage": "merge",
        "model": {
            "path": files.MODEL,
            "kind": "base",
            "base": get_base_model(reference),
            "template_sha256": template_sha256(tokenizer),
        },
        "checks": {"differences": checks, "tolerance": TOLERANCES[dtype], "prompts": len(prompts)},
        "metrics": {"parameters": merged.num_parameters(), "dtype": str(dtype).removeprefix("torch.")},
    }


def plan(config: MergeConfig) -> dict[str, Any]:
    """What would be merged."""
    reference = _adapted(config)
    _refuse_few_bits(reference.base)
    load_tokenizer(reference)
    return {"stage": "merge", "base": reference.base, "adapter": reference.adapter, "dtype": config.dtype}


def _adapted(config: MergeConfig) -> AdaptedModel:
    if not isinstance(config.model, AdaptedModel):
        get_base_model(config.model)
        raise ConfigInvalid(
            f"The model {config.model} has no adapter, so there is nothing to merge.",
            "Name a model that LoRA has tuned; one of which all weights were tuned is whole already.",
        )
    return config.model


def _refuse_few_bits(base: str) -> None:
    """Sums of weights that are stored in few bits would be rounded to as few again."""
    if getattr(load_config(base), "quantization_config", None) is not None:
        raise ConfigInvalid(
            f"The base {base} is stored in fewer bits, into which no adapter can be merged.",
            "Name the base that it was made from, or serve the adapter beside this one.",
        )


def _dtype(config: MergeConfig) -> torch.dtype:
    """The asked format, or that in which the base's own files are."""
    if config.dtype is not MergeDtype.auto:
        return DTYPES[config.dtype]
    on_disk = load_config(get_base_model(config.model)).dtype
    return on_disk if on_disk in TOLERANCES else torch.float32


def _prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> torch.Tensor:
    turns = [{"role": "user", "content": question}]
    encoded = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids_bt: torch.Tensor = encoded["input_ids"]
    return ids_bt


@torch.inference_mode()
def _logits(model: PreTrainedModel | PeftModel, prompts: list[torch.Tensor]) -> list[torch.Tensor]:
    return [model(input_ids=ids_bt).logits.float() for ids_bt in prompts]


def _difference(
    expected: list[torch.Tensor], found: list[torch.Tensor], dtype: torch.dtype, which: str
) -> float:
    """The largest difference as a share of the largest logit; raises MergeDiffers above the tolerance."""
    share = max(
        float((one - other).abs().max() / one.abs().max()) for one, other in zip(expected, found, strict=True)
    )
    if not share <= TOLERANCES[dtype]:
        raise MergeDiffers(
            f"The {which} model does not answer as the adapted one does: a logit differs by {share:.2%} of "
            f"the largest, above the {TOLERANCES[dtype]:.2%} that rounding to {dtype} explains.",
            "Write it in fp32, or serve the adapter beside its base.",
        )
    return round(share, 8)


def _untie(model: PeftModel) -> None:
    """Give the output layer weights of its own, where an adapter changes it or the embeddings alone."""
    base = model.get_base_model()
    head, embeddings = base.get_output_embeddings(), base.get_input_embeddings()
    adapted = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    if not base.config.get_text_config().tie_word_embeddings or not (
        isinstance(head, adapted) or isinstance(embeddings, adapted)
    ):
        return
    owner = getattr(head, "base_layer", head)
    owner.weight = torch.nn.Parameter(owner.weight.detach().clone(), requires_grad=False)
    base.config.get_text_config().tie_word_embeddings = False
    logger.info("The output layer is no longer that of the embeddings: it is written apart.")


if __name__ == "__main__":
    run_program(MergeConfig, merge, plan)
