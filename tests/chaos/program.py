"""A stand-in for a training program, started in place of `trainers.sft`.

python -m tests.chaos.program LEDGER -m trainers.sft --config CONFIG --run-dir FOLDER

Its steps are short sleeps. It publishes checkpoints and its result with the functions that the real programs
use, resumes from the checkpoint that the worker has restored, and reports everything to the ledger.
"""

import json
import signal
import sys
import time
from hashlib import sha256
from pathlib import Path
from types import FrameType
from typing import Any

from tests.chaos.files import write_adapter
from tests.chaos.ledger import Kind, LedgerWriter
from trainers.runtime import run_dir as files

STEP_SECONDS = 0.06
WEIGHTS_BYTES = 16 << 10
EXIT_STOPPED = 75
PROGRESS_EVERY_STEPS = 5

_stop_requested = False


def main(arguments: list[str]) -> int:
    """Run one attempt and return its exit status."""
    signal.signal(signal.SIGTERM, _request_stop)
    run_dir = Path(arguments[arguments.index("--run-dir") + 1])
    config = json.loads(Path(arguments[arguments.index("--config") + 1]).read_text())
    # The nodes of a run on several hosts have a suffix.
    attempt = int(run_dir.name.removeprefix("attempt-").partition("-")[0])
    run_id = run_dir.parent.name
    ledger = LedgerWriter(Path(arguments[0]), run_id, attempt)
    ledger.write(Kind.begin, 0)
    first = _resume(run_dir, run_id, ledger)
    for step in range(first + 1, config["max_steps"] + 1):
        time.sleep(STEP_SECONDS)
        ledger.write(Kind.step, step)
        if step % PROGRESS_EVERY_STEPS == 0:
            _report_metrics(run_dir, step, config["max_steps"])
        if step % config["save_every_steps"] == 0 or _stop_requested:
            _publish(run_dir, run_id, step)
            ledger.write(Kind.checkpoint, step)
        if _stop_requested:
            return EXIT_STOPPED
    write_adapter(run_dir / files.MODEL, config["base"])
    model = {"path": files.MODEL, "kind": "adapter", "template_sha256": None}
    ledger.write(Kind.end, config["max_steps"])
    files.write_result(run_dir, {"stage": "sft", "model": model, "metrics": {}, "attempt": attempt})
    return 0


def _resume(run_dir: Path, run_id: str, ledger: LedgerWriter) -> int:
    """Return the step of the restored checkpoint, or 0; report whether its content is intact."""
    saved = files.checkpoints(run_dir)
    if not saved:
        return 0
    latest = saved[-1]
    ledger.write(Kind.resumed, latest.step, intact=_is_intact(run_dir / latest.path, run_id, latest.step))
    return latest.step


def _publish(run_dir: Path, run_id: str, step: int) -> None:
    folder = run_dir / f".checkpoint-{step}"
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_bytes(_weights(run_id, step))
    (folder / "state.json").write_text(json.dumps({"run_id": run_id, "step": step}))
    files.publish_checkpoint(run_dir, step, folder)
    files.prune_checkpoints(run_dir, keep=2)


def _is_intact(folder: Path, run_id: str, step: int) -> bool:
    try:
        state = json.loads((folder / "state.json").read_text())
        weights = (folder / "weights").read_bytes()
    except (OSError, ValueError):
        return False
    return bool(state == {"run_id": run_id, "step": step}) and weights == _weights(run_id, step)


def _weights(run_id: str, step: int) -> bytes:
    """Return the bytes that only this run writes at this step."""
    seed = sha256(f"{run_id} {step}".encode()).digest()
    return seed * (WEIGHTS_BYTES // len(seed))


def _report_metrics(run_dir: Path, step: int, total_steps: int) -> None:
    values: dict[str, Any] = {"step": step, "total_steps": total_steps, "values": {"loss": 1 / step}}
    files.append_line(run_dir / files.EVENTS, {"type": "metrics", "time": files.utc_now(), **values})


def _request_stop(number: int, frame: FrameType | None) -> None:
    global _stop_requested
    _stop_requested = True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
