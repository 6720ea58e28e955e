"""Export runs to MLflow, W&B and TensorBoard; started and stopped by a worker.

python -m workers.tracking SPOOL
"""

import sys
from pathlib import Path

from workers.tracking.exporter import run_exporter

if __name__ == "__main__":
    run_exporter(Path(sys.argv[1]))
