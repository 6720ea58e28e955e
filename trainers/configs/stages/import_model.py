"""Config of the `import` stage: register a model that was made elsewhere."""

from typing import Literal

from pydantic import Field

from trainers.configs.base import ModelRef, StageConfig


class ImportConfig(StageConfig):
    """Copy an adapter or whole weights from a folder or the hub into the registry, once they are verified.

    An adapter must fit its base, which its `adapter_config.json` names. The location of the base is resolved
    once, on the hub to a commit. The model can then be deployed, merged and evaluated like one trained here.
    """

    stage: Literal["import"] = Field("import", description="Kind of the stage.")
    model: ModelRef = Field(
        description="The model: a hub id (`org/name@commit` with a revision), or a folder under an allowed "
        "root."
    )
    base: ModelRef | None = Field(
        None,
        description="Base of an adapter, in place of the one that its `adapter_config.json` names, for "
        "example if that is a folder of another machine.",
    )
