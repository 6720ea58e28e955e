"""The teacher of a distillation: a frozen model with the tokenizer of the student."""

import logging
from collections.abc import Sequence

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainers.configs.references import get_base_model
from trainers.modeling.load import ModelReference, load_config, load_model, load_tokenizer, template_sha256
from trainers.rendering.render import PromptCompletion
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError

# The same vocabulary can be applied by other rules, which show in any longer text.
MAX_COMPARED_ROWS = 100

logger = logging.getLogger("trainers")


class TeacherMismatch(ProgramError):
    """The teacher's distribution is over other tokens than the student's."""

    code = ErrorCode.teacher_mismatch


def check_teacher(
    teacher: ModelReference,
    base: ModelReference,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[PromptCompletion],
) -> bool:
    """Return whether the teacher has the student's chat template.

    Raises TeacherMismatch if a token of the student is another one, or none, for the teacher, or if it
    divides one of the first prompts into other tokens.
    """
    own = load_tokenizer(teacher)
    difference = _find_vocabulary_difference(tokenizer, own) or _find_text_difference(tokenizer, own, prompts)
    if difference is not None:
        raise TeacherMismatch(
            f"The teacher {teacher_name(teacher)} has another tokenizer than the student: {difference}.",
            "Distillation compares the probabilities of the same tokens: choose a teacher of the student's "
            "family, or train on the teacher's completions with the stages generate and sft.",
        )
    sizes = {name: _embedding_count(model) for name, model in (("teacher", teacher), ("student", base))}
    if sizes["teacher"] < sizes["student"]:
        raise TeacherMismatch(
            f"The teacher {teacher_name(teacher)} has {sizes['teacher']} embeddings, but the student has "
            f"{sizes['student']}: the teacher has no probability for the rest of the student's tokens.",
            "Choose a teacher with at least as many embeddings.",
        )
    return template_sha256(own) == template_sha256(tokenizer)


def load_teacher(
    teacher: ModelReference, dtype: torch.dtype, attention: str, vocabulary: int
) -> PreTrainedModel | PeftModel:
    """Load the teacher on the CPU, frozen, with as many embeddings as the student.

    Models of one family pad their embeddings to different sizes, such as the 0.5 and 7 billion parameters of
    Qwen 2.5. No text contains a token of the padding, so the rest of a larger teacher is removed.
    """
    model = load_model(teacher, dtype, attention=attention).requires_grad_(False).eval()
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise TeacherMismatch(
            f"The adapter of the teacher {teacher_name(teacher)} changes lm_head, which TRL's loss reads "
            "without adapters.",
            "Merge the adapter into its base with the stage merge, and name the merged model.",
        )
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if (size := inner.config.get_text_config().vocab_size) > vocabulary:
        logger.info("The teacher has %d embeddings, of which the student's %d are kept.", size, vocabulary)
        inner.resize_token_embeddings(vocabulary)
        inner.requires_grad_(False)
    return model


def teacher_name(teacher: ModelReference) -> str:
    """Return the folder or hub id of the teacher, and its adapter."""
    adapter = getattr(teacher, "adapter", None)
    return get_base_model(teacher) + (f" with the adapter {adapter}" if adapter else "")


def _embedding_count(model: ModelReference) -> int:
    return int(load_config(get_base_model(model)).get_text_config().vocab_size)


def _find_vocabulary_difference(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase
) -> str | None:
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    different = sorted(token for token, number in ours.items() if theirs.get(token) != number)
    if different:
        named = ", ".join(f"{token!r} is {ours[token]} and {theirs.get(token)}" for token in different[:3])
        return f"{len(different)} of {len(ours)} tokens have another number or none, such as {named}"
    shared = set(ours.values())
    clash = next((token for token, number in theirs.items() if token not in ours and number in shared), None)
    return None if clash is None else f"its token {clash!r} has the number of another one"


def _find_text_difference(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, prompts: Sequence[PromptCompletion]
) -> str | None:
    for pair in prompts[:MAX_COMPARED_ROWS]:
        for message in [*pair.prompt, *pair.completion]:
            text = message["content"]
            ours, theirs = (
                tokenizer(text, add_special_tokens=False)["input_ids"] for tokenizer in (student, teacher)
            )
            if ours != theirs:
                return f"it divides row {pair.row} into other tokens"
    return None
