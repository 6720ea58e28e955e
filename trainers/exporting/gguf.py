"""GGUF files by llama.cpp's converter, each loaded by llama.cpp again and compared with the trained model.

The converter runs with the trainers' packages, and llama.cpp in an environment of its own (`make gguf`).
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainers.configs.stages.export import ExportFormat
from trainers.exporting.reference import ExportDiffers, ReferencePrompt, compare
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError

# The largest mean difference of a token's log-probability. On tiny models, f16 differs by 1e-4, q8_0 by 5e-3
# and q4_k_m by 1e-2; on models of some billions of parameters q4_k_m by about 0.1. A wrong rotary base or
# tied output layer differs by more than 1.
TOLERANCES = {
    ExportFormat.gguf_f16: 0.01,
    ExportFormat.gguf_q8_0: 0.05,
    ExportFormat.gguf_q4_k_m: 0.5,
    ExportFormat.gguf_adapter: 0.01,
}
FILES = {form: f"{form.value.removeprefix('gguf_')}.gguf" for form in TOLERANCES}
CONVERTER = Path(__file__).with_name("gguf_converter.py")
LLAMA_PROGRAM = Path(__file__).with_name("llama_program.py")
ERROR_LINES = 5


class GgufUnavailable(ProgramError):
    """This host has no environment of llama.cpp."""

    code = ErrorCode.capability_missing


class ConversionFailed(ProgramError):
    """llama.cpp cannot convert the model."""

    code = ErrorCode.export_failed


@dataclass(frozen=True)
class GgufEnvironment:
    """The folder that `make gguf` creates: an environment of Python, and llama.cpp's source next to it."""

    folder: Path

    @property
    def python(self) -> Path:
        """The interpreter with llama-cpp-python."""
        return self.folder / "bin" / "python"

    @property
    def llama_cpp(self) -> Path:
        """The source of llama.cpp, which contains the converters."""
        return self.folder / "llama.cpp"

    def convert(self, script: str, arguments: Sequence[str], pre_tokenizer: str | None = None) -> None:
        """Run a converter; raises ConversionFailed with the end of its output."""
        _run([sys.executable, str(CONVERTER), str(self.llama_cpp), script, pre_tokenizer or "", *arguments])

    def run_llama(self, *arguments: str) -> None:
        """Run a command of `llama_program.py`; raises ConversionFailed."""
        _run([str(self.python), str(LLAMA_PROGRAM), *arguments])


def open_environment(folder: str | None) -> GgufEnvironment:
    """Return the environment of llama.cpp; raises GgufUnavailable if it is missing or incomplete."""
    hint = "Run `make gguf` on this host, and set TUNESMITH_GGUF_ENVIRONMENT to the folder that it prints."
    if folder is None:
        raise GgufUnavailable("This worker has no environment of llama.cpp, so it cannot write GGUF.", hint)
    environment = GgufEnvironment(Path(folder))
    for path in (environment.python, environment.llama_cpp / "convert_hf_to_gguf.py"):
        if not path.is_file():
            raise GgufUnavailable(f"The environment of llama.cpp is incomplete: {path} is missing.", hint)
    return environment


def write_whole(
    environment: GgufEnvironment,
    formats: Sequence[ExportFormat],
    model: Path,
    target: Path,
    work: Path,
    reference: Sequence[ReferencePrompt],
    pre_tokenizer: str | None,
) -> dict[str, dict[str, float]]:
    """Write whole weights in some formats to `target`; return the differences by file."""
    f16 = work / "f16.gguf"
    environment.convert(
        "convert_hf_to_gguf.py", [str(model), "--outfile", str(f16), "--outtype", "f16"], pre_tokenizer
    )
    differences = {}
    for form in formats:
        path = target / f"model-{FILES[form]}"
        if form is ExportFormat.gguf_f16:
            os.link(f16, path)
        else:
            environment.run_llama("quantize", str(f16), str(path), form.value.removeprefix("gguf_"))
        differences[path.name] = _check(environment, form, path, None, work, reference)
    return differences


def write_adapter(
    environment: GgufEnvironment,
    base: Path,
    adapter: Path,
    target: Path,
    work: Path,
    reference: Sequence[ReferencePrompt],
    pre_tokenizer: str | None,
) -> dict[str, dict[str, float]]:
    """Write the adapter alone; it is compared on its base, for which a temporary file is made."""
    path, whole = target / FILES[ExportFormat.gguf_adapter], work / "base.gguf"
    options = ["--outtype", "f16"]
    environment.convert(
        "convert_lora_to_gguf.py", [str(adapter), "--base", str(base), "--outfile", str(path), *options]
    )
    environment.convert(
        "convert_hf_to_gguf.py", [str(base), "--outfile", str(whole), *options], pre_tokenizer
    )
    return {path.name: _check(environment, ExportFormat.gguf_adapter, whole, path, work, reference)}


def _check(
    environment: GgufEnvironment,
    form: ExportFormat,
    model: Path,
    lora: Path | None,
    work: Path,
    reference: Sequence[ReferencePrompt],
) -> dict[str, float]:
    request, response = work / "request.json", work / "response.json"
    request.write_text(json.dumps([{"text": prompt.text, "ids": prompt.ids} for prompt in reference]))
    environment.run_llama("evaluate", str(model), str(lora or ""), str(request), str(response))
    answers = json.loads(response.read_text(encoding="utf-8"))
    name = (lora or model).name
    for prompt, answer in zip(reference, answers, strict=True):
        if prompt.ids != answer["ids"]:
            raise ExportDiffers(
                f"The tokenizer of {name} splits a text otherwise than the trained model's: {prompt.text!r}.",
                "Set `pre_tokenizer` to the one of llama.cpp that suits the model.",
            )
    return compare(name, reference, [answer["logprobs"] for answer in answers], TOLERANCES[form])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()[-ERROR_LINES:]
        hint = "The converter of llama.cpp does not support every model; export safetensors instead."
        if any("pre-tokenizer was not recognized" in line for line in done.stderr.splitlines()):
            hint = "llama.cpp does not know the tokenizer: set `pre_tokenizer`, for example to `gpt-2`."
        raise ConversionFailed(f"llama.cpp cannot convert the model: {' '.join(lines)}", hint)
