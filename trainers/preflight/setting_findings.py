"""Findings in the settings of a training stage, held against the model."""

from collections.abc import Iterator

from transformers import PreTrainedConfig

from trainers.configs.training import TrainingConfig
from trainers.preflight.findings import Finding, FindingCode, FindingLevel, new_finding

# Defaults are proven on models of about this width.
USUAL_WIDTH = 4096
TOO_HIGH, TOO_LOW = 20, 1e-3


def check_settings(config: TrainingConfig, model: PreTrainedConfig) -> Iterator[Finding]:
    """A learning rate far from what the kind of tuning and the model's width bear.

    Under Adam the best rate of a layer falls with its width (Yang and others, 2022, arXiv:2203.03466), so a
    narrow model bears more than the default, which is proven on wide ones.
    """
    assert config.learning_rate is not None
    usual = config.default_learning_rates[config.tuning.method]
    width = model.get_text_config().hidden_size
    highest = TOO_HIGH * usual * max(1.0, USUAL_WIDTH / width)
    if TOO_LOW * usual <= config.learning_rate <= highest:
        return
    how = "above" if config.learning_rate > highest else "below"
    bound = highest if how == "above" else TOO_LOW * usual
    yield new_finding(
        FindingCode.learning_rate_unusual,
        FindingLevel.warning,
        f"learning_rate {config.learning_rate:g} is far {how} what {config.tuning.method} tuning of a model "
        f"{width} wide usually bears ({how} {bound:.2g}).",
        f"Begin with {usual:g}, the default of {config.tuning.method} tuning, and change it in small steps.",
    )
