"""A proxy before moto's EC2 that adds what moto lacks.

ClientToken's idempotency, errors of capacity, quota, rate and permissions with AWS's codes and statuses, lost
requests and responses, requests for spot machines and their interruption, the parameter of the newest image,
the price list, SSH host keys on the console, and machines that shut themselves down.
"""

import base64
import hashlib
import json
import re
from typing import Any
from urllib.parse import parse_qs, urlencode
from xml.sax.saxutils import escape

import httpx2

from tests.clouds.faults import Fault, FaultPlan
from tests.clouds.http_stand_in import HttpStandIn

# Code and status: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
ERRORS = {
    Fault.no_capacity: ("InsufficientInstanceCapacity", 500),
    Fault.quota: ("VcpuLimitExceeded", 400),
    Fault.rate: ("RequestLimitExceeded", 503),
    Fault.unauthorized: ("UnauthorizedOperation", 403),
    Fault.invalid: ("InvalidParameterValue", 400),
    Fault.server_error: ("InternalError", 500),
}
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1Kq0P1uYt1sV1o0Vb3mYk9y8vF3pWq4Z5xX2cN7hTe"
CONSOLE = f"""cloud-init[812]: Generating locale
<14>Nov 29 10:00:01 cloud-init: -----BEGIN SSH HOST KEY KEYS-----
{HOST_KEY} root@ip-10-0-0-7
-----END SSH HOST KEY KEYS-----
"""
Reply = tuple[int, dict[str, str], bytes]


