"""Training and evaluation programs that know files, not services."""

import logging

# On a CPU it advises, whenever it is imported, to install what would fetch kernels from a hub.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
