"""Unpacking of compressed request bodies, within the limit of the unpacked size."""

import zlib

from serving.http.errors import BodyTooLarge, InvalidRequest, UnsupportedEncoding
from serving.http.limits import MAX_BODY_BYTES

GZIP_NAMES = (b"gzip", b"x-gzip")
GZIP_FORMAT = 31


def check_encoding(encoding: bytes) -> bool:
    """Return whether a body with this Content-Encoding must be unpacked; raise UnsupportedEncoding."""
    name = encoding.strip().lower()
    if name not in (*GZIP_NAMES, b"identity", b""):
        raise UnsupportedEncoding(encoding.decode("latin-1"))
    return name in GZIP_NAMES


def unpack_body(encoding: bytes, body: bytes) -> bytes:
    """Return the unpacked body.

    Raises:
        UnsupportedEncoding: The encoding is not gzip.
        BodyTooLarge: The unpacked body is larger than the limit; no more than that is unpacked.
        InvalidRequest: The body is not one complete gzip stream.
    """
    if not check_encoding(encoding):
        return body
    unpacker = zlib.decompressobj(GZIP_FORMAT)
    try:
        unpacked = unpacker.decompress(body, MAX_BODY_BYTES + 1)
    except zlib.error as error:
        raise InvalidRequest(f"The body is not valid gzip: {error}.") from error
    if len(unpacked) > MAX_BODY_BYTES:
        raise BodyTooLarge(MAX_BODY_BYTES)
    if not unpacker.eof or unpacker.unused_data:
        raise InvalidRequest("The body is not one complete gzip stream.")
    return unpacked