class AwsFaultProxy(HttpStandIn):
    """The account at AWS, as its API shows it."""

    def __init__(self, moto_url: str, image_id: str) -> None:
        self.plan = FaultPlan()
        self.price_list: list[dict[str, Any]] | None = None
        self.consoles: dict[str, str] = {}
        self.launched: list[dict[str, str]] = []
        """The parameters of the requests that have launched a machine."""
        self.launched_by_id: dict[str, dict[str, str]] = {}
        self._image_id = image_id
        self._tokens: dict[str, tuple[str, Reply]] = {}
        self._spot_statuses: dict[str, str] = {}
        self._behaviors: dict[str, str] = {}
        self._moto = httpx2.Client(base_url=moto_url, timeout=60)
        self._headers: dict[str, str] = {}
        super().__init__()

    def announce_interruption(self, machine_id: str) -> None:
        """Give the notice of two minutes for a spot machine."""
        self._spot_statuses[machine_id] = "marked-for-termination"

    def take_back(self, machine_id: str) -> None:
        """End a spot machine."""
        self._spot_statuses[machine_id] = "instance-terminated-no-capacity"
        self._call("TerminateInstances", machine_id)

    def shut_down(self, machine_id: str) -> None:
        """Do what the machine's own `shutdown -h` does, which its launch has decided."""
        is_end = self._behaviors[machine_id] == "terminate"
        self._call("TerminateInstances" if is_end else "StopInstances", machine_id)

    def states(self) -> dict[str, str]:
        """Return the states of all machines."""
        text = self._call("DescribeInstances").decode()
        found = re.findall(
            r"<instanceId>(i-\w+)</instanceId>.*?<instanceState>.*?<name>([a-z-]+)</name>", text, re.S
        )
        return dict(found)

    def handle(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Reply | None:
        """Return the response of moto or a fault."""
        self._headers = headers
        target = headers.get("x-amz-target", "").rpartition(".")[2]
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()} if not target else {}
        action = target or form.get("Action", "")
        fault = self.plan.take(action)
        if fault is Fault.lost_request:
            return None
        if fault in ERRORS:
            return _error(*ERRORS[fault], is_json=bool(target))
        reply = self._respond(action, form, path, headers, body)
        if fault is Fault.lost_response:
            return None
        if fault is Fault.garbled:
            return 200, reply[1], reply[2][: len(reply[2]) // 2]
        return reply

    def _respond(
        self, action: str, form: dict[str, str], path: str, headers: dict[str, str], body: bytes
    ) -> Reply:
        if action == "RunInstances":
            return self._launch(form, path, headers, body)
        if action == "GetParameter":
            name = json.loads(body)["Name"]
            return _json(
                {"Parameter": {"Name": name, "Type": "String", "Value": self._image_id, "Version": 1}}
            )
        if action == "GetProducts" and self.price_list is not None:
            return _json({"PriceList": [json.dumps(product) for product in self.price_list]})
        if action == "DescribeSpotInstanceRequests":
            return self._describe_requests(form)
        if action == "GetConsoleOutput" and form["InstanceId"] in self.consoles:
            output = base64.b64encode(self.consoles[form["InstanceId"]].encode()).decode()
            return _xml(action, f"<instanceId>{form['InstanceId']}</instanceId><output>{output}</output>")
        return self._forward(path, headers, body)

    def _launch(self, form: dict[str, str], path: str, headers: dict[str, str], body: bytes) -> Reply:
        token = form.pop("ClientToken")
        digest = hashlib.sha256(urlencode(sorted(form.items())).encode()).hexdigest()
        if token in self._tokens:
            known, reply = self._tokens[token]
            return reply if known == digest else _error("IdempotentParameterMismatch", 400)
        status, reply_headers, content = self._forward(path, headers, body)
        if status == 200:
            (machine_id,) = set(re.findall(rb"<instanceId>(i-\w+)</instanceId>", content))
            self.launched.append(form)
            self.launched_by_id[machine_id.decode()] = form
            self._behaviors[machine_id.decode()] = form.get("InstanceInitiatedShutdownBehavior", "stop")
            if form.get("InstanceMarketOptions.MarketType") == "spot":
                self._spot_statuses[machine_id.decode()] = "fulfilled"
            self._tokens[token] = (digest, (status, reply_headers, content))
        return status, reply_headers, content

    def _describe_requests(self, form: dict[str, str]) -> Reply:
        asked = [value for name, value in form.items() if name.startswith("Filter.1.Value")]
        items = "".join(
            f"<item><spotInstanceRequestId>{request}</spotInstanceRequestId>"
            f"<instanceId>i-{request[4:]}</instanceId><status><message>By the test.</message>"
            f"<code>{self._spot_statuses[f'i-{request[4:]}']}</code></status></item>"
            for request in asked
            if f"i-{request[4:]}" in self._spot_statuses
        )
        return _xml(
            "DescribeSpotInstanceRequests", f"<spotInstanceRequestSet>{items}</spotInstanceRequestSet>"
        )

    def _forward(self, path: str, headers: dict[str, str], body: bytes) -> Reply:
        kept = {
            name: value
            for name, value in headers.items()
            if name not in ("host", "content-length", "connection")
        }
        reply = self._moto.post(path, headers=kept, content=body)
        content = reply.content
        # moto's spot machines have no request.
        for machine_id in self._spot_statuses:
            plain = f"<instanceId>{machine_id}</instanceId>"
            content = content.replace(
                plain.encode(),
                f"{plain}<spotInstanceRequestId>sir-{machine_id[2:]}</spotInstanceRequestId>".encode(),
            )
        return reply.status_code, {"content-type": reply.headers.get("content-type", "text/xml")}, content

    def _call(self, action: str, machine_id: str | None = None) -> bytes:
        """Send a request to moto itself, with the signature of the last one, which moto does not check."""
        form = {"Action": action, "Version": "2016-11-15"} | (
            {"InstanceId.1": machine_id} if machine_id else {}
        )
        kept = {"authorization": _EC2_SCOPE, "content-type": "application/x-www-form-urlencoded"}
        return self._moto.post("/", headers=kept, content=urlencode(form)).raise_for_status().content


# moto finds the service by the scope of the signature.
_EC2_SCOPE = (
    "AWS4-HMAC-SHA256 Credential=test/20261129/us-east-1/ec2/aws4_request, SignedHeaders=host, Signature=0"
)


def make_product(machine_type: str, usd: float, date: str = "2026-11-20T00:00:00Z") -> dict[str, Any]:
    """Return a product of the price list in AWS's shape, without what nobody reads."""
    dimension = {"unit": "Hrs", "pricePerUnit": {"USD": f"{usd:.10f}"}}
    return {
        "product": {"productFamily": "Compute Instance", "attributes": {"instanceType": machine_type}},
        "serviceCode": "AmazonEC2",
        "terms": {"OnDemand": {"A.B": {"priceDimensions": {"A.B.C": dimension}}}},
        "publicationDate": date,
    }


def _error(code: str, status: int, is_json: bool = False) -> Reply:
    message = f"{code} by the test, encoded message: ts_0123456789abcdefghij"
    if is_json:
        return _json({"__type": code, "message": message}, status)
    text = (
        f"<Response><Errors><Error><Code>{code}</Code><Message>{escape(message)}</Message></Error></Errors>"
    )
    return status, {"content-type": "text/xml"}, f"{text}<RequestID>r-1</RequestID></Response>".encode()


def _xml(action: str, content: str) -> Reply:
    text = f'<{action}Response xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">{content}</{action}Response>'
    return 200, {"content-type": "text/xml"}, text.encode()


def _json(content: dict[str, Any], status: int = 200) -> Reply:
    return status, {"content-type": "application/x-amz-json-1.1"}, json.dumps(content).encode()
