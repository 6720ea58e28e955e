"""Attacks by the code of a Python grader: it reaches no network, file, process or memory but its own.

The tests need bubblewrap and user namespaces. CI fails without them; elsewhere they are skipped.
"""

import functools
import json
import resource
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.security.regression import Regression, ignore
from tests.services import REQUIRED
from trainers.configs.graders import GRADER, PythonGrader
from trainers.graders import sandbox
from trainers.graders.grade import check_grader_host, grade
from trainers.graders.result import GradeResult, Sample

SECONDS = 120
# Enough for the three processes of a sandbox to start on a busy machine.
SHORT_SECONDS = 5
FAULT = sandbox.find_sandbox_fault()
needs_sandbox = pytest.mark.skipif(
    FAULT is not None and not REQUIRED, reason=f"no sandbox for Python graders: {FAULT}"
)


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(sandbox.ALLOWED_VARIABLE, "true")
    monkeypatch.setenv(sandbox.SECONDS_VARIABLE, str(SECONDS))


def run(body: str, text: str = "fuzzy wuzzy was a bear", **item: str) -> GradeResult:
    source = "def grade(sample, item):\n" + "".join(f"    {line}\n" for line in body.splitlines())
    return grade(GRADER.validate_python({"type": "python", "source": source}), item, Sample(text))


def faults(*statements: str) -> list[str]:
    """Return the name of the exception that each statement raises in one sandbox; `none` without one."""
    body = f"""names = []
for statement in {list(statements)!r}:
    try:
        exec(statement)
        names.append("none")
    except BaseException as error:
        names.append(type(error).__name__)
raise ValueError("|" + ",".join(names) + "|")"""
    return reason(body).split("|")[1].split(",")


def reason(body: str) -> str:
    result = run(body)
    assert result.score is None and "python_grader_runtime_error" in result.errors.names
    return str(result.errors.python_grader_runtime_error_details)


@needs_sandbox
def test_the_documented_grader_runs_with_its_package() -> None:
    body = """from rapidfuzz import fuzz, utils
output_text, reference_answer = sample["output_text"], item["reference_answer"]
return fuzz.WRatio(output_text, reference_answer, processor=utils.default_process) / 100.0"""
    assert run(body, reference_answer="fuzzy wuzzy had no hair").score == pytest.approx(34 / 45)


@needs_sandbox
def test_a_grader_reads_the_completion_and_the_row() -> None:
    body = "return sample['output_json']['a'] + len(item['b']) + len(sample['choices'])"
    assert run(body, '{"a": 1}', b="xy").score == 4
    assert "KeyError: 'output_json' (line 2 of the source)" in str(run(body, "no JSON", b="").reason)


@needs_sandbox
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return 'high'", "ValueError"),
        ("return None", "TypeError"),
        ("return float('inf')", "not a finite number"),
        ("raise SystemExit(0)", "SystemExit"),
        ("import os\nos._exit(0)", "no score"),
        ("import os\nos.write(3, b'[]')\nos._exit(0)", "no score"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "no score"),
    ],
)
def test_a_result_that_is_no_number_is_an_error(body: str, expected: str) -> None:
    assert expected in reason(body)


@needs_sandbox
def test_no_file_of_the_host_can_be_read() -> None:
    paths = ["/etc/passwd", "/proc/1/environ", "/root/.bashrc", "/dev/sda", __file__]
    assert faults(*(f"open({path!r})" for path in paths)) == ["FileNotFoundError"] * len(paths)


@needs_sandbox
def test_nothing_can_be_written_but_temporary_files(tmp_path: Path) -> None:
    read_only = ["/x", "/packages/rapidfuzz/__init__.py", "/program.py", "/dev/x"]
    assert faults(*(f"open({path!r}, 'w')" for path in read_only)) == ["OSError"] * len(read_only)
    assert faults(f"open({str(tmp_path / 'x')!r}, 'w')") == ["FileNotFoundError"]
    name = f"/tmp/{tmp_path.name}-grader"
    assert run(f"open({name!r}, 'w').write('1')\nreturn float(open({name!r}).read())").score == 1
    assert not Path(name).exists()


@needs_sandbox
def test_neither_environment_nor_processes_of_the_host_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_CANARY", "secret")
    names = run("import os\nraise ValueError(sorted(os.environ))").reason
    assert "LANG" in names and "TUNESMITH" not in names and "PATH" not in names
    assert run("import os\nreturn os.getpid()").score == 2
    assert run("import os\nos.kill(1, 9)\nreturn 1").score == 1  # The sandbox's own first process ignores it.
    # Root has no number in the sandbox.
    assert faults("import os; os.setuid(0)") == ["OSError"]


@needs_sandbox
def test_no_socket_can_be_opened() -> None:
    kinds = ["AF_INET, 1", "AF_INET6, 1", "AF_UNIX, 1", "AF_VSOCK, 1", "AF_NETLINK, socket.SOCK_RAW"]
    sockets = [f"import socket; socket.socket(socket.{kind})" for kind in kinds]
    assert faults(*sockets) == ["PermissionError"] * len(sockets)


@needs_sandbox
def test_no_process_thread_or_namespace_can_be_started() -> None:
    attempts = {
        "import os\nwhile True: os.fork()": "PermissionError",
        "import subprocess; subprocess.run(['/bin/sh'])": "PermissionError",
        "import os; os.posix_spawn('/bin/sh', ['sh'], {})": "PermissionError",
        "import threading; threading.Thread(target=print).start()": "RuntimeError",
        "import multiprocessing; multiprocessing.Process(target=print).start()": "PermissionError",
        "import os; os.memfd_create('x')": "PermissionError",
        "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0": "AssertionError",
    }
    assert faults(*attempts) == list(attempts.values())


