"""Faults of a whole file, detected from its first bytes."""

from typing import BinaryIO, Final

from trainers.data.faults import Fault, FaultCode

UTF8_MARK: Final = b"\xef\xbb\xbf"
HEAD_BYTES: Final = 2**16
# A single line in another encoding is a fault of that line; three, and none in UTF-8, a fault of the file.
MIN_UNDECODABLE_LINES: Final = 3

COMPRESSED: Final = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"\xfd7zXZ\x00": ("xz", "unxz"),
    b"BZh": ("bzip2", "bunzip2"),
}
OTHER_KINDS: Final = {
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack or export it",
    b"PK\x05\x06": "an empty zip archive; upload the rows themselves",
    b"PAR1": "a Parquet file; an upload converts it, and pandas' to_json(orient='records', lines=True) too",
    b"ARROW1": "an Arrow file; export it with pandas' to_json(orient='records', lines=True)",
    b"ORC": "an ORC file; export it with pandas' to_json(orient='records', lines=True)",
    b"Obj\x01": "an Avro file; export its records as JSON",
    b"%PDF": "a PDF document; convert its text to rows",
    b"\xd0\xcf\x11\xe0": "an old Office document; export it",
    b"SQLite format 3\x00": "an SQLite database; export the table as rows",
    b"\x89HDF": "an HDF5 file; export it",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with `git lfs pull`",
    b"<": "an HTML or XML page, often the response to a download without login; download the file again",
    b"\x00\x00": "zero bytes at its start, which a failed copy leaves; upload it again",
}


def find_file_fault(file: BinaryIO) -> Fault | None:
    """Return the fault that makes every line of a file unreadable, or None; leaves the file at its start."""
    head = file.read(HEAD_BYTES)
    file.seek(0)
    return _binary_fault(head) or _encoding_fault(head) or _layout_fault(head.removeprefix(UTF8_MARK))


def empty_file_fault() -> Fault:
    """Return the fault of a file without rows."""
    return Fault(
        code=FaultCode.empty_file, message="The file contains no rows: write one JSON object per line."
    )


def _binary_fault(head: bytes) -> Fault | None:
    for magic, (kind, command) in COMPRESSED.items():
        if head.startswith(magic):
            return Fault(
                code=FaultCode.compressed_file,
                message=f"The file is compressed with {kind}: decompress it with `{command}` first.",
            )
    if head.startswith((b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        return None
    for magic, kind in OTHER_KINDS.items():
        if head.startswith(magic):
            return Fault(code=FaultCode.not_jsonl, message=f"The file is not JSONL: it is {kind}.")
    return None


def _encoding_fault(head: bytes) -> Fault | None:
    if encoding := _wide_encoding(head):
        return Fault(
            code=FaultCode.wrong_encoding,
            message=(
                f"The file is encoded as {encoding} instead of UTF-8: convert it with "
                f"`iconv -f {encoding} -t UTF-8`."
            ),
        )
    if _has_only_undecodable_lines(head):
        return Fault(
            code=FaultCode.wrong_encoding,
            message=(
                "The file is not encoded as UTF-8: convert it from its encoding, for example with "
                "`iconv -f CP949 -t UTF-8` for Korean text or `iconv -f WINDOWS-1252 -t UTF-8` for "
                "English text."
            ),
        )
    return None


def _layout_fault(head: bytes) -> Fault | None:
    start = head.lstrip()
    if not start and len(head) < HEAD_BYTES:
        return empty_file_fault()
    if start.startswith(b"["):
        return Fault(
            code=FaultCode.json_array,
            message="The file is a single JSON array instead of one object per line: convert it with `jq "
            "-c '.[]'`.",
        )
    first_line, newline, rest = start.partition(b"\n")
    if first_line.strip() == b"{" and newline and not rest.lstrip().startswith(b"{"):
        return Fault(
            code=FaultCode.pretty_printed,
            message="Each object spans several lines: write one object per line, with `jq -c .`.",
        )
    return None


def _wide_encoding(head: bytes) -> str | None:
    if head.startswith((b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")):
        return "UTF-32"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    start = head.lstrip(b"\r\n\t ")[:4]
    if start[:1] in (b"{", b"[") and start[1:2] == b"\x00":
        return "UTF-32LE" if start[2:4] == b"\x00\x00" else "UTF-16LE"
    return "UTF-16BE" if start[:2] in (b"\x00{", b"\x00[") else None


def _has_only_undecodable_lines(head: bytes) -> bool:
    lines = head.split(b"\n")[:-1] if len(head) == HEAD_BYTES else head.split(b"\n")
    foreign = [line for line in lines if not line.isascii()]
    return len(foreign) >= MIN_UNDECODABLE_LINES and not any(_is_utf8(line) for line in foreign)


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
