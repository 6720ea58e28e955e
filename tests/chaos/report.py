"""The report of a run: counts, broken promises, and what the counts allow to conclude."""

import json
import statistics
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.chaos.checker import Promise, Verdict

# With zero events among n independent trials, the upper bound of the rate at 95 % is 3 / n.
RULE_OF_THREE = 3


@dataclass
class Report:
    """Everything that one run of the driver has found."""

    platform: str
    seed: int
    minutes: float
    n_jobs: int
    faults: Counter[str]
    """Faults that broke something, by name."""
    skipped: dict[str, str]
    """Faults that this host does not allow, and why."""
    responses: Counter[str]
    drain_seconds: float
    verdict: Verdict

    @property
    def is_kept(self) -> bool:
        """Whether all promises were kept."""
        return not self.verdict.violations

    def as_dict(self) -> dict[str, Any]:
        """Return the report for a JSON file."""
        n_faults, recovery = self.faults.total(), self.verdict.recovery_seconds
        broken = Counter(violation.promise for violation in self.verdict.violations)
        return {
            "platform": self.platform,
            "seed": self.seed,
            "minutes": round(self.minutes, 2),
            "jobs": self.n_jobs,
            "faults": n_faults,
            "broken": {str(promise): broken[promise] for promise in Promise},
            "upper_bound_95": {
                "per_job": RULE_OF_THREE / max(1, self.n_jobs),
                "per_fault": RULE_OF_THREE / max(1, n_faults),
            },
            "recovery_seconds": {"n": len(recovery), **percentiles(recovery)},
            "overlaps": [asdict(overlap) for overlap in self.verdict.overlaps],
            "drain_seconds": round(self.drain_seconds, 1),
            "responses": dict(sorted(self.responses.items())),
            "faults_by_name": dict(self.faults.most_common()),
            "skipped_faults": self.skipped,
            "violations": [asdict(violation) for violation in self.verdict.violations],
        }

    def write_json(self, path: Path) -> None:
        """Write the report as JSON."""
        path.write_text(json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n")

    def format(self) -> str:
        """Return the report for a terminal."""
        values = self.as_dict()
        recovery, bounds = values["recovery_seconds"], values["upper_bound_95"]
        lines = [
            f"{self.platform}, seed {self.seed}: {self.faults.total()} faults on {self.n_jobs} jobs in "
            f"{self.minutes:.1f} minutes",
            *(f"  {count:4}  {name}" for name, count in self.faults.most_common()),
            *(f"     –  {name}: skipped, {reason}" for name, reason in self.skipped.items()),
            f"recovery of an interrupted run: p50 {recovery['p50']:.1f} s, p95 {recovery['p95']:.1f} s, "
            f"max {recovery['max']:.1f} s (n {recovery['n']}); drain {self.drain_seconds:.1f} s",
            f"responses: {values['responses']}",
            f"overlaps after a suspension, which nothing can prevent: "
            f"{[round(overlap.seconds, 2) for overlap in self.verdict.overlaps if overlap.is_suspended]} s",
            *(f"  {count:4}  {promise}" for promise, count in values["broken"].items()),
            *(f"BROKEN {v.promise}: {v.subject} {v.detail}" for v in self.verdict.violations),
        ]
        if self.is_kept:
            lines.append(
                f"All promises kept. Upper bound at 95 %: {bounds['per_job']:.2%} of jobs, "
                f"{bounds['per_fault']:.2%} of faults."
            )
        return "\n".join(lines)


def percentiles(values: list[float]) -> dict[str, float]:
    """Return p50, p95 and the maximum, or zeros without values."""
    if len(values) < 2:
        return dict.fromkeys(("p50", "p95", "max"), round(max(values, default=0.0), 2))
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return {"p50": round(cuts[9], 2), "p95": round(cuts[18], 2), "max": round(max(values), 2)}
