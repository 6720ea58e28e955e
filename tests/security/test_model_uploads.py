"""An uploaded model contains only verified files, reads no other, and is bounded while it is unpacked.

Attacks: pickles, links, sparse members, paths, hidden files and twice the same file in an archive; headers of
any size; an archive that ends early or has too many members; configs that name code; an index and a base that
lead elsewhere; a chat template that does not end.
"""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from starlette.testclient import TestClient

from app.models import uploads
from app.settings import get_settings
from app.storage.opening import get_store
from app.tables import Scope
from tests.security.regression import Regression

WEIGHTS = save({"base_model.model.q.lora_A.weight": np.zeros((4, 8), np.float32)})
CONFIG = json.dumps({"peft_type": "LORA", "r": 4, "base_model_name_or_path": "org/base"}).encode()
ADAPTER = {"adapter_config.json": CONFIG, "adapter_model.safetensors": WEIGHTS}
Member = tuple[tarfile.TarInfo, bytes]


def headers(kind: bytes, content: bytes, count: int = 1) -> bytes:
    """Return an archive whose only file comes after extended headers with any content."""
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, len(content)
    header = info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)
    return header * count + tarfile.TarInfo("x").tobuf() + bytes(2 * tarfile.BLOCKSIZE)


def member(name: str, content: bytes = b"x", **values: Any) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in values.items():
        setattr(info, field, value)
    return info, content


def tar(*more: Member, files: dict[str, bytes] = ADAPTER) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for info, content in [*(member(name, content) for name, content in files.items()), *more]:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def send(client: TestClient, files: dict[str, bytes], **fields: str) -> Any:
    parts = [("file", (name, content)) for name, content in files.items()]
    return client.post("/api/v1/models/uploads", files=parts, data=fields)


def assert_refused(client: TestClient, response: Any, word: str) -> None:
    assert response.status_code == 422, response.text
    assert word in response.json()["error"]["message"]
    assert client.get("/api/v1/models").json()["items"] == []
    assert get_store().list_folder("models") == []
    assert list((get_settings().data_dir / "uploads").iterdir()) == []


def test_a_model_returns_as_it_was_downloaded(client: TestClient) -> None:
    sent = send(client, ADAPTER | {"optimizer.pt": b"pickle", "README.md": b"# Mine"}, name="mine").json()
    assert (sent["name"], sent["kind"], sent["base"]) == ("mine", "adapter", "org/base")
    listed = client.get(f"/api/v1/models/{sent['id']}/files").json()["items"]
    assert {file["path"] for file in listed} == ADAPTER.keys()
    archive = client.get(f"/api/v1/models/{sent['id']}/download").content
    again = send(client, {"again.tar": archive}, base=f"org/base@{'0' * 40}").json()
    assert (again["name"], again["base"]) == ("again", f"org/base@{'0' * 40}")
    assert client.get(f"/api/v1/models/{again['id']}/files").json()["items"] == listed
    config = {"config.json": b'{"model_type": "llama"}', "model.safetensors": WEIGHTS}
    whole = send(client, config).json()
    assert (whole["kind"], whole["base"]) == ("base", whole["id"])


def test_an_adapter_of_mlx_lm_becomes_one_of_peft(client: TestClient) -> None:
    config = {"lora_parameters": {"rank": 2, "scale": 8.0}, "model": "org/base", "auto_map": {"A": "evil.A"}}
    shapes = {"lora_a": (8, 2), "lora_b": (2, 8)}
    weights = {f"model.layers.0.mlp.up_proj.{part}": np.ones(shape) for part, shape in shapes.items()}
    content = save({name: weight.astype(np.float32) for name, weight in weights.items()})
    files = {"adapter_config.json": json.dumps(config).encode(), "adapters.safetensors": content}
    sent = send(client, files | {"0000100_adapters.safetensors": b"x"}).json()
    assert (sent["kind"], sent["base"]) == ("adapter", "org/base")
    listed = client.get(f"/api/v1/models/{sent['id']}/files").json()["items"]
    assert {file["path"] for file in listed} == ADAPTER.keys()
    stored = client.get(f"/api/v1/models/{sent['id']}/files/adapter_config.json").json()
    assert (stored["peft_type"], stored["lora_alpha"]) == ("LORA", 16) and "auto_map" not in stored


