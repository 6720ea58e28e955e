"""Findings about hosts whose memory is too small for a stage as it is configured."""

from collections.abc import Iterator
from typing import Any, Final

from trainers.configs.training import TrainingConfig
from trainers.preflight.findings import Finding, FindingCode, FindingLevel, new_finding

GB: Final = 10**9


def check_memory(config: TrainingConfig, estimate: dict[str, Any] | None) -> Iterator[Finding]:
    """Yield a finding for each host on which the stage does not fit, unless it needs recomputation alone.

    `activation_checkpointing: auto` chooses that by itself.
    """
    for host in estimate["hosts"] if estimate is not None else []:
        plan, is_auto = host["plan"], config.activation_checkpointing == "auto"
        if host["fits"] or (is_auto and host["fits_recomputed"]):
            continue
        message = (
            f"On {host['worker']} the stage needs {host['needed_bytes'] / GB:.1f} GB of {host['device']} "
            f"memory, and {host['usable_bytes'] / GB:.1f} GB are usable."
        )
        advice = host["advice"] if plan is None else _describe_plan(config, host)
        yield new_finding(FindingCode.memory_short, FindingLevel.warning, message, advice)


def _list_changes(config: TrainingConfig, plan: dict[str, Any]) -> list[str]:
    """Return the settings of a plan that are not those of the config, as fields of a stage."""
    changes = []
    if plan["micro_batch_size"] != config.micro_batch_size:
        changes.append(f"micro_batch_size {plan['micro_batch_size']}")
    if plan["quantization"] != getattr(config.tuning, "quantization", None):
        changes.append(f"tuning.quantization {plan['quantization']} (preset gpu-24gb-nf4 for 24 GB)")
    if config.processes > 1 and plan["parallelism"] not in (config.parallelism, "ddp"):
        changes.append(f"parallelism {plan['parallelism']}")
    return changes


def _describe_plan(config: TrainingConfig, host: dict[str, Any]) -> str:
    changes = _list_changes(config, host["plan"])
    if host["plan"]["activation_checkpointing"] and config.activation_checkpointing is False:
        changes.append("activation_checkpointing auto")
    return f"It fits with {' and '.join(changes)}, which needs {host['planned_bytes'] / GB:.1f} GB."
