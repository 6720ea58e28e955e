"""The program that renders a large dataset; `build_in_program` starts it.

python -m trainers.rendering.cache.program FOLDER
"""

import json
import sys
from pathlib import Path

from trainers.rendering.cache.build import build_in_processes
from trainers.runtime.errors import as_program_error
from trainers.runtime.process_tree import die_with_parent


def main(folder: Path) -> int:
    """Fill the folder of an entry, or print the error as JSON; return the exit status."""
    die_with_parent()
    try:
        build_in_processes(folder)
    except Exception as error:
        # Not to a file: the disk may be full.
        sys.stdout.write(json.dumps(as_program_error(error).as_dict()))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
