"""Findings in the settings of a training stage, given the size of the model."""

from collections.abc import Iterator

from transformers import PreTrainedConfig

from trainers.configs.training import TrainingConfig
from trainers.preflight.findings import Finding, FindingCode, FindingLevel, new_finding

# The width of the models on which the default learning rates were tuned.
REFERENCE_WIDTH = 4096
MAX_FACTOR, MIN_FACTOR = 20, 1e-3


def check_settings(config: TrainingConfig, model: PreTrainedConfig) -> Iterator[Finding]:
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
