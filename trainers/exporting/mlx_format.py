"""A model as a folder for mlx-lm, loaded by it again and compared with the trained model."""

import json
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from trainers.exporting.reference import ReferencePrompt, compare, token_logprobs
from trainers.mlx.adapter_files import peft_to_mlx
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError

FOLDER = "mlx"
ADAPTER_FOLDER = "mlx-adapter"
# The largest mean difference of a token's log-probability: the numbers have the bits of the files.
TOLERANCE = 0.05


class MlxUnavailable(ProgramError):
    """mlx-lm is not installed."""

    code = ErrorCode.capability_missing


def require_mlx() -> None:
    """Raise MlxUnavailable without mlx-lm."""
    if find_spec("mlx_lm") is None:
        raise MlxUnavailable(
            "mlx-lm is not installed on this worker, so it cannot write the format mlx.",
            "Install it in the trainers' environment: pip install 'tunesmith[mlx]'.",
        )


def write_mlx(
    model: Path, target: Path, work: Path, reference: Sequence[ReferencePrompt]
) -> dict[str, dict[str, float]]:
    """Write the folder, and return its differences; raises MlxUnavailable or ExportDiffers."""
    require_mlx()
    from mlx_lm import convert

    convert(str(_link_for_mlx(model, work / "for-mlx")), str(target / FOLDER))
    return {FOLDER: compare(FOLDER, reference, _logprobs(target / FOLDER, None, reference), TOLERANCE)}


def write_mlx_adapter(
    base: Path, adapter: Path, target: Path, work: Path, reference: Sequence[ReferencePrompt]
) -> dict[str, dict[str, float]]:
    """Write the adapter for mlx-lm, and return its differences.

    Raises MlxUnavailable or ExportDiffers, and AdapterNotConvertible for settings that mlx-lm lacks.
    """
    require_mlx()
    folder = target / ADAPTER_FOLDER
    peft_to_mlx(adapter, folder)
    source = _link_for_mlx(base, work / "base-for-mlx")
    return {
        ADAPTER_FOLDER: compare(ADAPTER_FOLDER, reference, _logprobs(source, folder, reference), TOLERANCE)
    }


def _logprobs(model: Path, adapter: Path | None, reference: Sequence[ReferencePrompt]) -> list[list[float]]:
    """Return the log-probabilities of the prompts' tokens by mlx-lm."""
    import mlx.core as mx
    from mlx_lm import load

    loaded, *_ = load(str(model), adapter_path=None if adapter is None else str(adapter))
    logprobs = []
    for prompt in reference:
        logits_tv = loaded(mx.array([prompt.ids]))[0].astype(mx.float32)
        logprobs.append(token_logprobs(torch.tensor(logits_tv.tolist()), prompt.ids))
    return logprobs


def _link_for_mlx(model: Path, target: Path) -> Path:
    """Return a copy of a model's folder whose config mlx-lm understands; weights are links."""
    shutil.copytree(model, target, copy_function=_link)
    _write_rope_theta(target / "config.json")
    return target


def _link(source: str, target: str) -> None:
    Path(target).hardlink_to(Path(source).resolve())


def _write_rope_theta(path: Path) -> None:
    """Write the rotary base where mlx-lm reads it: without that, it assumes another one."""
    config = json.loads(path.read_text(encoding="utf-8"))
    theta = (config.get("rope_parameters") or {}).get("rope_theta")
    if theta is not None and "rope_theta" not in config:
        path.unlink()
        path.write_text(json.dumps(config | {"rope_theta": theta}, indent=1), encoding="utf-8")
