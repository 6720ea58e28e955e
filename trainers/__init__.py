"""Training and evaluation programs that know files, not services."""

import logging

# On a CPU, importing bitsandbytes logs a warning that advises to install a downloader of kernels.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
