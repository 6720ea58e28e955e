"""The control plane: HTTP and SQL. It imports no ML package."""

import sys

# `python -m app`; the client is imported without the trainers.
if sys.argv[:1] == ["-m"]:
    from trainers import delay_collections

    delay_collections()
