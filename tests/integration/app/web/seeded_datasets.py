"""Datasets with and without faults, many datasets, and a preview, for tests and screenshots of the pages."""

import json
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from app.datasets import service
from app.datasets.form import UploadedFile
from app.settings import get_settings
from app.storage.database import insert_rows, transaction
from app.tables import Dataset, Job, Run, RunStatus
from app.tables.base import new_id, new_row, utc_now
from trainers.configs import PrepareConfig, Queue, StageKind
from trainers.data.conversion.csv_table import CsvOptions
from trainers.data.formats import RowFormat

QUESTIONS = (
    ("대한민국의 수도는 어디인가요?", "서울입니다. 조선이 1394년에 도읍을 옮긴 뒤로 줄곧 수도였습니다."),
    ("Translate into Korean: The train leaves at noon.", "기차는 정오에 출발합니다."),
    ("What is <b>7 × 8</b>?", "7 × 8 = 56."),
)
FAULTY_CSV = "prompt,completion\n안녕하세요?,네\nWhat is 2 + 2?,\n=1+1,two\nonly one column\n"


def add_dataset(name: str = "ko-chat", n: int = 45) -> str:
    """Store a dataset of conversations, and return its id."""
    rows = [
        {"messages": [{"role": "user", "content": f"{n}. {ask}"}, {"role": "assistant", "content": answer}]}
        for n in range(n)
        for ask, answer in (QUESTIONS[n % len(QUESTIONS)],)
    ]
    return _store(f"{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def add_sums(name: str = "sums") -> str:
    """Store a dataset whose answers end with a number, and return its id."""
    rows = [{"question": f"{n} + 1?", "answer": f"It is {n + 1}.\n#### {n + 1}"} for n in range(9)]
    return _store(f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def add_faulty_dataset(name: str = "support-export") -> str:
    """Store a CSV file with faults, and return its id."""
    return _store(f"{name}.csv", FAULTY_CSV)


def add_many_datasets(count: int) -> list[str]:
    """Insert datasets without files, and return their ids, oldest first."""
    at = utc_now() - timedelta(days=20)
    rows = [
        new_row(
            Dataset,
            id=new_id("dataset"),
            name=f"part-{n:04d}",
            sha256=f"{n:064x}",
            artifact=f"datasets/none-{n}.jsonl",
            size_bytes=1000 + n,
            row_count=n + 1,
            format=RowFormat.messages,
            created_at=at + timedelta(minutes=n),
        ).model_dump()
        for n in range(count)
    ]
    with transaction() as session:
        insert_rows(session, Dataset, rows)
    return [row["id"] for row in rows]


def add_preview(dataset_id: str, status: RunStatus = RunStatus.succeeded) -> str:
    """Insert a run that has rendered the first rows of a dataset, and return the id of its job."""
    stage = PrepareConfig(stage="prepare", base="starter", dataset=dataset_id)
    config = stage.model_dump(mode="json")
    job = Job(name="preview of ko-chat", spec={"name": "preview", "stages": [config]})
    run: Run = new_row(
        Run, job_id=job.id, position=0, name="prepare", full_name="preview-prepare", stage=StageKind.prepare,
        queue=Queue.cpu, config=config, status=status, result={"stage": "prepare", "rows": _token_rows()},
    )  # fmt: skip
    with transaction() as session:
        session.add(job)
        session.flush()
        session.add(run)
    return job.id


def _store(filename: str, text: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "upload"
        path.write_text(text, encoding="utf-8")
        upload = UploadedFile(path, filename)
        limit = get_settings().max_upload_bytes
        dataset, _ = service.create_from_upload(upload, Path(filename).stem, CsvOptions(), limit)
    return dataset.id


def _token_rows() -> list[dict[str, Any]]:
    return [
        {
            "row": line,
            "turn": 1,
            "text": "",
            "tokens": [
                {"text": f"<|user|>\n{ask}\n", "loss": False},
                {"text": "<|assistant|>\n", "loss": False},
                {"text": answer[:4], "loss": True},
                {"text": answer[4:], "loss": True},
                {"text": "<|end|>", "loss": True},
            ],
            "token_count": 38,
            "loss_token_count": 17,
            "truncated": line == 2,
        }
        for line, (ask, answer) in enumerate(QUESTIONS, 1)
    ]
