import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shared_data import SharedData
from trainers.data.faults import Fault, FaultCode, share_by_code
from trainers.data.formats import Row, RowFormat
from trainers.data.validate import validate_file

REPOSITORY = Path(__file__).parents[4]

CLEAN: dict[RowFormat, list[Row]] = {
    RowFormat.messages: [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}]}
        for n in range(5)
    ],
    RowFormat.prompt: [
        {
            "messages": [{"role": "user", "content": f"q{n}"}],
            "reference": {"answer": "a sentence of six words"},
        }
        for n in range(5)
    ],
    RowFormat.prompt_completion: [{"prompt": f"q{n}", "completion": "a"} for n in range(5)],
    RowFormat.instruction: [{"instruction": f"q{n}", "response": "a"} for n in range(5)],
    RowFormat.alpaca: [{"instruction": "do", "input": f"q{n}", "output": "a"} for n in range(5)],
    RowFormat.sharegpt: [
        {"conversations": [{"from": "human", "value": f"q{n}"}, {"from": "gpt", "value": "a"}]}
        for n in range(5)
    ],
    RowFormat.question_answer: [{"question": f"q{n}", "answer": "a"} for n in range(5)],
    RowFormat.llama: [{"text": f"<s>[INST] q{n} [/INST] a </s>"} for n in range(5)],
    RowFormat.text: [{"text": f"Document {n}."} for n in range(5)],
    RowFormat.preference: [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(5)],
}


def test_a_conversation_without_completion_is_a_prompt_only_if_it_has_fields_for_graders(
    write: Callable[..., Path],
) -> None:
    question = {"messages": [{"role": "user", "content": "q"}]}
    graded = {**question, "reference": "a"}
    answered = {"messages": [*question["messages"], {"role": "assistant", "content": "a"}]}
    assert validate_file(write(graded)).format is RowFormat.prompt
    assert validate_file(write(question)).faults[0].code is FaultCode.no_assistant_turn
    mixed = validate_file(write(answered, answered, graded))
    assert (mixed.format, mixed.faults[0].code) == (RowFormat.messages, FaultCode.no_assistant_turn)


def rows(count: int) -> list[Row]:
    return [{"question": f"q{n}", "answer": "a"} for n in range(count)]


@pytest.mark.parametrize("row_format", list(RowFormat))
def test_a_clean_file_of_each_format_is_met_with_silence(
    write: Callable[..., Path], row_format: RowFormat
) -> None:
    report = validate_file(write(*CLEAN[row_format]))
    assert (report.format, report.row_count, report.valid_row_count) == (row_format, 5, 5)
    assert (report.fault_count, report.faults, report.warning_count, report.warnings) == (0, [], 0, [])


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{'question': 'q'}\n", FaultCode.invalid_json),
        (b'{"question": "q"}\r{"answer": "a"}\n', FaultCode.bare_carriage_return),
        (b'{"question": "\xb0\xa1", "answer": "a"}\n', FaultCode.invalid_utf8),
        (b'\xef\xbb\xbf{"question": "q", "answer": "a"}\n', FaultCode.byte_order_mark),
        (b'{"question": "q\0", "answer": "a"}\n', FaultCode.nul_byte),
        (b'{"question": "q", "answer": NaN}\n', FaultCode.not_finite_number),
        (b'{"question": "q", "answer": ' + b"1" * 5000 + b"}\n", FaultCode.number_too_long),
        (b'{"question": ' + b"[" * 9999 + b"]" * 9999 + b"}\n", FaultCode.too_deep),
        (b'{"question": [' + b"{}," * 1_000_001 + b"{}]}\n", FaultCode.too_complex),
        (b'{"question": "\\udc00", "answer": "a"}\n', FaultCode.lone_surrogate),
        (b'{"question": "' + b"q" * (17 * 2**20) + b'", "answer": "a"}\n', FaultCode.line_too_long),
        (b'["q", "a"]\n', FaultCode.not_an_object),
        (b'{"words": "q"}\n', FaultCode.unknown_format),
        (b'{"prompt": "q", "completion": "a"}\n', FaultCode.other_format),
        (b'{"question": "q"}\n', FaultCode.missing_field),
        (b'{"question": "q", "answer": 3}\n', FaultCode.wrong_type),
        (b'{"question": "q", "answer": " "}\n', FaultCode.empty_text),
    ],
    ids=lambda value: str(value) if isinstance(value, FaultCode) else "",
)
def test_one_bad_line_is_one_fault_with_its_number(
    write: Callable[..., Path], line: bytes, code: FaultCode
) -> None:
    report = validate_file(write(*rows(4), b"\n", line, {"question": "last", "answer": "a"}))
    (fault,) = report.faults
    assert (fault.line, fault.code, report.fault_counts) == (6, code, {code: 1})
    assert (report.row_count, report.valid_row_count, report.warning_count) == (6, 5, 1)


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "empty_file"), (b"\n" * 100_000, "empty_file"), (b"[\n{}\n]\n", "json_array")],
)
def test_a_fault_of_the_whole_file_has_no_line(write: Callable[..., Path], content: bytes, code: str) -> None:
    report = validate_file(write(content))
    (fault,) = report.faults
    assert (fault.line, fault.code, report.row_count, report.format) == (None, code, 0, None)


