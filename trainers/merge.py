"""Merge an adapter into its base, check that the outputs stay the same, and write whole weights.

The sum is computed in fp32, whatever the dtype of the files. Before it is published, the written folder is
loaded again and compared with the adapted model, because files may differ from the model in memory: an output
layer that the config ties to the embeddings is read from the embeddings.

    python -m trainers.merge --config merge.yaml --run-dir runs/merged
"""

import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainers.configs.base import AdaptedModel
from trainers.configs.references import get_base_model
from trainers.configs.stages.merge import MergeConfig, MergeDtype
from trainers.modeling.architecture import check_mergeable
from trainers.modeling.load import load_config, load_model, load_tokenizer, template_sha256
from trainers.modeling.model_source import open_base
from trainers.modeling.multimodal.architectures import auto_class
from trainers.modeling.multimodal.encoders import copy_processor
from trainers.rendering.render import PromptCompletion, tokenize_prompt
from trainers.runtime import run_dir as files
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ConfigInvalid, ProgramError
from trainers.runtime.events import EventWriter
from trainers.runtime.program import run_program

DTYPES = {MergeDtype.fp32: torch.float32, MergeDtype.bf16: torch.bfloat16, MergeDtype.fp16: torch.float16}
# The largest difference of a logit that rounding explains, as a share of the largest logit: fp32 keeps 24
# bits of a number, fp16 11 and bf16 8, and errors add up over the layers.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
PROMPTS = (
    "How many are 2 and 3?",
    "안녕하세요. Translate this, please.",
    "List three colours.\nThen stop.",
)

logger = logging.getLogger("trainers")


class MergeDiffers(ProgramError):
    code = ErrorCode.merge_differs


def run(config: MergeConfig, run_dir: Path, events: EventWriter) -> dict[str, Any]:
    """Publish `model/` and return the result; raises MergeDiffers if the merged outputs differ."""
    reference = _require_adapter(config)
    tokenizer = load_tokenizer(reference)
    model = load_model(reference, torch.float32).eval()
    assert isinstance(model, PeftModel)
    prompts_bt = [_tokenize(tokenizer, prompt) for prompt in PROMPTS]
    dtype = _resolve_dtype(config)
    expected_btv = _compute_logits(model, prompts_bt)
    _untie_output_layer(model)
    merged = model.merge_and_unload(safe_merge=True)
    _retie_output_layer(merged)
    differences = {
        "merged": _check_logits(expected_btv, _compute_logits(merged, prompts_bt), torch.float32, "merged")
    }
    events.write_progress(1, 2)

    def fill(folder: Path) -> None:
        merged.to(dtype).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        copy_processor(Path(open_base(get_base_model(reference))), folder)
        written = auto_class(merged.config).from_pretrained(folder, dtype=torch.float32).eval()
        differences["written"] = _check_logits(
            expected_btv, _compute_logits(written, prompts_bt), dtype, "written"
        )

    files.publish_folder(run_dir / files.MODEL, fill)
    events.write_progress(2, 2)
    logger.info("The largest differences of a logit, as a share of the largest logit: %s.", differences)
    return {
        "stage": "merge",
        "model": {
            "path": files.MODEL,
            "kind": "base",
            "base": get_base_model(reference),
            "template_sha256": template_sha256(tokenizer),
        },
        "checks": {"differences": differences, "tolerance": TOLERANCES[dtype], "prompts": len(PROMPTS)},
        "metrics": {"parameters": merged.num_parameters(), "dtype": str(dtype).removeprefix("torch.")},
    }


def plan(config: MergeConfig) -> dict[str, Any]:
    """Return the base, the adapter and the dtype of the merge."""
    reference = _require_adapter(config)
    load_tokenizer(reference)
    return {"stage": "merge", "base": reference.base, "adapter": reference.adapter, "dtype": config.dtype}


def _require_adapter(config: MergeConfig) -> AdaptedModel:
    """Return the adapter and its base; raises ConfigInvalid without an adapter, or for a quantized base."""
    if not isinstance(config.model, AdaptedModel):
        get_base_model(config.model)
        raise ConfigInvalid(
            f"The model {config.model} has no adapter, so there is nothing to merge.",
            "Use a model that was tuned with LoRA; one with full tuning already has whole weights.",
        )
    check_mergeable(config.model.base)
    return config.model


def _resolve_dtype(config: MergeConfig) -> torch.dtype:
    """Return the configured dtype, or that of the base's files."""
    if config.dtype is not MergeDtype.auto:
        return DTYPES[config.dtype]
    on_disk = load_config(get_base_model(config.model)).dtype
    return on_disk if on_disk in TOLERANCES else torch.float32


def _tokenize(tokenizer: PreTrainedTokenizerBase, prompt: str) -> torch.Tensor:
    pair = PromptCompletion(1, [{"role": "user", "content": prompt}], [], None)
    return torch.tensor([tokenize_prompt(pair, tokenizer)])


def _compute_logits(model: PreTrainedModel | PeftModel, prompts_bt: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the logits of each prompt, (1, tokens, vocabulary)."""
    with torch.inference_mode():
        return [model(input_ids=ids_bt).logits.float() for ids_bt in prompts_bt]


def _check_logits(
    expected_btv: list[torch.Tensor], actual_btv: list[torch.Tensor], dtype: torch.dtype, which: str
) -> float:
    """Return the largest difference as a share of the largest logit; raises MergeDiffers."""
    share = max(
        float((expected - actual).abs().max() / expected.abs().max())
        for expected, actual in zip(expected_btv, actual_btv, strict=True)
    )
    # Not `share > tolerance`: a NaN must fail too.
    if not share <= TOLERANCES[dtype]:
        raise MergeDiffers(
            f"The logits of the {which} model differ from the adapted model's by {share:.2%} of the largest; "
            f"rounding to {dtype} explains {TOLERANCES[dtype]:.2%}.",
            "Merge with dtype fp32, or serve the adapter on its base.",
        )
    return round(share, 8)


def _untie_output_layer(model: PeftModel) -> None:
    """Copy the output layer's weights if they are tied and an adapter changes one of the two layers."""
    base = model.get_base_model()
    head, embeddings = base.get_output_embeddings(), base.get_input_embeddings()
    adapted = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    if not base.config.get_text_config().tie_word_embeddings or not (
        isinstance(head, adapted) or isinstance(embeddings, adapted)
    ):
        return
    # The wrappers of PEFT show the weights that they were trained to; those of the base are within them.
    owner = head.original_module if isinstance(head, AuxiliaryTrainingWrapper) else head
    owner = getattr(owner, "base_layer", owner)
    owner.weight = torch.nn.Parameter(owner.weight.detach().clone(), requires_grad=False)
    base.config.get_text_config().tie_word_embeddings = False
    logger.info("The adapter unties the output layer from the embeddings: both are written.")


def _retie_output_layer(merged: PreTrainedModel) -> None:
    """Restore the tie if the adapter has trained one matrix for both layers: only one would be written."""
    head, embeddings = merged.get_output_embeddings(), merged.get_input_embeddings()
    if head is not None and head.weight.data_ptr() == embeddings.weight.data_ptr():
        merged.config.get_text_config().tie_word_embeddings = True


if __name__ == "__main__":
    run_program(MergeConfig, run, plan)
