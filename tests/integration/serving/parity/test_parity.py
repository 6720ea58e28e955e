"""The parity gate against real engines that serve the trained model, or something that only looks like it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from serving.engines import find_engine
from serving.parity import spot_check
from serving.parity.__main__ import default_precision, main, parser, run_comparison
from serving.parity.prompts import STANDARD_CHATS
from tests.integration.serving.conftest import ENVIRONMENT, Server, serving
from tests.integration.serving.make_tiny import BETA_TEMPLATE, TEMPLATE

BOS = "{{ '<|endoftext|>' }}"


@pytest.fixture(scope="module")
def folders(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of `alpha`, each doctored in one way, and of `base`."""
    folder = tmp_path_factory.mktemp("doctored")
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
def doctored(tiny: Path, folders: Path) -> Iterator[Server]:
    """One engine with `base`, `alpha` and every doctored adapter."""
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


def parity(server: Server, name: str, base: Path, adapter: Path | None = None, *more: str) -> dict[str, Any]:
    arguments = ["--engine", "hf", "--address", server.url, "--name", name, "--base", str(base), *more]
    arguments += [] if adapter is None else ["--adapter", str(adapter)]
    return run_comparison(parser().parse_args(arguments))


def test_an_adapter_served_as_it_was_trained_passes(doctored: Server, tiny: Path) -> None:
    report = parity(doctored, "alpha", tiny / "base", tiny / "alpha")
    assert report["passed"], report["difference"]
    assert report["largest_difference"] < 1e-3
    assert report["adapter_scale"] == pytest.approx(1, abs=1e-3)
    assert (report["equal_answers"], report["explained_answers"]) == (report["chats"], 0)


def test_a_passed_report_holds_a_witness_that_tells_adapters_apart(doctored: Server, tiny: Path) -> None:
    report = parity(doctored, "alpha", tiny / "base", tiny / "alpha")
    assert spot_check.passes_spot_check(find_engine("hf"), doctored.url, "alpha", report)
    for name in ("base", "scale", "template"):
        assert not spot_check.passes_spot_check(find_engine("hf"), doctored.url, name, report)


def test_a_wrong_template_is_told_with_the_first_differing_token(doctored: Server, tiny: Path) -> None:
    report = parity(doctored, "template", tiny / "base", tiny / "alpha")
    difference = report["difference"]
    assert (report["passed"], difference["kind"]) == (False, "rendering")
    assert difference["expected"] != difference["found"]
    assert difference["position"] > 0


def test_a_missing_beginning_of_sequence_is_named(doctored: Server, tiny: Path, folders: Path) -> None:
    difference = parity(doctored, "alpha", tiny / "base", folders / "bos")["difference"]
    assert "beginning-of-sequence token is missing" in difference["message"]


def test_a_doubled_beginning_of_sequence_is_named(doctored: Server, tiny: Path, folders: Path) -> None:
    difference = parity(doctored, "bos-doubled", tiny / "base", folders / "bos")["difference"]
    assert "beginning-of-sequence token stands twice" in difference["message"]


def test_an_adapter_that_is_ignored_is_named(doctored: Server, tiny: Path) -> None:
    report = parity(doctored, "base", tiny / "base", tiny / "alpha")
    assert report["difference"]["kind"] == "logprobs"
    assert "the adapter is ignored" in report["difference"]["message"]


def test_an_ignored_adapter_shows_at_the_tolerance_of_four_bits_too(doctored: Server, tiny: Path) -> None:
    report = parity(doctored, "base", tiny / "base", tiny / "alpha", "--precision", "int4")
    assert not report["passed"]


def test_a_wrong_alpha_is_told_as_the_scale_it_acts_at(doctored: Server, tiny: Path) -> None:
    report = parity(doctored, "scale", tiny / "base", tiny / "alpha")
    assert report["difference"]["kind"] == "logprobs"
    assert "its alpha or rank is misread" in report["difference"]["message"]


@pytest.mark.parametrize(("served", "trained"), [("rope", "base"), ("stale", "tied")])
def test_whole_weights_that_are_read_otherwise_fail(
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
        report = parity(server.wait_until_ready(), "m", tiny / "base", None, "--dataset", str(rows))
    assert "the token that ends a turn" in report["difference"]["message"]


def test_a_template_other_than_the_recorded_one_fails(doctored: Server, tiny: Path) -> None:
    report = parity(doctored, "alpha", tiny / "base", tiny / "alpha", "--template-sha256", "0" * 64)
    assert "have been changed since" in report["difference"]["message"]


def test_prompts_of_the_training_data_are_asked_too(doctored: Server, tiny: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"count {i}", "completion": "x"}) + "\n" for i in range(9)))
    plain = parity(doctored, "alpha", tiny / "base", tiny / "alpha")
    report = parity(doctored, "alpha", tiny / "base", tiny / "alpha", "--dataset", str(rows))
    assert (report["passed"], report["chats"]) == (True, plain["chats"] + 4)


def test_prompts_of_preference_pairs_are_asked_as_dpo_was_trained_on_them(
    doctored: Server, tiny: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "pairs.jsonl"
    rows.write_text(json.dumps({"prompt": "count", "chosen": "x", "rejected": "y"}) + "\n")
    report = parity(doctored, "alpha", tiny / "base", tiny / "alpha", "--dataset", str(rows))
    assert (report["passed"], report["chats"]) == (True, len(STANDARD_CHATS) + 1)


def test_the_program_writes_its_report_and_says_so_by_its_status(
    doctored: Server, tiny: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "serving.parity", "--engine", "hf", "--address", doctored.url]
    command += ["--base", str(tiny / "base"), "--adapter", str(tiny / "alpha")]
    command += ["--report", str(tmp_path / "parity.json")]
    differs = subprocess.run([*command, "--name", "scale"], env=ENVIRONMENT, capture_output=True, timeout=60)
    assert differs.returncode == 1, differs.stderr
    assert json.loads((tmp_path / "parity.json").read_text())["passed"] is False


def test_weights_in_float32_are_held_to_the_16_bits_in_which_an_engine_serves_them(tiny: Path) -> None:
    for kind, precision in (("hf", "float32"), ("vllm", "bfloat16"), ("sglang", "bfloat16")):
        assert default_precision(find_engine(kind), str(tiny / "base")) == precision


def test_an_engine_that_does_not_answer_leaves_it_untold(tiny: Path) -> None:
    gone = ["--engine", "hf", "--address", "http://127.0.0.1:1", "--name", "x", "--base", str(tiny / "base")]
    assert main(gone) == 2


def _copy_adapter(tiny: Path, target: Path, template: str) -> None:
    """The weights of `alpha` with a tokenizer of its own, whose template is this one."""
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
