"""The quantized base on which an adapter was trained, as a file next to the adapter.

An adapter that was trained on 4-bit weights is usually served on the original ones, where it computes
something else. The file contains log-probabilities under the model as it was trained, so that the parity
check measures that difference on any host, and the difference that was found when the adapter was published.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trainers.configs.training import Precision
from trainers.modeling.model_config import ModelFileRefused, read_object
from trainers.runtime import run_dir as files

QUANTIZED_BASE = "quantized_base.json"
MAX_PROBES = 64
MAX_PROBE_TOKENS = 4096

Bits = Annotated[int, Field(ge=1, le=8)]
Nats = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
Logprob = Annotated[float, Field(ge=-1e6, le=0, allow_inf_nan=False)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Probe(_Record):
    """Token ids, and the log-probability of each token but the first under the model as it was trained."""

    ids: list[Annotated[int, Field(ge=0, lt=1 << 31)]] = Field(min_length=2, max_length=MAX_PROBE_TOKENS)
    logprobs: list[Logprob] = Field(max_length=MAX_PROBE_TOKENS)

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if len(self.logprobs) != len(self.ids) - 1:
            raise ValueError("a probe needs a log-probability for each token but the first")
        return self


class QuantizationGap(_Record):
    """The difference of log-probabilities, in nats, between two models over the tokens of the probes."""

    mean: Nats
    max: Nats
    tokens: int = Field(ge=1)


class QuantizedBase(_Record):
    """The base as it was trained on, and how far the adapter on the published base is from it."""

    format: str = Field(max_length=64)
    bits: Bits
    group_size: int = Field(ge=1)
    precision: Precision
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hash of the base's quantized weights."""
    gap: QuantizationGap
    probes: list[Probe] = Field(min_length=1, max_length=MAX_PROBES)


def make_probes(rows: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float]]) -> list[Probe]:
    """Return the probes of these rows with their log-probabilities under the model as it was trained."""
    return [Probe(ids=list(row), logprobs=list(scores)) for row, scores in zip(rows, logprobs, strict=True)]


def measure_gap(probes: Sequence[Probe], found: Sequence[Sequence[float]]) -> QuantizationGap:
    """Return the difference between the probes' log-probabilities and those that another model gives."""
    differences = list(_differences(probes, found))
    return QuantizationGap(
        mean=sum(differences) / len(differences), max=max(differences), tokens=len(differences)
    )


def write_quantized_base(record: QuantizedBase, folder: Path) -> None:
    """Write the record into the folder of its adapter."""
    files.write_json(folder / QUANTIZED_BASE, record.model_dump(mode="json"))


def add_quantized_base(result: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """Return a training result with the record of its adapter, if any, and the base published with it."""
    path = run_dir / files.MODEL / QUANTIZED_BASE
    if not path.is_file():
        return result
    record = read_quantized_base(path).model_dump(mode="json", exclude={"probes"})
    if (run_dir / files.DEQUANTIZED_BASE).is_dir():
        result = result | {"model": result["model"] | {"base_path": files.DEQUANTIZED_BASE}}
    return result | {"quantized_base": record}


def read_quantized_base(path: Path) -> QuantizedBase:
    """Read a record, which an imported adapter may contain too; raises ModelFileRefused."""
    try:
        return QuantizedBase.model_validate(read_object(path))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ModelFileRefused(f"has an invalid field {place}: {first['msg']}") from error


def _differences(probes: Sequence[Probe], found: Sequence[Sequence[float]]) -> Iterator[float]:
    for probe, logprobs in zip(probes, found, strict=True):
        for expected, actual in zip(probe.logprobs, logprobs, strict=True):
            yield abs(expected - actual)
