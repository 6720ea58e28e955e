"""Training and evaluation programs that know files, not services."""

import gc
import logging
import sys

# On a CPU, importing bitsandbytes logs a warning that advises to install a downloader of kernels.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

OBJECTS_WHILE_IMPORTING = 100_000
_USUAL = gc.get_threshold()


def delay_collections() -> None:
    """Collect garbage rarely while a program (`python -m`) imports: its modules stay."""
    # Python sets this name until it has found the module. Who imports our packages keeps the own thresholds.
    if sys.argv[:1] == ["-m"]:
        gc.set_threshold(OBJECTS_WHILE_IMPORTING)


def resume_collections() -> None:
    """Collect garbage as usual from now on, but not among the objects of the modules."""
    gc.freeze()
    gc.set_threshold(*_USUAL)


delay_collections()
