"""Config of the `sft` stage: supervised fine-tuning with LoRA or of all weights."""

from typing import ClassVar, Literal

from pydantic import Field

from trainers.configs.backends.choice import PortableTrainingConfig
from trainers.configs.training import MaxLength


class SftConfig(PortableTrainingConfig):
    """Supervised fine-tuning on the completions of a dataset; prompts carry no loss.

    The default learning rate is 2e-4 for LoRA and 2e-5 for full fine-tuning.
    """

    default_learning_rates: ClassVar[dict[str, float]] = {"lora": 2e-4, "full": 2e-5}

    stage: Literal["sft"] = Field("sft", description="Kind of the stage.")
    max_length: MaxLength = 1024
    packing: bool = Field(
        False,
        description=(
            "Fill sequences of max_length tokens with several rows, which cannot attend to each other; "
            "batch_size then counts sequences. Useful if the rows of a micro-batch are too short to fill the "
            "GPU."
        ),
    )
    neftune_alpha: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Scale of the noise on embeddings during training (arXiv:2310.05914), usually 5; null is "
        "none.",
    )
