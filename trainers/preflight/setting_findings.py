"""Findings in the settings of a training stage, given the size of the model."""

import time
from collections.abc import Iterator

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from trainers.configs.references import get_base_model
from trainers.configs.training import TrainingConfig
from trainers.modeling.architecture import build_empty_model
from trainers.modeling.load import pick_device
from trainers.modeling.multimodal.architectures import is_multimodal
from trainers.modeling.multimodal.encoders import list_encoders
from trainers.preflight.compute_estimate import (
    FEW_STEPS_HINT,
    TRAINING_SHARE,
    WARNING_SECONDS,
    count_active_parameters,
    describe_duration,
    describe_few_steps,
    estimate_flops,
)
from trainers.preflight.findings import Finding, FindingCode, FindingLevel, new_finding
from trainers.preflight.memory.estimate import model_shape
from trainers.rendering.named_templates import TEMPLATES
from trainers.runtime.errors import join_names

# The width of the models on which the default learning rates were tuned.
REFERENCE_WIDTH = 4096
MAX_FACTOR, MIN_FACTOR = 20, 1e-3
# Any CPU does this within an hour, so that its speed need not be measured.
MIN_MEASURED_FLOPS = 1e13
# The nearest losses that do not depend on the size of the micro-batch, by stage.
SUBSTITUTES = {"dpo": "the loss sigmoid, which is aot with one pair a micro-batch", "grpo": "the loss dapo"}


def check_settings(config: TrainingConfig, model: PreTrainedConfig) -> Iterator[Finding]:
    """Yield the findings in the settings of a stage, given the config of its model."""
    yield from _check_learning_rate(config, model)
    yield from _check_micro_batch(config)
    if is_multimodal(model):
        yield _describe_encoders(config)
    if config.activation_checkpointing == "auto" and model_shape(config.base, config.tuning) is None:
        yield new_finding(
            FindingCode.memory_unknown,
            FindingLevel.warning,
            f"The memory that models of type {model.model_type} need cannot be estimated, so activations are "
            "not recomputed.",
            "Set activation_checkpointing: true if the stage runs out of memory, else false.",
        )


def _describe_encoders(config: TrainingConfig) -> Finding:
    model = build_empty_model(get_base_model(config.base))
    encoders = list_encoders(model)
    size = sum(weight.numel() for name in encoders for weight in model.get_submodule(name).parameters())
    return new_finding(
        FindingCode.encoders_not_trained,
        FindingLevel.info,
        f"Only the text model of this {model.config.model_type} is trained. Its other parts, "
        f"{join_names(encoders, len(encoders))} ({size / 1e9:.2g} billion parameters), are loaded and saved "
        "as they are.",
        "Nothing needs to be done. Rows contain text only.",
    )


def check_steps(config: TrainingConfig, rows: int) -> Iterator[Finding]:
    """Yield a finding if the rows make few optimizer steps."""
    if (found := describe_few_steps(config, rows)) is not None:
        yield new_finding(FindingCode.few_steps, FindingLevel.warning, found, FEW_STEPS_HINT)


def check_cpu_time(
    config: TrainingConfig, model: PreTrainedConfig, rows: int, tokens: int
) -> Iterator[Finding]:
    """Yield a finding if training on this CPU would take hours, by its measured speed."""
    parameters = count_active_parameters(model.to_dict())
    if parameters is None or not rows or pick_device(config.queue).type != "cpu":
        return
    flops = estimate_flops(config, parameters, rows, tokens / rows)
    if flops < MIN_MEASURED_FLOPS:
        return
    rate = TRAINING_SHARE * _measure_flops_per_second()
    if (seconds := flops / rate) < WARNING_SECONDS:
        return
    yield new_finding(
        FindingCode.cpu_training_slow,
        FindingLevel.warning,
        f"Training takes about {describe_duration(seconds)} on this CPU: about {parameters / 1e9:.2g} "
        f"billion parameters at {rate / 1e9:.0f} GFLOP/s.",
        "Run the stage on a host with a GPU (queue cuda), or use a smaller model or fewer rows.",
    )


def _check_learning_rate(config: TrainingConfig, model: PreTrainedConfig) -> Iterator[Finding]:
    """Yield a finding if the learning rate is far from the usual range for the tuning and the model's width.

    Under Adam the best learning rate of a layer falls with its width (Yang et al., 2022, arXiv:2203.03466),
    so a narrow model trains with more than the default, which was tuned on wide ones.
    """
    assert config.learning_rate is not None
    default = config.default_learning_rates[config.tuning.method]
    width = model.get_text_config().hidden_size
    highest = MAX_FACTOR * default * max(1.0, REFERENCE_WIDTH / width)
    if MIN_FACTOR * default <= config.learning_rate <= highest:
        return
    how = "above" if config.learning_rate > highest else "below"
    bound = highest if how == "above" else MIN_FACTOR * default
    yield new_finding(
        FindingCode.learning_rate_unusual,
        FindingLevel.warning,
        f"learning_rate {config.learning_rate:g} is far {how} the usual range of {config.tuning.method} "
        f"tuning for a model of width {width} (the bound is {bound:.2g}).",
        f"Start with {default:g}, the default of {config.tuning.method} tuning, and change it gradually.",
    )


def _check_micro_batch(config: TrainingConfig) -> Iterator[Finding]:
    """Yield a finding if a loss compares the rows of a micro-batch that is smaller than the step."""
    losses = config.micro_batch_losses
    if not losses or config.micro_batch_size == config.batch_size:
        return
    names = " and ".join(losses)
    verb = "compares" if len(losses) == 1 else "compare"
    yield new_finding(
        FindingCode.loss_depends_on_micro_batch,
        FindingLevel.warning,
        f"{names} {verb} the rows of a micro-batch, here {config.micro_batch_size} of the "
        f"{config.batch_size} rows of a step: another micro_batch_size would train another objective.",
        f"Set micro_batch_size to batch_size on one device, or use {SUBSTITUTES[config.stage]}.",
    )


def _measure_flops_per_second() -> float:
    """Return the speed of the fastest of three products of matrices on torch's threads."""
    size = 1024
    matrix = torch.ones(size, size)
    fastest = float("inf")
    for _ in range(3):
        started_at = time.perf_counter()
        matrix @ matrix
        fastest = min(fastest, time.perf_counter() - started_at)
    return 2 * size**3 / fastest


def check_template(
    config: TrainingConfig, tokenizer: PreTrainedTokenizerBase, has_documents: bool
) -> Iterator[Finding]:
    """Yield an information if the rows are rendered in another way than with the base's own template."""
    if has_documents or tokenizer.chat_template is None:
        what = (
            "Rows of `text` are documents: every token carries loss, and the end-of-text token follows"
            if has_documents
            else "The base has no chat template: prompt and completion follow each other as they are"
        )
        yield new_finding(
            FindingCode.rows_are_text,
            FindingLevel.info,
            f"{what}.",
            "Use the model with /v1/completions. To train on conversations, choose a `template`.",
        )
        return
    name = next((name for name, ours in TEMPLATES.items() if ours.text in tokenizer.chat_template), None)
    if name is not None and config.template is None:
        yield new_finding(
            FindingCode.template_of_ours,
            FindingLevel.info,
            f"Conversations are rendered with our template {name}, because the base has none of its own.",
            "The template is published with the model. Choose another with the field `template`.",
        )
