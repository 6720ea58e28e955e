"""Ranges and conditions of requests for files, by RFC 9110."""

import pytest
from starlette.datastructures import Headers

from app.downloads.ranges import ByteRange, RangeNotSatisfiable, find_range, is_unchanged

ETAG = '"abc"'


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", ByteRange(0, 1)),
        ("bytes=2-", ByteRange(2, 10)),
        ("bytes=-3", ByteRange(7, 10)),
        ("bytes=-99", ByteRange(0, 10)),
        ("bytes=5-999999999", ByteRange(5, 10)),
        ("BYTES = 1 - 2", ByteRange(1, 3)),
        ("bytes=3-1", None),
        ("bytes=-", None),
        ("bytes=0-1,4-5", None),
        ("rows=0-1", None),
        ("bytes=\xb2-", None),
        ("bytes=0-" + "9" * 30, None),
    ],
)
def test_a_range_is_a_part_of_the_file_or_ignored(header: str, expected: ByteRange | None) -> None:
    assert find_range(Headers({"range": header}), ETAG, 10) == expected


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=11-12", "bytes=-0"])
def test_a_range_after_the_end_is_refused_with_the_size(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable) as refused:
        find_range(Headers({"range": header}), ETAG, 10)
    assert (refused.value.status, refused.value.headers) == (416, {"Content-Range": "bytes */10"})


def test_an_empty_file_has_no_satisfiable_range() -> None:
    with pytest.raises(RangeNotSatisfiable):
        find_range(Headers({"range": "bytes=0-"}), ETAG, 0)
    with pytest.raises(RangeNotSatisfiable):
        find_range(Headers({"range": "bytes=-1"}), ETAG, 0)


@pytest.mark.parametrize(
    ("tag", "is_part"), [(ETAG, True), ('"old"', False), (f"W/{ETAG}", False), ("Sat, 28 Nov 2026", False)]
)
def test_a_range_of_another_version_is_the_whole_file(tag: str, is_part: bool) -> None:
    assert (find_range(Headers({"range": "bytes=1-", "if-range": tag}), ETAG, 10) is not None) is is_part


@pytest.mark.parametrize(
    ("tags", "unchanged"), [(ETAG, True), (f'"x", W/{ETAG}', True), ("*", True), ('"x"', False), ("", False)]
)
def test_a_client_with_the_same_content_gets_none(tags: str, unchanged: bool) -> None:
    assert is_unchanged(Headers({"if-none-match": tags}), ETAG) is unchanged
