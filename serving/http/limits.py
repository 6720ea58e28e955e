"""Limits of connections and requests, which hold for the API's server and for the standalone gateway's."""

import resource

MAX_HEAD_BYTES = 64 * 1024
MAX_LINE_BYTES = 16 * 1024
MAX_HEADERS = 100
# The largest JSON body. A file that is uploaded as multipart/form-data has a setting of its own.
MAX_BODY_BYTES = 8 * 1024 * 1024

# Texts in a request for embeddings, as at OpenAI.
MAX_EMBEDDING_INPUTS = 2048

HEAD_TIMEOUT_SECONDS = 10.0
# How long a body may take, with one more second for each of these bytes that has arrived.
BODY_TIMEOUT_SECONDS = 60.0
MIN_BODY_BYTES_PER_SECOND = 1024
KEEP_ALIVE_SECONDS = 75.0
# How long a client may leave its response unread, and how long a rejected one may continue to send.
WRITE_TIMEOUT_SECONDS = 60.0
LINGER_SECONDS = 2.0


def max_connections() -> int:
    """Return how many clients a process accepts: half of the files that it may open, at most 10,000.

    The other half is for connections to engines, for the database and for files.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 10_000 if soft == resource.RLIM_INFINITY else min(10_000, soft // 2)
