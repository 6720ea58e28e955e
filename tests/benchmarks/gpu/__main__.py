"""What our stages do on one GPU: correct, how fast, how much memory. Cases run in order of worth.

    python -m tests.benchmarks.gpu --out results.json --seconds 540

`--tiny` runs every case on a CPU with tiny models, to test this program. Nothing is downloaded. The results
are written after each case, so that an execution that is cut short keeps the first ones; a case that cannot
run is in them with the reason.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import torch

from tests.benchmarks.gpu.cases import Bench, Case
from tests.benchmarks.gpu.kernel import list_kernel_cases
from tests.benchmarks.gpu.machine import describe_machine, find_missing


def main() -> None:
    """Run the cases that the machine can run in the time that is given."""
    options = _parse_options()
    device = torch.device("cuda" if torch.cuda.is_available() and not options.tiny else "cpu")
    missing = find_missing(device, options.tiny)
    started = time.monotonic()
    report: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "tiny": options.tiny,
        "machine": describe_machine(device),
        "missing": missing,
        "cases": {},
    }
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        bench = Bench(Path(folder), device, options.tiny, started + options.seconds, report["cases"])
        for case in _list_cases(missing):
            if not options.only or any(name in case.name for name in options.only):
                report["cases"][case.name] = _run_case(case, bench, missing)
                report["seconds"] = round(time.monotonic() - started, 1)
                _write(options.out, report)
                print(json.dumps({case.name: report["cases"][case.name]}), flush=True)
    failed = [name for name, result in report["cases"].items() if "error" in result]
    disagreeing = [name for name, result in report["cases"].items() if result.get("agrees") is False]
    print(f"{len(report['cases'])} cases, failed: {failed or 'none'}, disagreeing: {disagreeing or 'none'}")
    sys.stdout.flush()
    # Threads of torch can abort at interpreter exit, after everything is written.
    os._exit(1 if failed or disagreeing else 0)


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="file of the results")
    parser.add_argument("--seconds", type=float, default=540, help="after which no case starts")
    parser.add_argument("--tiny", action="store_true", help="tiny models on the CPU")
    parser.add_argument("--only", nargs="*", help="parts of the names of the cases to run")
    parser.add_argument("--scratch", type=Path, help="folder for the models, 20 GB")
    return parser.parse_args()


def _list_cases(missing: dict[str, str]) -> list[Case]:
    """Return all cases in order of worth; without the trainers, only that of torch alone."""
    if "trainers" in missing:
        return list_kernel_cases()
    from tests.benchmarks.gpu.correctness import list_correctness_cases
    from tests.benchmarks.gpu.memory import list_memory_cases
    from tests.benchmarks.gpu.rollouts import list_rollout_cases
    from tests.benchmarks.gpu.speed import list_speed_cases

    fastest, *speed = list_speed_cases()
    cases = [*list_correctness_cases(), fastest, *list_kernel_cases(), *speed]
    return [*cases, *list_memory_cases(), *list_rollout_cases()]


def _run_case(case: Case, bench: Bench, missing: dict[str, str]) -> dict[str, Any]:
    """Return what the case measured, why it was skipped, or its error."""
    reasons = [missing[feature] for feature in (*case.needs, "gpu") if feature in missing]
    if reasons:
        return {"skipped": "; ".join(reasons)}
    if bench.seconds_left < (0 if bench.is_tiny else case.expected_seconds):
        return {"skipped": f"only {bench.seconds_left:.0f} s are left"}
    started = time.monotonic()
    try:
        measured = case.run(bench)
    except Exception as error:  # The other cases must run whatever this one raises.
        traceback.print_exc()
        measured = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
    if case.bar is not None:
        measured |= {"bar": case.bar}
    return measured | {"case_seconds": round(time.monotonic() - started, 1)}


def _write(path: Path, report: dict[str, Any]) -> None:
    """Replace the file as a whole, so that a process that is killed leaves the last one."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(report, indent=1) + "\n")
    temporary.replace(path)


if __name__ == "__main__":
    main()
