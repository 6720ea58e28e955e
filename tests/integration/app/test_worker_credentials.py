"""Credentials of workers on other hosts.

Goal: a host gets what its worker needs and no more, and loses it when it leaves or its key is revoked.
Method: real PostgreSQL and Redis; the service connects as a role that is not a superuser, and the tests try
with a host's credentials what a worker does and what it must not do.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from kombu import Connection
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Connection as SqlConnection
from sqlalchemy import Engine, make_url, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlmodel import SQLModel, col
from starlette.testclient import TestClient

from app.keys.service import revoke_key
from app.retention.records import delete_records
from app.scheduling.startup import SettingUnusable, prepare_control_plane, prepare_worker
from app.settings import Settings, get_settings
from app.storage.database import (
    DATABASE_UNAVAILABLE,
    create_database_engine,
    database_now,
    get_engine,
    read_session,
    transaction,
)
from app.storage.migrate import list_revisions
from app.tables import ApiKey, StorageState, WorkerCredential
from app.worker_credentials.reconciler import reconcile, restore_users
from app.worker_credentials.rights.postgresql_role import SESSION_TIMEOUTS, explain_connections
from app.worker_credentials.rights.redis_user import RedisBlocked
from app.worker_credentials.rights.tables import DELETED_FROM, HIDDEN, READ, WRITTEN
from tests import services
from tests.application import configured_app
from tests.integration.app.conftest import clear_caches

PASSWORD = "correct-horse-battery"
BODY = {"name": "gpu-1", "version": "0.1.0", "revision": list_revisions()[-1]}
Headers = dict[str, str]


@pytest.fixture(scope="module")
def broker() -> Iterator[services.RedisServer]:
    with services.redis(PASSWORD) as server:
        yield server


@pytest.fixture
def owner_url(postgres: str) -> Iterator[str]:
    """Yield the URL of a role that owns the tables and may create roles, but is not a superuser."""
    engine = create_database_engine(postgres).execution_options(isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("CREATE ROLE control LOGIN CREATEROLE"))
        for table in ["alembic_version", *SQLModel.metadata.tables]:
            connection.execute(text(f'ALTER TABLE "{table}" OWNER TO control'))
    yield postgres.replace("tunesmith@", "control@")
    with engine.connect() as connection:
        connection.execute(text("REASSIGN OWNED BY control TO tunesmith"))
        for role in connection.scalars(
            text("SELECT rolname FROM pg_roles WHERE rolname LIKE 'tunesmith\\_%'")
        ):
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))
        connection.execute(text("DROP ROLE control"))
    engine.dispose()


@pytest.fixture
def client(
    request: pytest.FixtureRequest,
    settings: Settings,
    owner_url: str,
    broker: services.RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[TestClient]:
    monkeypatch.setenv("TUNESMITH_DATABASE_URL", owner_url)
    monkeypatch.setenv("TUNESMITH_BROKER_URL", broker.url)
    clear_caches()
    get_settings()
    with TestClient(configured_app(), base_url="http://127.0.0.1", client=("127.0.0.1", 50000)) as client:
        yield client


@pytest.fixture
def join_key(client: TestClient) -> dict[str, Any]:
    """Lock the service, and create a key of the scope `worker`."""
    admin = client.post("/api/v1/keys", json={"name": "a", "scopes": ["admin"], "lock_service": True}).json()
    client.headers["Authorization"] = f"Bearer {admin['key']}"
    return client.post("/api/v1/keys", json={"name": "gpu-1", "scopes": ["worker"]}).json()  # type: ignore[no-any-return]


def join(client: TestClient, key: dict[str, Any], **body: str) -> Any:
    return client.post(
        "/api/v1/worker-credentials", json=BODY | body, headers={"Authorization": f"Bearer {key['key']}"}
    )


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
class TestServiceWithoutKeys:
    def test_no_host_joins_it(self, client: TestClient) -> None:
        refused = client.post("/api/v1/worker-credentials", json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "hosts_need_keys")

    def test_a_host_whose_key_was_the_last_one_does_not_become_an_admin(
        self, client: TestClient, join_key: dict[str, Any]
    ) -> None:
        joined = join(client, join_key).json()
        with transaction() as session:
            session.execute(update(ApiKey).values(revoked_at=datetime.now(UTC)))
        del client.headers["Authorization"]
        assert client.get("/api/v1/keys").status_code == 401
        assert join(client, join_key).status_code == 401
        with transaction() as session:
            row = update(WorkerCredential).where(col(WorkerCredential.id) == joined["id"])
            session.execute(row.values(ended_at=datetime.now(UTC)))
        assert client.get("/api/v1/keys").status_code == 200


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
class TestJoinedHost:
    def test_it_reads_and_writes_what_a_worker_does_and_nothing_else(
        self, client: TestClient, join_key: dict[str, Any]
    ) -> None:
        joined = join(client, join_key).json()
        assert joined["notices"] == []
        engine = create_database_engine(joined["database_url"])
        allowed = [
            "SELECT id, models FROM api_key", "SELECT url FROM webhook", "UPDATE run SET attempt = 1",
            "INSERT INTO token_use VALUES ('t', 'k', '2026-01-01', 'r', 1)",
        ]  # fmt: skip
        refused = [
            "SELECT sha256 FROM api_key", "SELECT * FROM api_key", "UPDATE api_key SET revoked_at = now()",
            "SELECT encrypted_secret FROM webhook", "SELECT * FROM worker_credential", "DELETE FROM run",
            "SELECT * FROM stored_response", "INSERT INTO api_key (id) VALUES ('x')",
            "LOCK TABLE run", "LOCK TABLE event IN SHARE MODE", "LOCK TABLE api_key IN ROW SHARE MODE",
            "LOCK TABLE run_member", "SELECT * FROM storage_state FOR UPDATE", "TRUNCATE event",
            "CREATE TABLE t (i int)", "CREATE ROLE other", "DROP TABLE run", "COPY run TO '/tmp/x'",
        ]  # fmt: skip
        assert [statement for statement in allowed if not is_allowed(engine, statement)] == []
        assert [statement for statement in refused if is_allowed(engine, statement)] == []
        engine.dispose()

    def test_a_lock_that_it_keeps_ends_with_its_credentials_and_delays_others_for_seconds_until_then(
        self, client: TestClient, join_key: dict[str, Any], postgres: str
    ) -> None:
        joined = join(client, join_key).json()
        engine, own = create_database_engine(joined["database_url"]), get_engine()
        with engine.connect() as host, own.connect() as connection:
            # A session may set other timeouts than those of its role, and take any advisory lock.
            host.execute(text("SET idle_in_transaction_session_timeout = 0; SELECT pg_advisory_lock(7)"))
            host.execute(text("SELECT id FROM run FOR UPDATE"))
            connection.execute(text("SET lock_timeout = '200ms'"))
            with pytest.raises(DATABASE_UNAVAILABLE, match="lock timeout"):
                connection.execute(text("SELECT pg_advisory_xact_lock(7)"))
            connection.rollback()
            assert connection.scalar(text("SHOW lock_timeout")) == "20s"
            client.delete(f"/api/v1/worker-credentials/{joined['id']}").raise_for_status()
            connection.execute(text("SELECT pg_advisory_xact_lock(7)"))
            with pytest.raises(DBAPIError):
                host.scalar(text("SELECT 1"))
        engine.dispose()

    def test_sessions_with_its_password_have_timeouts(
        self, client: TestClient, join_key: dict[str, Any]
    ) -> None:
        joined = join(client, join_key).json()
        with psycopg.connect(joined["database_url"]) as session:
            values = [session.execute(f"SHOW {name}").fetchone() for name in SESSION_TIMEOUTS]
        assert values == [("20s",), ("15s",), ("2min",)]

    def test_its_redis_user_sends_and_receives_notifications_and_nothing_else(
        self, client: TestClient, join_key: dict[str, Any], broker: services.RedisServer
    ) -> None:
        url = join(client, join_key).json()["broker_url"]
        with Connection(url) as connection, connection.SimpleQueue("cpu") as queue:
            queue.put({"queue": "cpu"})
            queue.get(timeout=60)
            # What a worker does at its start and now and then: messages that none has acknowledged return.
            qos = queue.consumer.channel.qos
            qos.channel.visibility_timeout = 0
            qos.restore_visible(interval=1)
            queue.get(timeout=60).ack()
        commands = (
            "GET other", "FLUSHALL", "CONFIG GET *", "KEYS *", "ACL LIST", "MONITOR", "CLIENT LIST",
            "EVAL return(1) 0", "SCRIPT LOAD return(1)", "FUNCTION LIST", "SHUTDOWN",
        )  # fmt: skip
        with closing(Redis.from_url(url)) as user:
            for command in commands:
                with pytest.raises(RedisError, match=r"[Pp]ermission"):
                    send(user, command)

    def test_it_is_cut_off_when_it_leaves(
        self, client: TestClient, join_key: dict[str, Any], broker: services.RedisServer
    ) -> None:
        joined = join(client, join_key).json()
        engine, user = create_database_engine(joined["database_url"]), Redis.from_url(joined["broker_url"])
        with closing(user), engine.connect() as connection:
            assert connection.scalar(text("SELECT 1")) == 1 and user.llen("cpu") == 0
            key = {"Authorization": f"Bearer {join_key['key']}"}
            assert client.delete(f"/api/v1/worker-credentials/{joined['id']}", headers=key).status_code == 200
            with pytest.raises(DBAPIError):
                connection.scalar(text("SELECT 1"))
        with pytest.raises(DBAPIError):
            engine.connect()
        engine.dispose()
        with closing(user), pytest.raises(RedisError):
            user.llen("cpu")
        assert client.get("/api/v1/worker-credentials").json()["items"][0]["ended_at"] is not None

    def test_a_script_that_never_ends_does_not_keep_a_user_of_an_earlier_version_connected(
        self, client: TestClient, join_key: dict[str, Any], broker: services.RedisServer
    ) -> None:
        joined = join(client, join_key).json()
        with closing(Redis.from_url(broker.url)) as admin:
            send(admin, f"ACL SETUSER {joined['broker_user']} +eval")
            send(admin, "CONFIG SET busy-reply-threshold 100")
            script = start_script(joined["broker_url"], "while true do end")
            with pytest.raises(RedisError, match="BUSY"):
                admin.llen("cpu")
            assert client.delete(f"/api/v1/worker-credentials/{joined['id']}").status_code == 200
            assert joined["broker_user"] not in send(admin, "ACL USERS") and admin.llen("cpu") == 0
        with pytest.raises(RedisError):
            script.read_response()
            script.read_response()
        script.disconnect()

    def test_a_script_that_redis_does_not_kill_is_reported_until_the_user_is_deleted(
        self, client: TestClient, join_key: dict[str, Any], broker: services.RedisServer
    ) -> None:
        joined = join(client, join_key).json()
        with closing(Redis.from_url(broker.url)) as admin:
            send(admin, f"ACL SETUSER {joined['broker_user']} +eval")
            send(admin, "CONFIG SET busy-reply-threshold 100")
        script = start_script(joined["broker_url"], "redis.call('set', KEYS[1], 1) while true do end")
        with transaction() as session:
            revoke_key(session, join_key["id"])
        with pytest.raises(RedisBlocked, match=r"UNKILLABLE.*Restart Redis"):
            reconcile()
        engine = create_database_engine(joined["database_url"])
        with pytest.raises(DBAPIError):
            engine.connect()
        engine.dispose()
        broker.kill()
        broker.start()
        script.disconnect()
        reconcile()
        assert client.get("/api/v1/worker-credentials").json()["items"][0]["ended_at"] is not None

    def test_it_is_cut_off_when_its_key_is_revoked(
        self, client: TestClient, join_key: dict[str, Any]
    ) -> None:
        joined = join(client, join_key).json()
        engine = create_database_engine(joined["database_url"])
        with transaction() as session:
            revoke_key(session, join_key["id"])
        reconcile()
        with pytest.raises(DBAPIError):
            engine.connect()
        engine.dispose()

    def test_objects_in_another_database_do_not_keep_a_host_or_the_next_one_connected(
        self, client: TestClient, join_key: dict[str, Any], owner_url: str
    ) -> None:
        hosts = [join(client, join_key, name=name).json() for name in ("gpu-1", "gpu-2")]
        own = make_url(hosts[0]["database_url"])
        elsewhere = create_database_engine(
            own.set(database="template1").render_as_string(hide_password=False)
        )
        with elsewhere.begin() as connection:
            large_object = connection.scalar(text("SELECT lo_create(0)"))
        elsewhere.dispose()
        with transaction() as session:
            revoke_key(session, join_key["id"])
        reconcile()
        for host in hosts:
            with closing(Redis.from_url(host["broker_url"])) as user, pytest.raises(RedisError):
                user.llen("cpu")
            engine = create_database_engine(host["database_url"])
            with pytest.raises(DBAPIError):
                engine.connect()
            engine.dispose()
        ended = client.get("/api/v1/worker-credentials").json()["items"]
        assert [one["ended_at"] is not None for one in ended] == [True, True]
        with superuser(owner_url, "template1") as connection:
            connection.execute(text(f"SELECT lo_unlink({large_object})"))

    def test_a_user_of_redis_that_has_ended_is_not_set_again_by_a_process_that_read_it_before(
        self, client: TestClient, join_key: dict[str, Any]
    ) -> None:
        joined = join(client, join_key).json()
        with read_session() as session:
            read_before = list(session.scalars(select(WorkerCredential)))
        with transaction() as session:
            revoke_key(session, join_key["id"])
        reconcile()
        restore_users(read_before)
        with closing(Redis.from_url(joined["broker_url"])) as user, pytest.raises(RedisError):
            user.llen("cpu")

    def test_joining_again_changes_the_passwords_and_keeps_the_role(
        self, client: TestClient, join_key: dict[str, Any], postgres: str
    ) -> None:
        first = join(client, join_key).json()
        hashes = [read_password_hash(postgres, first["database_role"])]
        second = join(client, join_key).json()
        hashes.append(read_password_hash(postgres, second["database_role"]))
        assert first["id"] == second["id"] and first["database_role"] == second["database_role"]
        assert hashes[0] != hashes[1] and all(text.startswith("SCRAM-SHA-256$") for text in hashes)
        with closing(Redis.from_url(second["broker_url"])) as user:
            assert user.llen("cpu") == 0
        with (
            closing(Redis.from_url(first["broker_url"])) as user,
            pytest.raises(RedisError, match="password"),
        ):
            user.llen("cpu")

    def test_a_redis_that_was_restarted_gets_the_user_again(
        self, client: TestClient, join_key: dict[str, Any], broker: services.RedisServer
    ) -> None:
        url = join(client, join_key).json()["broker_url"]
        broker.stop()
        broker.start()
        reconcile()
        with closing(Redis.from_url(url)) as user:
            assert user.llen("cpu") == 0

    def test_servers_that_allow_no_credentials_share_their_own_and_the_response_says_it(
        self, client: TestClient, join_key: dict[str, Any], owner_url: str, broker: services.RedisServer
    ) -> None:
        with closing(Redis.from_url(broker.url)) as admin:
            send(admin, "ACL SETUSER default -acl")
        engine = create_database_engine(owner_url.replace("control@", "tunesmith@"))
        with engine.begin() as connection:
            connection.execute(text("ALTER ROLE control NOCREATEROLE"))
        engine.dispose()
        joined = join(client, join_key).json()
        assert (joined["database_role"], joined["broker_user"]) == (None, None)
        assert len(joined["notices"]) == 2 and "until that password is changed" in joined["notices"][0]
        assert joined["database_url"] == owner_url and joined["broker_url"] == broker.url
        broker.stop()
        broker.start()

    def test_a_schema_in_which_every_role_creates_functions_is_named_in_the_response(
        self, client: TestClient, join_key: dict[str, Any], owner_url: str
    ) -> None:
        database = str(make_url(owner_url).database)
        with superuser(owner_url, database) as connection:
            connection.execute(text("GRANT CREATE ON SCHEMA public TO PUBLIC"))
        notices = join(client, join_key).json()["notices"]
        with superuser(owner_url, database) as connection:
            connection.execute(text("REVOKE CREATE ON SCHEMA public FROM PUBLIC"))
        assert len(notices) == 1 and "REVOKE CREATE ON SCHEMA public FROM PUBLIC" in notices[0]
        assert join(client, join_key).json()["notices"] == []

    def test_a_key_joins_as_many_hosts_as_the_settings_allow(
        self, client: TestClient, join_key: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(get_settings(), "max_joined_hosts_per_key", 2)
        monkeypatch.setattr(get_settings(), "max_joined_hosts", 3)
        other = client.post("/api/v1/keys", json={"name": "gpu-2", "scopes": ["worker"]}).json()
        first = join(client, join_key, name="gpu-1").json()
        assert join(client, join_key, name="gpu-2").status_code == 201
        refused = join(client, join_key, name="gpu-3").json()["error"]
        assert refused["code"] == "too_many_joined_hosts"
        assert "TUNESMITH_MAX_JOINED_HOSTS_PER_KEY" in refused["hint"]
        assert join(client, other, name="gpu-3").status_code == 201
        refused = join(client, other, name="gpu-4").json()["error"]
        assert "TUNESMITH_MAX_JOINED_HOSTS for" in refused["hint"]
        # A host that has joined renews its credentials, and one that left makes room.
        assert join(client, join_key, name="gpu-1").status_code == 201
        assert client.delete(f"/api/v1/worker-credentials/{first['id']}").status_code == 200
        assert join(client, other, name="gpu-4").status_code == 201

    def test_hosts_that_join_at_the_same_time_do_not_exceed_the_limit(
        self, client: TestClient, join_key: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(get_settings(), "max_joined_hosts_per_key", 3)
        with ThreadPoolExecutor(6) as pool:
            statuses = list(pool.map(lambda n: join(client, join_key, name=f"h{n}").status_code, range(6)))
        assert sorted(statuses) == [201] * 3 + [409] * 3

    def test_more_connections_than_the_server_accepts_are_reported(
        self, client: TestClient, join_key: dict[str, Any]
    ) -> None:
        notices = [join(client, join_key, name=f"gpu-{n}").json()["notices"] for n in range(4)]
        assert notices[:3] == [[], [], []]
        (notice,) = notices[3]
        assert "4 joined hosts" in notice and "Set max_connections to 109 or more" in notice
        with read_session() as session:
            assert explain_connections(session.connection(), 1) == notice

    def test_credentials_that_ended_long_ago_are_deleted(
        self, client: TestClient, join_key: dict[str, Any]
    ) -> None:
        ids = [join(client, join_key, name=f"gpu-{n}").json()["id"] for n in range(2)]
        with transaction() as session:
            row = update(WorkerCredential).where(col(WorkerCredential.id) == ids[0])
            session.execute(row.values(ended_at=database_now(-400 * 86400)))
        assert [removal.name for removal in delete_records(get_settings(), dry_run=False)] == [ids[0]]

    def test_a_host_of_another_version_is_refused_with_both_versions(
        self, client: TestClient, join_key: dict[str, Any]
    ) -> None:
        response = join(client, join_key, version="0.0.9", revision="0012")
        assert (response.status_code, response.json()["error"]["code"]) == (409, "worker_version_mismatch")
        message = response.json()["error"]["message"]
        assert "Tunesmith 0.0.9 with the database schema 0012" in message and "Tunesmith 0.1.0" in message
        assert "pip install --upgrade 'tunesmith==0.1.0'" in response.json()["error"]["hint"]

    def test_a_key_sees_and_ends_its_own_hosts_only(
        self, client: TestClient, join_key: dict[str, Any]
    ) -> None:
        other = client.post("/api/v1/keys", json={"name": "gpu-2", "scopes": ["worker"]}).json()
        joined = join(client, join_key).json()
        as_other = {"Authorization": f"Bearer {other['key']}"}
        path = "/api/v1/worker-credentials"
        assert client.delete(f"{path}/{joined['id']}", headers=as_other).status_code == 404
        assert client.get(path, headers=as_other).status_code == 403
        for scopes in (["read"], ["write"], ["inference"], ["admin"], ["read", "worker"]):
            key = client.post("/api/v1/keys", json={"name": "k", "scopes": scopes}).json()
            refused = join(client, key)
            assert refused.status_code == 403
        assert refused.json()["error"]["code"] == "worker_key_needed"
        assert "scopes read, worker" in refused.json()["error"]["message"]
        assert "keys create --name HOST --scope worker" in refused.json()["error"]["hint"]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_second_host_with_sqlite_is_refused_with_what_is_needed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TestClient(configured_app(), base_url="http://127.0.0.1", client=("127.0.0.1", 50000)) as client:
        error = client.post("/api/v1/worker-credentials", json=BODY).json()["error"]
    assert error["code"] == "host_needs_servers" and "SQLite" in error["message"]
    assert "docker compose up" in error["hint"] and "python -m app move --to postgresql://" in error["hint"]


def test_a_worker_of_another_version_does_not_start(settings: Settings) -> None:
    prepare_control_plane()
    prepare_worker()
    with transaction() as session:
        session.execute(update(StorageState).values(version="9.9.9"))
    with pytest.raises(SettingUnusable, match=r"is Tunesmith 0\.1\.0 .* Tunesmith 9\.9\.9 .*pip install"):
        prepare_worker()
    with transaction() as session:
        session.execute(text("UPDATE alembic_version SET version_num = 'later'"))
    try:
        with pytest.raises(SettingUnusable, match="a version with the schema later"):
            prepare_worker()
    finally:
        with transaction() as session:
            session.execute(text(f"UPDATE alembic_version SET version_num = '{list_revisions()[-1]}'"))


def test_every_table_is_classified_for_workers() -> None:
    lists = [*WRITTEN, *READ, *HIDDEN]
    assert sorted(lists) == sorted({*SQLModel.metadata.tables, "alembic_version"})
    assert set(DELETED_FROM) <= set(WRITTEN)


@contextmanager
def superuser(owner_url: str, database: str) -> Iterator[SqlConnection]:
    """Yield a connection of the server's superuser to one of its databases."""
    url = make_url(owner_url).set(username="tunesmith", database=database)
    engine = create_database_engine(url.render_as_string(hide_password=False))
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def start_script(url: str, script: str) -> Any:
    """Start a script in Redis that never ends, and return its connection once it blocks the server."""
    connection: Any = Redis.from_url(url).connection_pool.get_connection()
    connection.send_command("EVAL", script, 1, "cpu-x")
    with closing(Redis.from_url(url)) as user:
        while not is_blocked(user):
            time.sleep(0.05)
    return connection


def is_blocked(user: Redis) -> bool:
    try:
        user.llen("cpu")
    except RedisError as error:
        assert "BUSY" in str(error), error
        return True
    return False


def send(user: Redis, command: str) -> Any:
    return user.execute_command(*command.split())  # type: ignore[no-untyped-call]


def read_password_hash(url: str, role: str) -> str:
    engine = create_database_engine(url)
    with engine.connect() as connection:
        query = text("SELECT rolpassword FROM pg_authid WHERE rolname = :role")
        found = str(connection.scalar(query, {"role": role}))
    engine.dispose()
    return found


def is_allowed(engine: Engine, statement: str) -> bool:
    """Return whether the statement succeeds; it is rolled back."""
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(statement)
    except DBAPIError as error:
        assert any(phrase in str(error) for phrase in ("permission denied", "must be"))
        return False
    finally:
        engine.dispose()
    return True
