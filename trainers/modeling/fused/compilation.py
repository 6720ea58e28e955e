"""Compilation of a model's decoder layers by torch.

Each layer is compiled in place, so that weights keep their names and checkpoints are those of any other run.
Layers of one class share their compiled code: a model of 80 layers compiles one.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Final

import torch
from peft import PeftModel
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch._inductor.runtime.cache_dir_utils import default_cache_dir
from torch.utils._triton import has_triton
from transformers.modeling_layers import GradientCheckpointingLayer

from trainers.modeling.load import ModelUnsupported
from trainers.runtime.errors import DeviceUnavailable, first_line

# Variants of the code of a layer: with and without a gradient of the input, a mask, recomputation, gradients
# at all, several rows, and an adapter switched on. Torch's limit of 8 is for functions of one kind.
MAX_VARIANTS: Final = 64
LIMIT_LOGGER: Final = "torch._dynamo.convert_frame"
LIMIT_MARK: Final = "torch._dynamo hit config."
CACHE_VARIABLE: Final = "TORCHINDUCTOR_CACHE_DIR"
C_COMPILERS: Final = ("gcc", "clang", "cc")
DISABLE_HINT: Final = "Set compile to false"


class CompilationFailed(DeviceUnavailable):
    """Torch could not compile a layer on this host."""


def check_compiler(device: torch.device) -> None:
    """Raise DeviceUnavailable if torch lacks on this host what it compiles with."""
    if device.type == "cpu":
        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise DeviceUnavailable(
                "compile is true, but torch finds no C++ compiler on this host.",
                f"{DISABLE_HINT}, or install g++, or name a compiler in the worker's environment as CXX.",
            ) from error
        return
    if not has_triton():
        raise DeviceUnavailable(
            "compile is true, but Triton, with which torch compiles for GPUs, is not installed or does not "
            f"support the GPU {torch.cuda.get_device_name(device)}.",
            f"{DISABLE_HINT}, or install torch with Triton on a host whose GPU has compute capability 7.0.",
        )
    if not os.environ.get("CC") and not any(map(shutil.which, C_COMPILERS)):
        raise DeviceUnavailable(
            "compile is true, but Triton finds no C compiler on this host.",
            f"{DISABLE_HINT}, or install gcc, or name a compiler in the worker's environment as CC.",
        )


def list_compiled_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the layers that are compiled; raises ModelUnsupported for an architecture without any."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    # Not those of an encoder of images.
    decoder = base.get_decoder()
    layers = [module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ModelUnsupported(
            f"compile is true, but {type(model).__name__} has no decoder layers that can be compiled apart.",
            f"{DISABLE_HINT}.",
        )
    return layers


@contextmanager
def compiled_layers(
    models: Sequence[torch.nn.Module], cache: Path, warn: Callable[[str, str], None]
) -> Iterator[None]:
    """Compile the layers of the models at their first use within the block; `warn` gets code and message.

    Compiled code is cached in the folder `cache`, unless the environment names another. Raises
    CompilationFailed.
    """
    for model in models:
        for layer in list_compiled_layers(model):
            # Rows differ in length: code for any length is compiled at once, and not after the first two.
            layer.compile(dynamic=True)
        _generate_without_compilation(model)
    count = sum(len(list_compiled_layers(model)) for model in models)
    warn(
        "layers_compiled",
        f"torch compiles the {count} decoder layers when they are first used, which takes up to some minutes "
        "and is repeated for rows of another kind. The losses may differ in their last digits.",
    )
    with _cache_folder(cache), report_limit(warn):
        torch._dynamo.config.recompile_limit = MAX_VARIANTS
        try:
            yield
        except TorchDynamoException as error:
            raise CompilationFailed(
                "compile is true, but torch cannot compile the model's layers on this host: "
                f"{first_line(error)}",
                f"{DISABLE_HINT}, or install a version of the compiler that torch {torch.__version__} "
                "supports.",
            ) from error
        finally:
            torch.compiler.reset()


def _generate_without_compilation(model: torch.nn.Module) -> None:
    """Let the model generate by its ordinary code: a cache that grows would be compiled for each layer."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    generate = base.generate

    @wraps(generate)
    def generate_eagerly(*arguments: Any, **options: Any) -> Any:
        with torch.compiler.set_stance("force_eager"):
            return generate(*arguments, **options)

    base.generate = generate_eagerly


class RecompilationLimit(logging.Handler):
    """Reports once that torch has compiled as many variants of a function as it may."""

    def __init__(self, warn: Callable[[str, str], None]) -> None:
        super().__init__(logging.WARNING)
        self._warn = warn
        self._has_warned = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write the warning if the record is that of the limit."""
        message = record.getMessage()
        if self._has_warned or not message.startswith(LIMIT_MARK):
            return
        self._has_warned = True
        lines = [line.strip() for line in message.splitlines()]
        reason = next((line for line in lines if line.startswith("last reason")), "no reason is known")
        self._warn(
            "compile_limit_reached",
            "Torch has compiled as many variants of the layers as it may, and further ones run uncompiled; "
            f"{reason}. The results are right, but slower. {DISABLE_HINT} if this happens early in each run.",
        )


@contextmanager
def report_limit(warn: Callable[[str, str], None]) -> Iterator[None]:
    """Report within the block that a function has reached its limit of compiled variants."""
    handler, source = RecompilationLimit(warn), logging.getLogger(LIMIT_LOGGER)
    source.addHandler(handler)
    try:
        yield
    finally:
        source.removeHandler(handler)


@contextmanager
def _cache_folder(folder: Path) -> Iterator[None]:
    """Let torch cache compiled code where it is removed with the run, unless the operator has a folder.

    Torch sets the variable to its own folder, which has no limit, when it is imported.
    """
    before = os.environ.get(CACHE_VARIABLE)
    if before not in (None, default_cache_dir()):
        yield
        return
    os.environ[CACHE_VARIABLE] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(CACHE_VARIABLE)
        if before is not None:
            os.environ[CACHE_VARIABLE] = before
