"""Grade one completion: read a request from standard input, write the grade to standard output.

The request is `{"grader": …, "item": …, "sample": "the completion"}`. The output is `{"grade": …}`, or
`{"error": …}` for what this host lacks, with the `tokens` that the grader's models have used.

    python -m trainers.graders < request.json
"""

import json
import signal
import sys

from trainers.configs.graders import GRADER
from trainers.graders.grade import grade
from trainers.graders.result import GraderErrors, GradeResult, Sample
from trainers.metrics.judge import requests
from trainers.metrics.judge.requests import JudgeFailed
from trainers.runtime.endpoints import METER
from trainers.runtime.errors import ProgramError

# A person waits for the result.
MAX_RETRIES = 1


def main() -> None:
    """Grade the completion of the request; the first argument limits the seconds."""
    if len(sys.argv) > 1:
        # The end of this process must not depend on the one that started it.
        signal.alarm(int(sys.argv[1]))
    requests.MAX_RETRIES = MAX_RETRIES
    request = json.load(sys.stdin)
    grader = GRADER.validate_python(request["grader"])
    try:
        response = {"grade": grade(grader, request["item"], Sample(request["sample"])).as_dict()}
    except JudgeFailed as error:
        errors = GraderErrors(model_grader_server_error=True, model_grader_server_error_details=error.message)
        failed = GradeResult(grader.name, grader.type, None, reason=error.message, errors=errors)
        response = {"grade": failed.as_dict()}
    except ProgramError as error:
        response = {"error": error.as_dict()}
    print(json.dumps({**response, "tokens": METER.total}))


if __name__ == "__main__":
    main()
