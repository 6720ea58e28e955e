"""Comparison of an adapter on its published base with the model as it was trained, on quantized weights.

The engine is compared with the published base, as for every adapter. An adapter of 4-bit training computes
something else there than it did in training: how much was measured when it was published, on token sequences
that are stored with it. Here the published base is measured on the same sequences, and may differ by rounding
only; otherwise it is not the base that was quantized, or the adapter was changed.
"""

from serving.parity.compare import TOLERANCES, Difference, ParityReport
from serving.parity.reference import ReferenceModel
from trainers.configs.training import Precision
from trainers.modeling.quantization.record import QuantizedBase, measure_gap

ROUNDING = {
    Precision.fp32: TOLERANCES["float32"],
    Precision.bf16: TOLERANCES["bfloat16"],
    Precision.fp16: TOLERANCES["float16"],
}


def compare_training(reference: ReferenceModel, base: QuantizedBase, report: ParityReport) -> None:
    """Add the quantized base and both differences to a report, which fails if they differ."""
    found = measure_gap(base.probes, [reference.score(probe.ids) for probe in base.probes])
    report.quantization = {
        **base.model_dump(mode="json", include={"format", "bits", "group_size", "sha256"}),
        "expected": base.gap.model_dump(),
        "found": found.model_dump(),
    }
    rounding = ROUNDING[base.precision]
    if found.mean <= base.gap.mean + rounding.mean and found.max <= base.gap.max + rounding.max:
        return
    report.passed, report.spot_check = False, None
    report.difference = report.difference or Difference(
        "quantization",
        f"The adapter on this base differs from the model that was trained, on {base.bits}-bit weights, by "
        f"{found.mean:.4f} nats on average and by up to {found.max:.4f}. When it was published, these were "
        f"{base.gap.mean:.4f} and {base.gap.max:.4f}: the base or the adapter has changed since.",
        0,
    )
