"""The check of a file without a service, by the code with which the service checks an upload."""

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from app.client.api.errors import ClientError
from app.client.views.datasets import DataReport

if TYPE_CHECKING:
    from trainers.data.conversion.csv_table import CsvOptions

# A file larger than any upload: its rows are not stored.
MAX_CONVERTED_BYTES = 1 << 40


class FileUncheckable(ClientError):
    """The file cannot be checked on this machine."""


def check_file(path: Path, delimiter: str | None = None, encoding: str | None = None) -> DataReport:
    """Return the report that an upload of the file would get; raises FileUncheckable."""
    # Imported here, because `import tunesmith` needs none of it.
    from trainers.data.conversion.to_json_lines import convert_to_json_lines
    from trainers.data.validate import validate_conversion, validate_file

    require_readable(path)
    options = read_options(delimiter, encoding)
    with tempfile.TemporaryDirectory(prefix="tunesmith-check-") as folder:
        rows = Path(folder) / "rows.jsonl"
        conversion = convert_to_json_lines(path, path.name, rows, options, MAX_CONVERTED_BYTES)
        report = validate_file(path) if conversion is None else validate_conversion(rows, conversion)
    return DataReport.model_validate(report.model_dump(mode="json"))


def require_readable(path: Path) -> None:
    """Raise FileUncheckable if the file cannot be read on this machine."""
    from trainers.data.conversion.to_json_lines import PARQUET_MAGIC

    try:
        with path.open("rb") as file:
            is_parquet = file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC
    except OSError as error:
        raise FileUncheckable(f"The file {path} cannot be read: {error.strerror}.") from error
    if is_parquet and find_spec("pyarrow") is None:
        raise FileUncheckable(
            f"The file {path} is Parquet, which is read by the package pyarrow; it is not installed.",
            "Install it with `pip install pyarrow`, or push the file: the service checks it.",
        )


def read_options(delimiter: str | None, encoding: str | None) -> "CsvOptions":
    """Return how to read a CSV file; raises FileUncheckable for an unknown delimiter or encoding."""
    from trainers.data.conversion.csv_table import CsvOptions, Delimiter, TextEncoding

    for name, value, kind in (("delimiter", delimiter, Delimiter), ("encoding", encoding, TextEncoding)):
        if value is not None and value not in list(kind):
            raise FileUncheckable(f"The {name} {value!r} is unknown.", f"Expected one of {', '.join(kind)}.")
    return CsvOptions(
        Delimiter(delimiter) if delimiter else None, TextEncoding(encoding) if encoding else None
    )
