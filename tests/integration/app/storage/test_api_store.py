"""Goal: artifacts that travel through the API arrive complete, once, and with errors that a run can act on.

Method: a worker's store over the transport of the application, which breaks connections, loses responses and
counts requests.
"""

import asyncio
import hashlib
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from starlette.requests import ClientDisconnect
from starlette.testclient import TestClient

from app.artifacts import quota, staging
from app.keys import service
from app.keys.schemas import KeyCreate
from app.retention import garbage
from app.settings import Settings
from app.storage.api_store import client as api_client
from app.storage.api_store.client import ArtifactsApi, parse_api_url
from app.storage.api_store.store import ApiArtifactStore
from app.storage.api_store.upload import CHUNK_BYTES, send_file
from app.storage.database import transaction
from app.storage.inventory import list_artifacts
from app.storage.manifest import ArtifactCorrupt
from app.storage.opening import get_store
from app.storage.remote.errors import ArtifactExists, StoreCredentialsRefused, StoreUnreachable
from app.tables import Scope

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
URL = "api+http://127.0.0.1"


class FaultyTransport(httpx2.BaseTransport):
    """The application's transport, which counts requests, and fails as `fault` says before or after one."""

    def __init__(self, inner: httpx2.BaseTransport) -> None:
        self.inner = inner
        self.sent: list[tuple[str, str]] = []
        self.before: Callable[[httpx2.Request], None] = lambda request: None
        self.after: Callable[[httpx2.Request], None] = lambda request: None

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.sent.append((request.method, request.url.path))
        self.before(request)
        response = self.inner.handle_request(request)
        self.after(request)
        return response

    def count(self, method: str) -> int:
        return sum(name == method for name, _ in self.sent)


@pytest.fixture
def transport(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> FaultyTransport:
    monkeypatch.setattr(api_client, "WAIT_SECONDS", (0, 0, 0))
    return FaultyTransport(client._transport)


@pytest.fixture
def make_store(transport: FaultyTransport, tmp_path: Path) -> Callable[[str], ApiArtifactStore]:
    """Return a function that opens the store of another host with a key."""

    def make(key: str) -> ApiArtifactStore:
        return ApiArtifactStore(URL, ArtifactsApi(URL, key, transport), tmp_path / "other-host" / "cache")

    return make


@pytest.fixture
def store(make_store: Callable[[str], ApiArtifactStore], settings: Settings) -> ApiArtifactStore:
    with transaction() as session:
        _, key = service.create_key(session, KeyCreate(name="host", scopes=[Scope.worker]))
    return make_store(key)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "parts").mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "parts" / "weights ü").write_bytes(bytes(range(256)) * 40)
    (source / ".metadata").write_bytes(b"")
    return source


