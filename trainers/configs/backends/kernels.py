"""Where the kernels come from that replace operations of a model's layers."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from trainers.configs.base import Config


class KernelPackage(StrEnum):
    """A package of kernels that the worker's environment has."""

    none = "none"
    liger = "liger"  # Triton kernels of liger-kernel.


class KernelFolder(Config):
    """Kernels in a folder of the host, which the operator allows by TUNESMITH_KERNEL_ROOTS."""

    folder: str = Field(
        min_length=1,
        max_length=1000,
        description="Absolute path of a Python package on the worker with a module `layers`: classes "
        "`RMSNorm` and `SwiGLUMLP`, whose `forward` replaces that of a model's layers, and a function "
        "`apply_rotary_pos_emb`, or some of these. It must be under a folder of TUNESMITH_KERNEL_ROOTS. "
        "Kernels of a hub are downloaded there by the operator, at a revision of their choice.",
    )


KernelField = Annotated[
    KernelPackage | KernelFolder,
    Field(
        description="Kernels in place of the model's own norms, SwiGLU and rotary positions: `liger` of the "
        "installed package liger-kernel, for NVIDIA GPUs, or a folder of kernels. Before training they are "
        "compared with what they replace. They are code, so none is ever downloaded."
    ),
]
