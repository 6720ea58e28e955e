"""The parity check against real engines that serve the trained model, or one that only looks like it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from serving.engines import find_engine
from serving.engines.engine import EngineRequestFailed
from serving.parity.__main__ import default_precision, program, run_comparison
from serving.parity.prompts import STANDARD_CHATS
from serving.parity.spot_check import passes_spot_check
from tests.integration.serving.conftest import ENVIRONMENT, Server, serving
from tests.integration.serving.make_tiny import BETA_TEMPLATE, TEMPLATE
from trainers.configs.stages.generate import GenerateConfig
from trainers.generate import run as generate
from trainers.runtime.events import EventWriter

BOS = "{{ '<|endoftext|>' }}"


@pytest.fixture(scope="module")
def folders(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return copies of `alpha` and `base`, each modified in one way."""
    folder = tmp_path_factory.mktemp("modified")
    templates = {"template": BETA_TEMPLATE, "bos": BOS + TEMPLATE, "bos-doubled": BOS + BOS + TEMPLATE}
    for name, template in templates.items():
        _copy_adapter(tiny, folder / name, template)
    _copy_adapter(tiny, folder / "scale", TEMPLATE)
    _edit(folder / "scale" / "adapter_config.json", lora_alpha=8)
    for name in ("rope", "tied", "stale", "endless"):
        shutil.copytree(tiny / "base", folder / name)
    _edit(folder / "rope" / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    _edit(folder / "endless" / "tokenizer_config.json", eos_token="<|endoftext|>")
    _edit(folder / "endless" / "generation_config.json", eos_token_id=0)
    _tie(folder / "tied", folder / "stale")
    return folder


@pytest.fixture(scope="module")
def modified(tiny: Path, folders: Path) -> Iterator[Server]:
    """One engine with `base`, `alpha` and every modified adapter."""
    arguments = [
        "--model",
        str(tiny / "base"),
        "--served-name",
        "base",
        "--adapter",
        f"alpha={tiny / 'alpha'}",
    ]
    for name in ("template", "bos", "bos-doubled", "scale"):
        arguments += ["--adapter", f"{name}={folders / name}"]
    with serving(folders / "engine.log", "serving.engines.hf", *arguments) as server:
        yield server.wait_until_ready()


def parity(
    server: Server, name: str, base: Path, adapter: Path | None = None, **options: Any
) -> dict[str, Any]:
    folder = None if adapter is None else str(adapter)
    return run_comparison(find_engine("hf"), server.url, name, str(base), folder, **options)


def test_an_adapter_served_as_it_was_trained_passes(modified: Server, tiny: Path) -> None:
    report = parity(modified, "alpha", tiny / "base", tiny / "alpha")
    assert report["passed"], report["difference"]
    assert report["max_difference"] < 1e-3
    assert report["adapter_scale"] == pytest.approx(1, abs=1e-3)
    assert (report["equal_completions"], report["tied_completions"]) == (report["chats"], 0)


def test_the_spot_check_of_a_passed_report_distinguishes_adapters(modified: Server, tiny: Path) -> None:
    report = parity(modified, "alpha", tiny / "base", tiny / "alpha")
    assert passes_spot_check(find_engine("hf"), modified.url, "alpha", report)
    for name in ("base", "scale", "template"):
        assert not passes_spot_check(find_engine("hf"), modified.url, name, report)


def test_a_wrong_template_is_reported_with_the_first_differing_token(modified: Server, tiny: Path) -> None:
    report = parity(modified, "template", tiny / "base", tiny / "alpha")
    difference = report["difference"]
    assert (report["passed"], difference["kind"]) == (False, "rendering")
    assert difference["expected"] != difference["found"]
    assert difference["position"] > 0


def test_a_missing_beginning_of_sequence_is_named(modified: Server, tiny: Path, folders: Path) -> None:
    difference = parity(modified, "alpha", tiny / "base", folders / "bos")["difference"]
    assert "beginning-of-sequence token is missing" in difference["message"]


def test_a_doubled_beginning_of_sequence_is_named(modified: Server, tiny: Path, folders: Path) -> None:
    difference = parity(modified, "bos-doubled", tiny / "base", folders / "bos")["difference"]
    assert "beginning-of-sequence token occurs twice" in difference["message"]


def test_an_adapter_that_is_ignored_is_named(modified: Server, tiny: Path) -> None:
    report = parity(modified, "base", tiny / "base", tiny / "alpha")
    assert report["difference"]["kind"] == "logprobs"
    assert "the adapter is ignored" in report["difference"]["message"]


def test_an_ignored_adapter_fails_also_with_the_tolerance_of_four_bits(modified: Server, tiny: Path) -> None:
    report = parity(modified, "base", tiny / "base", tiny / "alpha", precision="int4")
    assert not report["passed"]


def test_a_wrong_alpha_is_reported_as_the_adapter_s_strength(modified: Server, tiny: Path) -> None:
    report = parity(modified, "scale", tiny / "base", tiny / "alpha")
    assert report["difference"]["kind"] == "logprobs"
    assert "the engine misreads its alpha or rank" in report["difference"]["message"]


@pytest.mark.parametrize(("served", "trained"), [("rope", "base"), ("stale", "tied")])
def test_whole_weights_that_the_engine_misreads_fail(
    tiny: Path, folders: Path, tmp_path: Path, served: str, trained: str
) -> None:
    base = folders / trained if (folders / trained).exists() else tiny / trained
    arguments = ["--model", str(folders / served), "--served-name", "m"]
    with serving(tmp_path / "log", "serving.engines.hf", *arguments) as server:
        report = parity(server.wait_until_ready(), "m", base)
    assert report["difference"]["kind"] == "logprobs"
    assert report["difference"]["expected"]["id"] == report["difference"]["found"]["id"]


def test_an_engine_that_does_not_know_the_end_of_a_turn_fails(
    tiny: Path, folders: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "say alpha", "completion": "x"}) + "\n")
    arguments = ["--model", str(folders / "endless"), "--served-name", "m"]
    with serving(tmp_path / "log", "serving.engines.hf", *arguments) as server:
        report = parity(server.wait_until_ready(), "m", tiny / "base", dataset=rows)
    assert "the token that ends a turn" in report["difference"]["message"]


