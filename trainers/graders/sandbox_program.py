"""The program inside the sandbox of a Python grader: writes `{"score": …}` or `{"error": …}`.

It is run by the interpreter alone: none of our packages is in the sandbox.
"""

import json
import math
import os
import resource
import sys
import traceback

MAX_FILES = 64
SOURCE = "grader.py"


def main() -> None:
    """Grade the completion of the request on standard input."""
    request = json.load(sys.stdin)
    # What the grader prints must not end up in the result.
    result = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _limit(request["limits"])
    sys.path.append("/packages")
    result.write(json.dumps(_grade(request)))
    result.flush()
    # Threads and exit handlers of the grader do not delay the end.
    os._exit(0)


def _grade(request: dict) -> dict:  # type: ignore[type-arg]
    try:
        namespace = {"__name__": "grader"}
        exec(compile(request["source"], SOURCE, "exec"), namespace)  # noqa: S102  # In the sandbox.
        score = namespace["grade"](request["sample"], request["item"])  # type: ignore[operator]
        number = float(score)
    except MemoryError:
        return {"error": f"MemoryError: it needs more than {request['limits']['memory']} bytes of memory"}
    except BaseException as error:
        return {"error": _describe(error)}
    if not math.isfinite(number):
        return {"error": f"grade() returned {number}, which is not a finite number"}
    return {"score": number}


def _describe(error: BaseException) -> str:
    text = traceback.format_exception_only(error)[-1].strip()
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == SOURCE]
    return f"{text} (line {lines[-1]} of the source)" if lines else text


def _limit(limits: dict) -> None:  # type: ignore[type-arg]
    for name, value in (
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_CPU, limits["seconds"]),
        (resource.RLIMIT_FSIZE, limits["output"]),
        (resource.RLIMIT_NOFILE, MAX_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(name, (value, value))


if __name__ == "__main__":
    main()