@pytest.fixture
def large_file(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(bytes(CHUNK_BYTES) + b"1" * CHUNK_BYTES + b"end")
    return path


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def staged_files(settings: Settings) -> Iterator[str]:
    return (path.name for path in staging.staging_folder(settings).glob("*"))


def test_a_folder_of_another_host_is_published_as_the_service_itself_publishes_it(
    store: ApiArtifactStore, settings: Settings, folder: Path
) -> None:
    published = store.publish_folder(folder, "models/m")
    assert get_store().publish_folder(folder, "models/local").sha256 == published.sha256
    get_store().verify_folder("models/m", published.sha256)
    fetched = store.fetch_folder("models/m", published.sha256)
    assert (fetched / "parts" / "weights ü").read_bytes() == (folder / "parts" / "weights ü").read_bytes()
    assert store.exists("models/m") and not store.exists("models/none")
    assert list(staged_files(settings)) == [], "published bytes are stored once"


def test_a_large_file_arrives_in_parts_and_is_fetched_in_ranges(
    store: ApiArtifactStore, transport: FaultyTransport, large_file: Path
) -> None:
    store.publish_file(large_file, "datasets/d")
    assert transport.count("PATCH") == 3
    assert store.fetch_file("datasets/d", sha256_of(large_file)).read_bytes() == large_file.read_bytes()
    assert store.size_of("datasets/d") == large_file.stat().st_size


def test_an_upload_continues_where_it_was_cut_off_also_under_another_key(
    store: ApiArtifactStore, transport: FaultyTransport, large_file: Path, settings: Settings
) -> None:
    def cut_off(request: httpx2.Request) -> None:
        if request.method == "PATCH" and transport.count("PATCH") > 2:
            raise KeyboardInterrupt

    transport.before = cut_off
    with pytest.raises(KeyboardInterrupt):
        store.publish_file(large_file, "datasets/first")
    assert not get_store().exists("datasets/first")
    assert list(staged_files(settings)) == [f"{sha256_of(large_file)}.part"]
    transport.before, transport.sent = lambda request: None, []
    store.publish_file(large_file, "datasets/second")
    assert transport.count("PATCH") == 1
    get_store().verify_file("datasets/second", sha256_of(large_file))


def test_what_arrived_before_a_disconnection_is_kept(settings: Settings) -> None:
    async def disconnect() -> AsyncIterator[bytes]:
        yield b"half"
        raise ClientDisconnect

    sha256 = hashlib.sha256(b"half and half").hexdigest()
    progress = asyncio.run(staging.append(settings, "key_a", sha256, 0, 13, disconnect()))
    assert (progress.received_bytes, progress.is_complete) == (4, False)


def test_a_lost_response_costs_one_question_and_no_byte_twice(
    store: ApiArtifactStore, transport: FaultyTransport, large_file: Path
) -> None:
    lost: list[str] = []

    def lose(request: httpx2.Request) -> None:
        if request.method != "GET" and lost.count(request.method) == 0:
            lost.append(request.method)
            raise httpx2.ReadError("the connection broke")

    transport.after = lose
    store.publish_file(large_file, "datasets/d")
    get_store().verify_file("datasets/d", sha256_of(large_file))
    assert lost == ["PATCH", "POST"]


def test_a_download_continues_after_a_broken_connection(
    store: ApiArtifactStore, transport: FaultyTransport, large_file: Path
) -> None:
    store.publish_file(large_file, "datasets/d")
    ranges: list[str | None] = []
    inner = transport.inner

    class Cut(httpx2.SyncByteStream):
        def __init__(self, stream: httpx2.SyncByteStream) -> None:
            self.stream = stream

        def __iter__(self) -> Iterator[bytes]:
            content = b"".join(self.stream)
            yield content[: CHUNK_BYTES + 7]
            raise httpx2.ReadError("the connection broke")

    class CuttingTransport(httpx2.BaseTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            response = inner.handle_request(request)
            if "/files/" in request.url.path:
                ranges.append(request.headers.get("range"))
                if len(ranges) == 1:
                    assert isinstance(response.stream, httpx2.SyncByteStream)
                    response.stream = Cut(response.stream)
            return response

    transport.inner = CuttingTransport()
    assert store.fetch_file("datasets/d", sha256_of(large_file)).read_bytes() == large_file.read_bytes()
    first, second = ranges
    assert first is None and second is not None
    assert CHUNK_BYTES - (2 << 20) < int(second.removeprefix("bytes=").rstrip("-")) <= CHUNK_BYTES + 7


def test_nothing_published_is_replaced_but_the_log_of_a_run(store: ApiArtifactStore, folder: Path) -> None:
    published = store.publish_folder(folder, "models/m")
    assert store.publish_folder(folder, "models/m") == published
    log = folder / "config.json"
    store.publish_file(log, "runs/r/1/log.txt", replace=True)
    store.publish_file(log, "datasets/d")
    log.write_text("[]")
    store.publish_file(log, "runs/r/1/log.txt", replace=True)
    assert get_store().open("runs/r/1/log.txt").read() == b"[]"
    with pytest.raises(ArtifactExists):
        store.publish_file(log, "datasets/d")
    with pytest.raises(ArtifactExists):
        store.publish_folder(folder, "models/m")
    get_store().verify_folder("models/m", published.sha256)


def test_bytes_with_another_hash_are_never_published(
    store: ApiArtifactStore, transport: FaultyTransport, folder: Path, settings: Settings
) -> None:
    def damage(request: httpx2.Request) -> None:
        if request.method == "PATCH":
            request._content = b"x" * len(request.content)

    transport.before = damage
    with pytest.raises(OSError, match="do not have the hash"):
        store.publish_file(folder / "config.json", "datasets/d")
    assert not get_store().exists("datasets/d") and list(staged_files(settings)) == []


def test_bytes_that_are_damaged_on_the_way_back_are_not_used(store: ApiArtifactStore, folder: Path) -> None:
    published = store.publish_folder(folder, "models/m")
    Path(get_store().root, "models/m/config.json").write_text("[]")
    with pytest.raises(ArtifactCorrupt, match=r"config\.json"):
        store.fetch_folder("models/m", published.sha256)


def test_a_wrong_key_and_a_wrong_scope_name_the_setting(
    make_store: Callable[[str], ApiArtifactStore], store: ApiArtifactStore, folder: Path
) -> None:
    with transaction() as session:
        _, reader = service.create_key(session, KeyCreate(name="reader", scopes=[Scope.read]))
    for key in ("ts_wrong", "", reader):
        with pytest.raises(StoreCredentialsRefused, match="TUNESMITH_WORKER_KEY"):
            make_store(key).publish_folder(folder, "models/m")
        with pytest.raises(StoreCredentialsRefused):
            make_store(key).check("health/x")
    store.check("health/x")


def test_a_full_disk_of_the_control_plane_is_the_error_of_a_full_disk(
    store: ApiArtifactStore, folder: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "reserved_disk_bytes", 2**62)
    with pytest.raises(OSError, match="disk of the control plane's artifact store is full") as raised:
        store.publish_folder(folder, "models/m")
    assert raised.value.errno == 28


def test_the_bounds_of_the_settings_hold(
    store: ApiArtifactStore, settings: Settings, large_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "max_artifact_bytes", CHUNK_BYTES)
    with pytest.raises(OSError, match="larger than"):
        store.publish_file(large_file, "datasets/d")
    monkeypatch.setattr(settings, "max_artifact_bytes", 2**40)
    monkeypatch.setattr(settings, "max_artifact_uploads", 1)
    folder = staging.staging_folder(settings)
    folder.mkdir(parents=True)
    (folder / f"{'0' * 64}.part").write_bytes(b"another worker's")
    with pytest.raises(StoreUnreachable, match="uploads are in progress"):
        store.publish_file(large_file, "datasets/d")


def test_one_key_sends_a_bounded_size_that_it_does_not_publish(
    store: ApiArtifactStore,
    make_store: Callable[[str], ApiArtifactStore],
    settings: Settings,
    folder: Path,
    large_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quota, "MEASURE_SECONDS", 0)
    size_bytes = large_file.stat().st_size
    monkeypatch.setattr(settings, "max_staged_bytes_per_key", size_bytes + 100)
    send_file(store._api, large_file)
    # The collector takes the old records of who sent a file, but not a file that a request has renewed.
    shutil.rmtree(settings.data_dir / quota.FOLDER)
    path, parameters = f"/uploads/{sha256_of(large_file)}", {"offset_bytes": 0, "size_bytes": size_bytes}
    store._api.request("PATCH", path, params=parameters, content=b"")
    other = folder / "other"
    other.write_bytes(b"x" * 101)
    with pytest.raises(StoreUnreachable, match=f"has sent {size_bytes} bytes that are not published"):
        store.publish_file(other, "datasets/other")
    # Another key is not affected, and what is published no longer counts.
    with transaction() as session:
        _, key = service.create_key(session, KeyCreate(name="other host", scopes=[Scope.worker]))
    make_store(key).publish_file(other, "datasets/other")
    store.publish_file(large_file, "datasets/large")
    send_file(store._api, other)
    monkeypatch.setattr(quota, "MAX_STAGED_FILES", 1)
    with pytest.raises(StoreUnreachable, match="1 files that this API key has sent are not published"):
        store.publish_file(folder / "config.json", "datasets/config")


def test_an_unfinished_upload_is_collected(
    store: ApiArtifactStore, settings: Settings, large_file: Path
) -> None:
    sha256 = sha256_of(large_file)
    store._api.request(
        "PATCH", f"/uploads/{sha256}", params={"offset_bytes": 0, "size_bytes": 10**6}, content=b"half"
    )
    found = list_artifacts(get_store())
    assert [one.key for one in found] == [f"uploads/{sha256}.part"]
    now = time.time()
    assert [reason for _, reason in garbage.classify(found, 3600, lambda: now)] == [None]
    old = [one for one, reason in garbage.classify(found, 3600, lambda: now + 3601) if reason is not None]
    assert len(list(garbage.delete_garbage(get_store(), old, 3600, lambda: None, lambda: now + 3601))) == 1
    assert list_artifacts(get_store()) == [] and list(staged_files(settings)) == []


def test_an_artifact_is_deleted_unless_a_row_names_it(
    store: ApiArtifactStore, folder: Path, make_dataset: Callable[..., object]
) -> None:
    store.publish_folder(folder, "models/m")
    store.publish_file(folder / "config.json", "datasets/named")
    make_dataset("d", artifact="datasets/named")
    store.delete("models/m")
    store.delete("models/m")
    with pytest.raises(OSError, match="names the artifact"):
        store.delete("datasets/named")
    assert {artifact.key for artifact in list_artifacts(get_store())} == {"datasets/named"}


def test_an_api_that_is_away_is_unreachable_and_one_request_is_repeated(
    store: ApiArtifactStore, transport: FaultyTransport, folder: Path
) -> None:
    def refuse(request: httpx2.Request) -> None:
        raise httpx2.ConnectError("refused")

    transport.before = refuse
    with pytest.raises(StoreUnreachable, match="does not respond"):
        store.publish_folder(folder, "models/m")
    assert len(transport.sent) == 4


@pytest.mark.parametrize("url", ["api+http://", "api+https://k@host", "api+ftp://host", "api+http://host/x"])
def test_an_url_of_another_form_is_refused(url: str, settings: Settings) -> None:
    with pytest.raises(ValueError, match="api\\+https://HOST"):
        parse_api_url(url)