@needs_sandbox
def test_memory_files_and_output_are_limited() -> None:
    assert "MemoryError" in reason("x = bytearray(3 << 30)\nreturn 1")
    assert "Cannot allocate" in reason("import mmap\nx = [mmap.mmap(-1, 1 << 30) for _ in range(4)]")
    assert "OSError" in reason("while True: print('x' * 100_000)")
    assert "No space left" in reason(
        "for n in range(1000):\n    with open(f'/tmp/{n}', 'wb') as file: file.write(b'x' * 900_000)"
    )
    assert "Too many open files" in reason("files = [open('/dev/null') for _ in range(100)]")
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 64  # The limits are those of the child alone.


def list_sandboxes() -> list[psutil.Process]:
    """Return the processes of the sandboxes that this process has started."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [process] if "/program.py" in process.cmdline() else []
    return found


@needs_sandbox
def test_an_endless_grader_is_stopped_with_all_that_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    body = """import signal
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
while True: pass"""
    monkeypatch.setenv(sandbox.SECONDS_VARIABLE, str(SHORT_SECONDS))
    results: list[GradeResult] = []
    thread = threading.Thread(target=lambda: results.append(run(body)))
    started = time.monotonic()
    thread.start()
    while len(processes := list_sandboxes()) < 3:
        assert thread.is_alive()
        time.sleep(0.01)
    thread.join()
    assert time.monotonic() - started >= SHORT_SECONDS
    assert results[0].errors.names == ["python_grader_runtime_error", "unresponsive_reward_error"]
    assert f"did not end within {SHORT_SECONDS} s" in results[0].reason
    assert psutil.wait_procs(processes, timeout=60)[1] == []


@needs_sandbox
def test_graders_run_side_by_side() -> None:
    results: list[GradeResult] = []
    threads = [threading.Thread(target=lambda: results.append(run("return len(sample)"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.score for result in results] == [3.0] * 4


def test_a_source_is_parsed_and_never_executed_outside_the_sandbox(tmp_path: Path) -> None:
    source = f"open({str(tmp_path / 'x')!r}, 'w')\ndef grade(sample, item): return 1"
    PythonGrader(source=source)
    assert not (tmp_path / "x").exists()
    for fault in ("def grade(:", "x = 1", "grade = lambda sample, item: 1", "(" * 5000, "#" + "x" * 262_144):
        with pytest.raises(ValueError, match="source"):
            PythonGrader(source=fault)


def test_python_graders_are_off_unless_the_operator_allows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    grader = PythonGrader(source="def grade(sample, item): return 1")
    for value in ("", "false", "0", "no"):
        monkeypatch.setenv(sandbox.ALLOWED_VARIABLE, value)
        with pytest.raises(sandbox.PythonGradersOff, match="Python graders are off"):
            check_grader_host(grader)
    multi = {"type": "multi", "graders": {"a": json.loads(grader.model_dump_json())}, "calculate_output": "a"}
    with pytest.raises(sandbox.PythonGradersOff):
        check_grader_host(GRADER.validate_python(multi))


def test_a_host_without_bubblewrap_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    sandbox.find_sandbox_fault.cache_clear()
    try:
        with pytest.raises(sandbox.SandboxUnavailable, match=r"`bwrap`\) is not installed") as caught:
            check_grader_host(PythonGrader(source="def grade(sample, item): return 1"))
        assert "apt-get install bubblewrap" in str(caught.value.hint)
    finally:
        sandbox.find_sandbox_fault.cache_clear()


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        ("#!/bin/sh\nexec /bin/sleep 60\n", "did not create a sandbox within 0.2 s"),
        ("no program", "be started: "),
    ],
)
def test_a_bubblewrap_that_hangs_or_cannot_be_executed_is_a_fault_of_the_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str, fault: str
) -> None:
    (tmp_path / "bwrap").write_text(program)
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sandbox, "PROBE_SECONDS", 0.2)
    sandbox.find_sandbox_fault.cache_clear()
    try:
        assert fault in str(sandbox.find_sandbox_fault())
    finally:
        sandbox.find_sandbox_fault.cache_clear()


def test_a_host_that_forbids_user_namespaces_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    sandbox.find_sandbox_fault.cache_clear()
    try:
        with pytest.raises(
            sandbox.SandboxUnavailable, match="No permissions to create new namespace"
        ) as caught:
            check_grader_host(PythonGrader(source="def grade(sample, item): return 1"))
        assert "user namespaces" in str(caught.value.hint)
    finally:
        sandbox.find_sandbox_fault.cache_clear()


# Instructions of a filter that allows every system call.
ALLOW_ALL = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)

REGRESSIONS = [
    Regression(
        "the operator's permission is not needed",
        "trainers.graders.grade:require_sandbox",
        ignore,
        "test_python_graders_are_off_unless_the_operator_allows_them",
    ),
    Regression(
        "a host without a sandbox runs graders",
        "trainers.graders.sandbox:find_sandbox_fault",
        functools.lru_cache(lambda: None),
        "test_a_host_without_bubblewrap_refuses",
    ),
]
if FAULT is None:
    REGRESSIONS += [
        Regression(
            "no system call is denied",
            "trainers.graders.sandbox:denial_filter",
            lambda: ALLOW_ALL,
            "test_no_socket_can_be_opened",
        )
    ]