def test_a_template_other_than_the_recorded_one_fails(modified: Server, tiny: Path) -> None:
    report = parity(modified, "alpha", tiny / "base", tiny / "alpha", template_sha256="0" * 64)
    assert "the files have changed since" in report["difference"]["message"]


def test_prompts_of_the_training_data_are_compared_too(modified: Server, tiny: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"count {i}", "completion": "x"}) + "\n" for i in range(9)))
    plain = parity(modified, "alpha", tiny / "base", tiny / "alpha")
    report = parity(modified, "alpha", tiny / "base", tiny / "alpha", dataset=rows)
    assert (report["passed"], report["chats"]) == (True, plain["chats"] + 4)


def test_prompts_of_preference_pairs_are_compared_as_in_dpo(
    modified: Server, tiny: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "pairs.jsonl"
    rows.write_text(json.dumps({"prompt": "count", "chosen": "x", "rejected": "y"}) + "\n")
    report = parity(modified, "alpha", tiny / "base", tiny / "alpha", dataset=rows)
    assert (report["passed"], report["chats"]) == (True, len(STANDARD_CHATS) + 1)


def test_the_program_writes_its_report_and_exits_with_its_result(
    modified: Server, tiny: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "serving.parity", "--engine", "hf", "--address", modified.url]
    command += ["--base", str(tiny / "base"), "--adapter", str(tiny / "alpha")]
    command += ["--report", str(tmp_path / "parity.json")]
    differs = subprocess.run([*command, "--name", "scale"], env=ENVIRONMENT, capture_output=True, timeout=240)
    assert differs.returncode == 1, differs.stderr
    assert json.loads((tmp_path / "parity.json").read_text())["passed"] is False


def test_float32_weights_have_the_tolerance_of_the_precision_that_an_engine_uses(tiny: Path) -> None:
    for kind, precision in (("hf", "float32"), ("vllm", "bfloat16"), ("sglang", "bfloat16")):
        assert default_precision(find_engine(kind), str(tiny / "base")) == precision


def test_a_comparison_without_an_engine_exits_with_2(tiny: Path) -> None:
    gone = ["--engine", "hf", "--address", "http://127.0.0.1:1", "--name", "x", "--base", str(tiny / "base")]
    assert CliRunner().invoke(program, gone).exit_code == 2


def _copy_adapter(tiny: Path, target: Path, template: str) -> None:
    """Copy the weights of `alpha`, with a tokenizer of their own that has this template."""
    shutil.copytree(tiny / "alpha", target)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / "base" / name, target / name)
    _edit(target / "tokenizer_config.json", bos_token="<|endoftext|>")
    (target / "chat_template.jinja").write_text(template)


