import os
import subprocess
import sys

import pytest

from app.client.api.errors import ClientError
from app.client.commands import output


def test_nothing_that_is_printed_controls_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    harmful = "a\x1b[2Jb\x1b]0;title\x07c\x9b31md [red]:smile:"
    output.out().print(harmful)
    output.print_table([harmful], [[harmful]], empty="")
    output.note(harmful)
    output.print_error(ClientError(harmful, harmful))
    output.print_json({"name": harmful})
    printed = "".join(capsys.readouterr())
    assert "abc31md [red]:smile:" in printed
    assert not {"\x1b", "\x07", "\x9b"} & set(printed)


def test_a_reader_that_closes_the_pipe_is_no_failure() -> None:
    for statement in ("output.out().print('x')", "output.print_json(['x' * 100_000])"):
        code = f"from app.client.commands import output; {statement}"
        reader, writer = os.pipe()
        os.close(reader)
        ended = subprocess.run(
            [sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, check=False
        )
        os.close(writer)
        assert (ended.returncode, ended.stderr) == (0, b"")