@pytest.mark.parametrize(
    ("archive", "word"),
    [
        (tar(member("link", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")), "not a regular file"),
        (tar(member("link", b"", type=tarfile.LNKTYPE, linkname="../../x")), "not a regular file"),
        (tar(member("pipe", b"", type=tarfile.FIFOTYPE)), "not a regular file"),
        (tar(member("x", b"", pax_headers={"GNU.sparse.map": "0,0", "GNU.sparse.size": "9999"})), "sparse"),
        (tar(member("../escaped")), "name"),
        (tar(member("/escaped")), "name"),
        (tar(member("a/b/c/escaped")), "name"),
        (tar(member("adapter_config.json")), "twice"),
        (tar(member("x", b"", pax_headers={"comment": "x" * (2 << 20)})), "header"),
        (tar(member("x"), member("x/y")), "folder"),
        # tarfile searches it for 5,000 seconds, while no other thread can run.
        (headers(tarfile.XHDTYPE, b"1" * 1_000_000), "header"),
        (headers(tarfile.XHDTYPE, b"1" * 60_000), "digits"),
        (headers(tarfile.XHDTYPE, b"18 size=-99999999\n"), "negative"),
        (headers(tarfile.XHDTYPE, b"11 path=xx\n", 3000), "headers"),
        (headers(tarfile.GNUTYPE_LONGNAME, b"x\0", 3000), "headers"),
        (tar()[:-11_000], "tar archive"),
        (b"x" * 10_000, "tar archive"),
    ],
    ids=[
        *("symlink", "hard link", "pipe", "sparse", "..", "/", "deep", "twice", "header", "file as folder"),
        *("long header", "long number", "negative size", "chain of headers", "chain of names", "end"),
        "no tar",
    ],
)
def test_an_archive_contains_only_the_files_of_one_folder(
    client: TestClient, tmp_path: Path, archive: bytes, word: str
) -> None:
    response = send(client, {"a.tar": archive})
    assert response.status_code == 422
    if word != "sparse":
        assert_refused(client, response, word)
    # What other tests write below these folders is theirs.
    assert not [path for folder in tmp_path.parents for path in folder.glob("escaped*")]
    assert not list(tmp_path.rglob("escaped*"))


def test_hidden_files_of_an_archive_are_left_out(client: TestClient) -> None:
    # As macOS writes it next to a folder, and the client of the hub into one.
    files = {f"m/{name}": content for name, content in ADAPTER.items()}
    hidden = [member("._m"), member("m/.env"), member("m/.cache/huggingface/download/x.lock")]
    sent = send(client, {"a.tar": tar(*hidden, files=files)}).json()
    assert len(client.get(f"/api/v1/models/{sent['id']}/files").json()["items"]) == 2


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ({"adapter_config.json": CONFIG, "adapter_model.bin": b"pickle"}, "missing"),
        ({**ADAPTER, "adapter_model.safetensors": b"pickle"}, "adapter_model.safetensors"),
        ({"README.md": b"x"}, "config.json"),
        ({**ADAPTER, "..": b"x"}, "name"),
        ({"config.json": b"{}", "model.safetensors.index.json": b'{"weight_map": {"a": "../x"}}'}, "index"),
        (
            {**ADAPTER, "chat_template.jinja": b"{% for a in range(99999) %}" * 6 + b"{% endfor %}" * 6},
            "template",
        ),
    ],
    ids=["pickle", "damaged", "no model", "name", "index", "template"],
)
def test_an_unsafe_or_incomplete_model_is_refused(
    client: TestClient, files: dict[str, bytes], word: str
) -> None:
    assert_refused(client, send(client, files), word)


@pytest.mark.parametrize(
    "base", ["/etc", "../../x", "/proc/self/root/etc", "model_01k00000000000000000000000", "http://x/y", ""]
)
def test_a_base_is_a_model_that_this_service_may_read(client: TestClient, base: str) -> None:
    config = json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}).encode()
    assert_refused(client, send(client, ADAPTER | {"adapter_config.json": config}), "base")
    if base:
        assert_refused(client, send(client, ADAPTER, base=base), "base")


def test_code_that_a_config_names_is_removed(client: TestClient) -> None:
    config = b'{"model_type": "llama", "auto_map": {"AutoConfig": "evil.Config"}}'
    sent = send(client, {"config.json": config, "model.safetensors": WEIGHTS, "evil.py": b"import os"}).json()
    listed = client.get(f"/api/v1/models/{sent['id']}/files").json()["items"]
    assert {file["path"] for file in listed} == {"config.json", "model.safetensors"}
    assert "auto_map" not in client.get(f"/api/v1/models/{sent['id']}/files/config.json").json()


def test_an_upload_has_a_bound_of_bytes_files_and_members(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_FILES", 20)
    many = tar(*(member(f"m{number}") for number in range(30)))
    assert_refused(client, send(client, {"a.tar": many}), "20 files")
    monkeypatch.setattr(uploads, "MAX_PARTS", 3)
    assert_refused(client, send(client, ADAPTER | {"a": b"", "b": b""}), "3 parts")
    monkeypatch.setattr(get_settings(), "max_upload_bytes", 100_000)
    assert send(client, ADAPTER | {"large": bytes(300_000)}).status_code == 413


def test_an_import_needs_the_scope_to_write(
    client: TestClient, make_key: Callable[..., dict[str, str]]
) -> None:
    reader = make_key(Scope.read)
    files = [("file", (name, content)) for name, content in ADAPTER.items()]
    assert client.post("/api/v1/models/uploads", files=files, headers=reader).status_code == 403
    assert client.post("/api/v1/models", json={"source": "org/x"}, headers=reader).status_code == 403
    page = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    assert client.post("/api/v1/models/uploads", files=files, headers=page).status_code == 403


REGRESSIONS = [
    Regression(
        "the header of a member may have any size",
        "app.models.uploads:_BoundedReads",
        lambda file: file,
        "test_an_archive_contains_only_the_files_of_one_folder",
    ),
    Regression(
        "the members of an archive are not checked",
        "app.models.uploads:_list_members",
        lambda archive: archive.getmembers(),
        "test_an_archive_contains_only_the_files_of_one_folder",
    ),
    Regression(
        "an uploaded model is not verified",
        "app.models.uploads:open_model",
        lambda folder, *_: folder,
        "test_an_unsafe_or_incomplete_model_is_refused",
    ),
]
