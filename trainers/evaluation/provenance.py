"""What the scores of a model depend on, and the values in which two evaluations differ."""

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2

from trainers.configs.base import AdaptedModel
from trainers.configs.stages.evaluate import EvaluateConfig
from trainers.evaluation.identity import hash_file, hash_json, hash_weights
from trainers.evaluation.response_log import ResponseLog
from trainers.evaluation.results import ModelScores
from trainers.evaluation.scores import Values
from trainers.rendering.render import PromptCompletion, dataset_path
from trainers.rendering.template_proof import read_templates
from trainers.runtime.endpoints import Endpoint

VERSION_TIMEOUT_SECONDS = 5.0
CPU_INFO = Path("/proc/cpuinfo")
# Values of the model itself, in which the compared models differ by intention.
OF_MODEL = ("model",)
MAX_SHOWN_CHARACTERS = 80


def describe_model(role: str, config: EvaluateConfig) -> str:
    """Return a model as a person reads it; of a folder, only the last parts of its path."""
    return config.origins[role].name if role in config.origins else _shorten(config.models[role])


def read_engine(role: str, config: EvaluateConfig, endpoint: Endpoint) -> dict[str, Any]:
    """Return the kind, version and hardware of an engine, as far as it reports them."""
    if role not in config.engine_models:
        kind = "deployment" if endpoint.is_engine else "endpoint"
        return {"kind": kind, "name": str(config.models[role])} | (
            _read_version(endpoint) if endpoint.is_engine else {}
        )
    hardware = config.engines[role].hardware or describe_cpu()
    return {"kind": str(config.engine), "hardware": hardware} | _read_version(endpoint)


def describe_provenance(
    role: str, config: EvaluateConfig, pairs: Sequence[PromptCompletion], log: ResponseLog, values: Values
) -> dict[str, Any]:
    """Return what the scores of a model depend on, as JSON."""
    engines = log.list_engines(role)
    return {
        "dataset": {"sha256": hash_file(dataset_path(config.dataset)), "rows": len(pairs)},
        "prompts_sha256": hash_json([[pair.prompt, pair.tools] for pair in pairs]),
        "template_sha256": _hash_template(config.models[role]),
        "harness": f"tunesmith {version('tunesmith')}",
        "metrics": {name: one.signature for name, one in values.items()},
        "sampling": {
            "samples": config.samples,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_new_tokens": config.max_new_tokens,
            "seed": config.seed,
            **({"tools_sha256": hash_json(config.tools)} if config.tools else {}),
            **config.chat_options,
        },
        "engine": engines[-1] if engines else {},
        "earlier_engines": engines[:-1],
        "engine_options": config.options.model_dump(mode="json", exclude_defaults=True),
        "model": config.origins[role].facts if role in config.origins else _identify_folders(role, config),
    }


def find_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the values in which two provenances differ, by their dotted names; those of the model apart."""
    left, right = dict(_flatten(a)), dict(_flatten(b))
    names = [*left, *(name for name in right if name not in left)]
    return {
        name: (left.get(name), right.get(name))
        for name in names
        if left.get(name) != right.get(name) and not name.startswith(OF_MODEL)
    }


def explain_differences(a: ModelScores, b: ModelScores, *, within_evaluation: bool = False) -> str | None:
    """Return a warning that names the values in which two models' scores do not agree, or None.

    Within one evaluation, rows and sampling are the same, and a deployment or endpoint has an engine of its
    own.
    """
    found = find_differences(a.provenance, b.provenance)
    if not found:
        return None
    listed = "; ".join(
        f"{name}: {show_value(left)} and {show_value(right)}" for name, (left, right) in found.items()
    )
    if within_evaluation:
        return f"{a.role!r} and {b.role!r} were evaluated under different conditions: {listed}."
    return f"{a.role!r} cannot be compared with {b.role!r} without reserve, because these differ: {listed}."


@cache
def describe_cpu() -> str:
    """Return the processor of this host and the number of CPUs that this process may use."""
    names = [
        line.partition(":")[2].strip()
        for line in (CPU_INFO.read_text(errors="replace").splitlines() if CPU_INFO.exists() else [])
        if line.startswith("model name")
    ]
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count()
    return f"{count} × {names[0] if names else platform.processor() or platform.machine()}"


def _read_version(endpoint: Endpoint) -> dict[str, Any]:
    """Return the version that an engine reports at `/version`, as vLLM and our own engines do."""
    url = endpoint.base_url.removesuffix("/v1") + "/version"
    try:
        response = httpx2.get(url, timeout=VERSION_TIMEOUT_SECONDS, trust_env=False)
        content = response.json() if response.is_success else {}
    except (httpx2.HTTPError, ValueError):
        return {}
    return {str(name): value for name, value in content.items()} if isinstance(content, dict) else {}


def _hash_template(model: Any) -> str | None:
    """Return the hash of the chat template with which an engine renders the prompts, if it is known here."""
    folders = [model.adapter, model.base] if isinstance(model, AdaptedModel) else [model]
    for folder in folders:
        if isinstance(folder, str) and Path(folder).is_dir():
            template = read_templates(Path(folder)).get("default")
            if template is not None:
                return hashlib.sha256(template.encode()).hexdigest()
    return None


def _identify_folders(role: str, config: EvaluateConfig) -> dict[str, str]:
    model = config.models[role]
    if not isinstance(model, AdaptedModel | str):
        return {"name": str(model)}
    parts = (
        {"base": model.base, "adapter": model.adapter} if isinstance(model, AdaptedModel) else {"base": model}
    )
    return {
        f"{name}_sha256": hash_weights(Path(folder))
        for name, folder in parts.items()
        if Path(folder).is_dir()
    } or {"name": str(model)}


def _shorten(model: Any) -> str:
    if isinstance(model, AdaptedModel):
        return f"{_shorten(model.adapter)} on {_shorten(model.base)}"
    return "/".join(Path(str(model)).parts[-2:]) if isinstance(model, str) else str(model)


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flatten(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def show_value(value: Any) -> str:
    """Return a value as a warning shows it: a hash, or anything long, by its beginning."""
    if value is None:
        return "unknown"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    is_hash = len(text) == 64 and all(character in "0123456789abcdef" for character in text)
    return text[:12] if is_hash else text[:MAX_SHOWN_CHARACTERS]
