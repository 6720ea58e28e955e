"""The files of evaluations and comparisons in the store: their rows, and their reports."""

from pathlib import Path
from typing import Any

from app.downloads.response import Download
from app.downloads.stored_files import read_stored
from app.evaluations.schemas import ReportFormat, RowsFormat
from app.storage.manifest import MANIFEST, ArtifactCorrupt
from app.storage.opening import get_store

REPORTS = {ReportFormat.html: "report.html", ReportFormat.markdown: "report.md"}
ROWS_FILES = {RowsFormat.jsonl: "rows.jsonl", RowsFormat.parquet: "rows.parquet"}
MEDIA_TYPES = {
    "report.html": "text/html; charset=utf-8",
    "report.md": "text/markdown; charset=utf-8",
    "rows.jsonl": "application/jsonl",
    "rows.parquet": "application/vnd.apache.parquet",
}
# A report contains responses of models, which may be any HTML: nothing in it may run or load anything.
REPORT_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def fetch_stored_file(key: str, sha256: str, name: str) -> Path:
    """Return a file of the folder on this host, verified; raises ArtifactCorrupt."""
    entry = _find_entry(key, sha256, name)
    try:
        return get_store().fetch_file(f"{key}/{name}", entry["sha256"])
    except FileNotFoundError as error:
        raise ArtifactCorrupt(key, f"{name} is missing") from error


def find_report(owner: str, key: str, sha256: str, form: ReportFormat) -> Download:
    """Return the report of an evaluation or a comparison to send; raises ArtifactCorrupt."""
    return _find_download(owner, key, sha256, REPORTS[form], is_inline=True)


def find_rows(owner: str, key: str, sha256: str, form: RowsFormat) -> Download:
    """Return all rows of an evaluation or a comparison to send; raises ArtifactCorrupt."""
    return _find_download(owner, key, sha256, ROWS_FILES[form])


def _find_download(owner: str, key: str, sha256: str, name: str, *, is_inline: bool = False) -> Download:
    entry = _find_entry(key, sha256, name)
    return Download(
        filename=f"{owner}{Path(name).suffix}",
        media_type=MEDIA_TYPES[name],
        size_bytes=entry["size_bytes"],
        etag=f'"{entry["sha256"]}"',
        open=lambda part: read_stored(f"{key}/{name}", entry["sha256"], part),
        is_inline=is_inline,
        headers=REPORT_HEADERS if is_inline else {},
    )


def _find_entry(key: str, sha256: str, name: str) -> dict[str, Any]:
    try:
        manifest = get_store().read_manifest(key, sha256)
    except FileNotFoundError as error:
        raise ArtifactCorrupt(key, f"{MANIFEST} is missing") from error
    entry = next((file for file in manifest if file["path"] == name), None)
    if entry is None:
        raise ArtifactCorrupt(key, f"{name} is not in its manifest")
    return entry
