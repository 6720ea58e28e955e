"""The files of a split, in a dataset with the hub's layout."""

from pathlib import Path

import pytest

from trainers.data.hub_files import list_data_files, select_data_files

FILES = ["README.md", "main/train-0.parquet", "main/train-1.parquet", "main/test-0.parquet", "run.py"]
CONFIG = "- config_name: {}\n  data_files:\n  - split: train\n    path: {}\n"


def readme(*configs: str) -> str:
    return f"---\nlicense: mit\nconfigs:\n{''.join(configs)}---\n# Data\n"


def test_a_configuration_of_the_readme_names_its_files() -> None:
    text = readme(CONFIG.format("main", "main/train-*"), CONFIG.format("other", "other/*"))
    selected = select_data_files(FILES, text, "main", "train")
    assert selected == ("parquet", ["main/train-0.parquet", "main/train-1.parquet"])
    with pytest.raises(ValueError, match="several subsets; choose one of: main, other"):
        select_data_files(FILES, text, None, "train")
    with pytest.raises(ValueError, match="no subset 'third'"):
        select_data_files(FILES, text, "third", "train")


@pytest.mark.parametrize("path", ["/etc/passwd", "../x.jsonl", "https://evil.example/x.jsonl", "hf://a/b"])
def test_a_readme_names_no_file_elsewhere(path: str) -> None:
    names = [*FILES, "../x.jsonl", "/etc/passwd"]
    with pytest.raises(ValueError, match="no file contains the split"):
        select_data_files(names, readme(CONFIG.format("main", path)), None, "train")


@pytest.mark.parametrize(
    ("files", "split", "expected"),
    [
        (["data.jsonl"], "train", ["data.jsonl"]),
        (["train.jsonl", "test.jsonl"], "train", ["train.jsonl"]),
        (["data/validation-0.jsonl", "data/train-0.jsonl"], "validation", ["data/validation-0.jsonl"]),
        (["dev/rows.jsonl", "train/rows.jsonl"], "validation", ["dev/rows.jsonl"]),
        (["extra_hard.jsonl", "train.jsonl"], "extra_hard", ["extra_hard.jsonl"]),
        (["train.jsonl", "dataset_infos.json", ".git/train.json"], "train", ["train.jsonl"]),
    ],
)
def test_without_a_configuration_the_names_say_which_split(
    files: list[str], split: str, expected: list[str]
) -> None:
    assert select_data_files(files, "# No metadata", None, split) == ("json", expected)


def test_files_of_several_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="several kinds"):
        select_data_files(["train.csv", "train.jsonl"], None, None, "train")


def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="outside the folder"):
        list_data_files(tmp_path / "data")


def test_a_list_in_the_place_of_a_text_is_not_written_out() -> None:
    # With aliases, a few lines of YAML are a list of billions of elements.
    text = readme(CONFIG.format("[main, main]", "[[main/train-*]]"))
    with pytest.raises(ValueError, match="no subset"):
        select_data_files(FILES, text, "['main', 'main']", "train")
    with pytest.raises(ValueError, match="no file contains the split"):
        select_data_files(FILES, text, None, "train")
