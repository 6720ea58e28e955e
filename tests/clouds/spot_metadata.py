"""A stand-in for the metadata service of a spot machine at AWS."""

from tests.clouds.http_stand_in import HttpStandIn

NOTICE = b'{"action": "terminate", "time": "2026-11-29T12:02:00Z"}'


class SpotMetadata(HttpStandIn):
    """Version 2 of the metadata service, which requires a token."""

    def __init__(self) -> None:
        self.has_notice = False
        self.tokens = 0
        super().__init__()

    def handle(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes] | None:
        if (method, path) == ("PUT", "/latest/api/token"):
            self.tokens += "x-aws-ec2-metadata-token-ttl-seconds" in headers
            return 200, {}, b"token-1"
        if headers.get("x-aws-ec2-metadata-token") != "token-1":
            return 401, {}, b""
        is_known = path == "/latest/meta-data/spot/instance-action" and self.has_notice
        return (200, {}, NOTICE) if is_known else (404, {}, b"")
