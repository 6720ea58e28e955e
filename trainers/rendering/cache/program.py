"""The program that renders a large dataset; `build_in_program` starts it.

python -m trainers.rendering.cache.program FOLDER
"""

import sys
from pathlib import Path

from trainers.rendering.cache.build import ERROR, build_in_processes
from trainers.runtime import run_dir as files
from trainers.runtime.errors import as_program_error
from trainers.runtime.process_tree import die_with_parent


def main(folder: Path) -> int:
    """Fill the folder of an entry, or write the error; return the exit status."""
    die_with_parent()
    try:
        build_in_processes(folder)
    except Exception as error:
        files.write_json(folder / ERROR, as_program_error(error).as_dict())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