def _tie(tied: Path, stale: Path) -> None:
    """`tied` shares one matrix between input and output; `stale` writes an older one for the output."""
    weights = load_file(tied / "model.safetensors")
    old = weights.pop("lm_head.weight")
    save_file(weights, tied / "model.safetensors", {"format": "pt"})
    _edit(tied / "config.json", tie_word_embeddings=True)
    save_file(weights | {"lm_head.weight": old}, stale / "model.safetensors", {"format": "pt"})


def _edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(scope="module")
def bare(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Server]]:
    """Yield a base without a chat template, and an engine that serves it."""
    folder = tmp_path_factory.mktemp("bare")
    base = folder / "base"
    shutil.copytree(starter, base)
    (base / "chat_template.jinja").unlink()
    arguments = ("--model", str(base), "--served-name", "bare")
    with serving(folder / "engine.log", "serving.engines.hf", *arguments) as server:
        yield base, server.wait_until_ready()


def test_a_model_without_a_template_is_compared_on_texts(bare: tuple[Path, Server], tmp_path: Path) -> None:
    base, server = bare
    dataset = tmp_path / "rows.jsonl"
    rows = [{"text": "A document."}, {"prompt": "How many?\n", "completion": "#### 1"}]
    dataset.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = parity(server, "bare", base, dataset=dataset)
    assert report["passed"], report["difference"]
    assert report["chats"] == 3
    assert isinstance(report["spot_check"]["messages"], str)
    assert passes_spot_check(find_engine("hf"), server.url, "bare", report)


def test_a_chat_with_a_model_without_a_template_names_the_endpoint_to_use(bare: tuple[Path, Server]) -> None:
    _, server = bare
    engine = find_engine("hf")
    with pytest.raises(EngineRequestFailed, match="has no chat template; use /v1/completions") as refused:
        engine.complete(server.url, "bare", [{"role": "user", "content": "Hi"}], 4)
    assert refused.value.status == 400
    assert engine.complete(server.url, "bare", "How many?\n", 4)[1] > 0


def test_generate_continues_the_prompts_of_a_model_without_a_template(
    bare: tuple[Path, Server], tmp_path: Path
) -> None:
    base, server = bare
    dataset = tmp_path / "rows.jsonl"
    dataset.write_text(json.dumps({"prompt": "How many?\n", "completion": "#### 1"}) + "\n")
    config = GenerateConfig.model_validate(
        {"model": str(base), "dataset": str(dataset), "engine_url": server.url, "engine_model": "bare"}
        | {"max_new_tokens": 4}
    )
    result = generate(config, tmp_path, EventWriter(None))
    assert (result["rows"], result["failed"]) == (1, 0)
