"""The datasets in a real browser: upload with progress by choice and by drop, faults, live preview."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from app.storage.database import transaction
from app.tables import Dataset
from tests.e2e.web.conftest import Pages
from tests.integration.app.web import seeded_datasets

DROP = """([name, text]) => {
    const data = new DataTransfer();
    data.items.add(new File([text], name));
    for (const type of ["dragover", "drop"]) {
        const options = { dataTransfer: data, bubbles: true, cancelable: true };
        document.body.dispatchEvent(new DragEvent(type, options));
    }
}"""


@pytest.fixture(scope="module")
def dataset_ids(service: object) -> Iterator[dict[str, str]]:
    seeded_datasets.add_many_datasets(1000)
    ids = {"faulty": seeded_datasets.add_faulty_dataset(), "good": seeded_datasets.add_dataset()}
    seeded_datasets.add_preview(ids["good"])
    yield ids


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/datasets", "datasets"),
        ("/datasets/{good}", "dataset"),
        ("/datasets/{faulty}", "dataset-faults"),
        ("/datasets/{good}/rows", "dataset-rows"),
    ],
)
def test_pages_of_datasets_are_accessible(
    pages: Pages, dataset_ids: dict[str, str], path: str, name: str
) -> None:
    pages.look(path.format(**dataset_ids), name)


def test_a_chosen_file_is_uploaded_and_its_faults_are_shown(pages: Pages, tmp_path: Path) -> None:
    file = tmp_path / "chosen.jsonl"
    file.write_text('{"prompt": "a", "completion": ""}\n{"prompt": "c", "completion": "d"}\n')
    page = pages.open("/datasets")
    page.set_input_files("#upload-file", file)
    page.get_by_role("button", name="Upload").click()
    page.wait_for_url("**/datasets/dataset_*")
    expect(page.locator("#faults-title")).to_have_text("1 fault")
    expect(page.locator(".fault-table")).to_contain_text("completion")
    assert pages.messages == []


def test_a_dropped_file_is_uploaded(pages: Pages) -> None:
    page = pages.open("/datasets")
    page.evaluate(DROP, ["dropped.csv", "prompt,completion\na,b\n"])
    page.wait_for_url("**/datasets/dataset_*")
    expect(page.locator("h1")).to_contain_text("dropped")


def test_a_refused_upload_is_a_notice(pages: Pages) -> None:
    page = pages.open("/datasets")
    page.locator("#upload input[name=name]").fill("x\x7f")
    page.evaluate(DROP, ["a.jsonl", '{"prompt": "a", "completion": "b"}'])
    expect(page.locator("#notices")).to_contain_text("The name is invalid")
    expect(page.locator("#upload-progress")).to_be_hidden()


def test_a_preview_arrives_while_the_page_is_open(pages: Pages, dataset_ids: dict[str, str]) -> None:
    dataset_id = seeded_datasets.add_dataset("new-rows", n=3)
    page = pages.open(f"/datasets/{dataset_id}")
    seeded_datasets.add_preview(dataset_id)
    expect(page.locator("#dataset-tokens mark.loss").first).to_be_visible()
    with transaction() as session:
        session.get_one(Dataset, dataset_id).name = "renamed"
    expect(page.locator("h1")).to_contain_text("renamed")