def test_a_truncated_file_has_a_fault_in_its_last_line(write: Callable[..., Path]) -> None:
    report = validate_file(write(*rows(3), b'{"question": "q", "ans'))
    assert [(fault.line, fault.code) for fault in report.faults] == [(4, "truncated_line")]


def test_a_last_line_without_its_newline_is_a_row(write: Callable[..., Path]) -> None:
    assert validate_file(write(*rows(3), b'{"question": "q", "answer": "a"}')).valid_row_count == 4


def test_a_byte_order_mark_and_windows_line_endings_are_accepted(write: Callable[..., Path]) -> None:
    lines = [json.dumps(row).encode() + b"\r\n" for row in rows(3)]
    report = validate_file(write(b"\xef\xbb\xbf" + lines[0], *lines[1:]))
    assert (report.valid_row_count, report.fault_count, report.warning_count) == (3, 0, 0)


def test_the_format_of_most_first_rows_decides_and_the_first_wins_a_tie(write: Callable[..., Path]) -> None:
    other = {"prompt": "q", "completion": "a"}
    assert validate_file(write(other, *rows(2))).format is RowFormat.question_answer
    tied = validate_file(write({"words": "?"}, other, *rows(1)))
    assert tied.format is RowFormat.prompt_completion
    assert tied.fault_counts == {"unknown_format": 1, "other_format": 1}


def test_rows_of_no_known_format_are_each_a_fault(write: Callable[..., Path]) -> None:
    report = validate_file(write({"words": "a"}, {"words": "b"}))
    assert (report.format, report.fault_counts) == (None, {"unknown_format": 2})


def test_warnings_leave_a_row_valid(write: Callable[..., Path]) -> None:
    row, twice = rows(1)[0], b'{"question": "x", "question": "y", "answer": "a"}\n'
    report = validate_file(write(row, twice, b"\n", row))
    assert (report.valid_row_count, report.fault_count, report.statistics.duplicates) == (3, 0, 1)
    found = [(warning.line, warning.code) for warning in report.warnings]
    assert found == [(2, "duplicate_key"), (3, "blank_line"), (4, "duplicate_row")]
    assert "line 1" in report.warnings[2].message


def test_all_faults_are_counted_though_only_the_first_are_kept(write: Callable[..., Path]) -> None:
    report = validate_file(write(*rows(1), *[b"x\n"] * 50), max_faults=3)
    assert [fault.line for fault in report.faults] == [2, 3, 4]
    assert (report.fault_count, report.fault_counts) == (50, {"invalid_json": 50})


def test_a_frequent_fault_hides_no_other_one(write: Callable[..., Path]) -> None:
    empty, unreadable = {"question": "", "answer": "a"}, b"x\n"
    twice = b'{"question": "x", "question": "y", "answer": "a"}\n'
    report = validate_file(write(*rows(2), *[empty] * 300, *[unreadable] * 3, *[twice] * 200, b"\n"))
    assert report.fault_counts == {"empty_text": 300, "invalid_json": 3}
    assert [fault.line for fault in report.faults] == [*range(3, 100), 303, 304, 305]
    assert report.warnings[-1].code == "blank_line" and len(report.warnings) == 100


@given(st.lists(st.sampled_from(list(FaultCode)[:6]), max_size=60), st.integers(1, 12))
def test_each_code_keeps_its_first_faults_up_to_an_equal_share(codes: list[FaultCode], limit: int) -> None:
    faults = [Fault(line=line, code=code, message="") for line, code in enumerate(codes)]
    kept, counts = share_by_code(faults, limit), Counter(codes)
    n_kept = Counter(fault.code for fault in kept)
    assert len(kept) == min(limit, len(codes)) and kept == sorted(kept, key=lambda fault: fault.line or 0)
    for code, count in counts.items():
        first = [fault for fault in faults if fault.code is code]
        assert [fault for fault in kept if fault.code is code] == first[: n_kept[code]]
        assert n_kept[code] == count or n_kept[code] >= max(n_kept.values()) - 1


