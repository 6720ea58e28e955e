"""COMET in an environment of its own: a child reads the translations and writes their scores.

COMET's package pins libraries that the trainers cannot share, so `make comet` layers it over them.
"""

import json
import logging
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from trainers.configs.metrics.translation import Comet
from trainers.metrics.metric import EvaluatedRow, MetricValues
from trainers.metrics.translation.metrics import TextMetric
from trainers.metrics.translation.texts import TranslationText, describe_cleaning, read_texts, sign
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError

PROGRAM: Final = Path(__file__).with_name("comet_program.py")
# As in the program, which has none of our packages.
REFUSED: Final = 3
ERROR_LINES: Final = 5
# What the child inherits: no token, no key, and no address of a service.
ENVIRONMENT: Final = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
ENVIRONMENT_HINT: Final = (
    "Run `make comet` on this host, and set TUNESMITH_COMET_ENVIRONMENT to the folder that it prints; by "
    "hand, name it in the metric's `environment`."
)
MODEL_HINT: Final = (
    "A COMET model is a folder with hparams.yaml, checkpoints/ with model.ckpt or model.safetensors, and "
    "encoder/ with config.json and tokenizer.json of its XLM-RoBERTa; docs/guides/evaluation.md shows how to "
    "make one from the hub's Unbabel/wmt22-comet-da."
)


logger = logging.getLogger("trainers")


class CometUnavailable(ProgramError):
    """This host has no environment of COMET."""

    code = ErrorCode.capability_missing


class CometModelRefused(ProgramError):
    """The COMET model is missing, incomplete, or contains more than tensors."""

    code = ErrorCode.model_refused


class CometFailed(ProgramError):
    """The program of COMET failed, or exceeded its limits."""

    code = ErrorCode.metric_failed


class CometMetric(TextMetric[Comet]):
    """Mean score of a COMET model."""

    def check_host(self, rows: Sequence[EvaluatedRow]) -> None:
        """Raise CometUnavailable or CometModelRefused if environment or model are missing."""
        self._find_python()
        checkpoint = Path(self._config.checkpoint)
        if not (checkpoint / "hparams.yaml").is_file():
            raise CometModelRefused(f"{checkpoint} is not a COMET model: it has no hparams.yaml.", MODEL_HINT)

    def score(self, rows: Sequence[EvaluatedRow]) -> MetricValues:
        """Score the first response of each row; one without a response is scored as an empty text."""
        self.check_host(rows)
        texts = read_texts(rows, self._config)
        about, scores = self._run(texts)
        versions = "|".join(f"{package}:{version}" for package, version in about["versions"].items())
        name = Path(self._config.checkpoint).name
        return MetricValues(
            value=sum(scores) / len(scores),
            row_values=scores,
            signature=sign(f"comet|model:{name}|sha256:{about['model_sha256']}|{versions}", self._config),
            details={"device": about["device"], **describe_cleaning(texts)},
        )

    def _find_python(self) -> Path:
        if self._config.environment is None:
            raise CometUnavailable("This host has no environment of COMET.", ENVIRONMENT_HINT)
        python = Path(self._config.environment) / "bin" / "python"
        if not python.is_file():
            raise CometUnavailable(
                f"The environment of COMET is incomplete: {python} is missing.", ENVIRONMENT_HINT
            )
        return python

    def _run(self, texts: Sequence[TranslationText]) -> tuple[dict[str, Any], list[float]]:
        """Return the program's description of model and versions, and the scores in the order of the rows."""
        config = self._config
        with tempfile.TemporaryDirectory(prefix="comet-") as folder:
            request, response = Path(folder) / "request.jsonl", Path(folder) / "response.jsonl"
            with request.open("w", encoding="utf-8") as file:
                for text in texts:
                    sample = {"src": text.source, "mt": text.response, "ref": text.reference}
                    file.write(json.dumps(sample) + "\n")
            command = [str(self._find_python()), "-I", str(PROGRAM), config.checkpoint, str(request)]
            command += [str(response), str(config.batch_size), str(config.max_memory_bytes)]
            self._start(command)
            written = response.read_text(encoding="utf-8") if response.is_file() else ""
        about, *lines = [json.loads(line) for line in written.splitlines()] or [{}]
        if len(lines) != len(texts):
            raise CometFailed("COMET ended and wrote no scores.", "The log shows what it wrote.")
        return about, [float(line["score"]) for line in lines]

    def _start(self, command: Sequence[str]) -> None:
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        seconds = self._config.max_seconds
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise CometFailed(
                f"COMET did not score the rows within {seconds:g} s.",
                "Raise the metric's `max_seconds`, or evaluate fewer rows with `max_rows`.",
            ) from error
        if done.returncode == 0:
            return
        lines = done.stderr.strip().splitlines()[-ERROR_LINES:] or [f"exit status {done.returncode}"]
        if done.returncode == REFUSED:
            raise CometModelRefused(
                f"The COMET model {self._config.checkpoint} cannot be used: {lines[-1]}.", MODEL_HINT
            )
        if any("MemoryError" in line or "can't allocate memory" in line for line in lines):
            raise CometFailed(
                f"COMET needs more than {self._config.max_memory_bytes} bytes of memory.",
                "Raise the metric's `max_memory_bytes`, or lower its `batch_size`.",
            )
        logger.error("COMET failed with exit status %d:\n%s", done.returncode, done.stderr)
        raise CometFailed(f"COMET failed: {' '.join(lines)}", "The log has all that it wrote.")
