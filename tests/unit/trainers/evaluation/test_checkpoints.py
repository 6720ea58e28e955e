"""Completions and the answers of judges survive an attempt that ends, by a checkpoint of both."""

from pathlib import Path

from trainers.evaluation.checkpoints import publish_unsaved, restore_completions
from trainers.runtime import run_dir as files


def test_judgements_are_saved_with_the_completions_and_restored(tmp_path: Path) -> None:
    output, judged = tmp_path / "responses.jsonl", tmp_path / "judge_score.judgements.jsonl"
    output.write_text("{}\n{}\n")
    publish_unsaved(output)
    judged.write_text("{}\n")
    publish_unsaved(output)
    assert [checkpoint.step for checkpoint in files.checkpoints(tmp_path)][-1] == 3
    output.unlink()
    judged.unlink()
    restore_completions(output)
    assert (output.read_text(), judged.read_text()) == ("{}\n{}\n", "{}\n")


def test_a_link_in_place_of_judgements_is_not_followed(tmp_path: Path) -> None:
    output, secret = tmp_path / "responses.jsonl", tmp_path / "secret"
    output.write_text("{}\n")
    secret.write_text("secret\n")
    (tmp_path / "x.judgements.jsonl").symlink_to(secret)
    publish_unsaved(output)
    checkpoint = files.last_complete_checkpoint(tmp_path)
    assert checkpoint is not None and not (checkpoint / "x.judgements.jsonl").exists()