def test_statistics_describe_the_valid_rows_only(write: Callable[..., Path]) -> None:
    lengths = range(1, 102)
    valid = [{"question": "q" * n, "answer": f"{n:03}"} for n in lengths]
    statistics = validate_file(write(*valid, {"question": "q" * 9999, "answer": ""})).statistics
    prompt, completion = statistics.prompt_characters, statistics.completion_characters
    assert prompt is not None
    assert prompt.model_dump() == {
        "min": 1,
        "mean": 51,
        "p50": 51,
        "p95": 96,
        "max": 101,
    }
    assert completion is not None
    assert (completion.min, completion.max) == (3, 3)
    assert statistics.turns is not None
    assert (statistics.turns.max, statistics.roles) == (2, {"user": 101, "assistant": 101})


def test_percentiles_of_a_long_file_come_from_a_sample_near_the_truth(write: Callable[..., Path]) -> None:
    content = b"".join(b'{"question": "%s", "answer": "a"}\n' % (b"q" * (n // 30 + 1)) for n in range(30_000))
    prompt = validate_file(write(content)).statistics.prompt_characters
    assert prompt is not None
    assert (prompt.min, prompt.mean, prompt.max) == (1, 500.5, 1000)
    assert abs(prompt.p50 - 500) < 25
    assert abs(prompt.p95 - 950) < 15


def test_a_report_survives_json(write: Callable[..., Path]) -> None:
    report = validate_file(write(*rows(2), b"broken\n", b"\n"))
    assert type(report).model_validate_json(report.model_dump_json()) == report


def _mangle(seed: int) -> bytes:
    rng = random.Random(seed)
    content = bytearray(
        "".join(json.dumps(row[0], ensure_ascii=False) + "\n" for row in CLEAN.values()), "utf-8"
    )
    for _ in range(rng.randrange(1, 30)):
        place = rng.randrange(len(content))
        piece = rng.choice(
            [rng.randbytes(2), b"[", b"{", b'"', b"\n", b"\r", b"null", b"\\ud800", b"1e999", b""]
        )
        content[place : place + rng.randrange(4)] = piece
    return bytes(content)


@pytest.mark.parametrize("make", [_mangle, lambda seed: random.Random(seed).randbytes(seed * 7)])
def test_no_bytes_crash_the_validation(write: Callable[..., Path], make: Callable[[int], bytes]) -> None:
    for seed in range(400):
        content = make(seed)
        report = validate_file(write(content))
        lines = content.count(b"\n") + 1
        assert report.fault_count == sum(report.fault_counts.values())
        assert report.valid_row_count <= report.row_count <= lines
        assert report.fault_count or report.valid_row_count == report.row_count
        assert all(
            fault.line is None or 1 <= fault.line <= lines for fault in report.faults + report.warnings
        )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
@pytest.mark.parametrize("make", [lambda: b"[]," * 5_000_000, lambda: b'"\xe4\xb8\xad",' * 2_700_000])
def test_hostile_rows_use_less_than_half_a_gibibyte_of_memory(
    write: Callable[..., Path], make: Callable[[], bytes]
) -> None:
    line = b'{"question": "q", "answer": "a", "x": [' + make() + b"0]}\n"
    path = write(line, line, line)
    # Not from getrusage, whose maximum a child inherits from its parent.
    program = (
        "import re, sys; from pathlib import Path; from trainers.data.validate import validate_file\n"
        "validate_file(Path(sys.argv[1]))\n"
        "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    child = subprocess.run(
        [sys.executable, "-c", program, path], cwd=REPOSITORY, capture_output=True, check=True
    )
    assert int(child.stdout) < 512 * 2**10


def test_gsm8k_is_clean(shared_data: SharedData) -> None:
    report = validate_file(shared_data.gsm8k / "train.jsonl")
    assert (report.format, report.valid_row_count) == (RowFormat.question_answer, shared_data.train_count)
    assert (report.fault_count, report.warning_count) == (0, 0)


def test_korean_sentences_make_a_clean_file(write: Callable[..., Path], shared_data: SharedData) -> None:
    folder = shared_data.news
    pairs = zip(
        *((folder / f"train.{language}").read_text("utf-8").splitlines() for language in ("ko", "en")),
        strict=True,
    )
    report = validate_file(write(*({"prompt": korean, "completion": english} for korean, english in pairs)))
    assert report.format is RowFormat.prompt_completion
    assert report.fault_count == 0
    assert report.valid_row_count == shared_data.pair_count


def test_a_field_that_no_format_reads_is_one_warning_with_its_count(write: Callable[..., Path]) -> None:
    read = {"prompt": "q", "completion": "a", "id": "7", "source": "web", "category": "a b"}
    unread = [read | {"context": f"Berlin {n}", "prompt": f"q{n}"} for n in range(3)]
    report = validate_file(write(read, *unread, read | {"prompt": "p", "images": ["cat.png"]}))
    assert (report.valid_row_count, report.warning_counts) == (5, {"field_not_read": 2})
    assert [(fault.line, fault.field) for fault in report.warnings] == [(2, "context"), (5, "images")]
    assert "`context` in 3 rows is not read" in report.warnings[0].message
