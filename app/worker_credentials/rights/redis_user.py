"""A Redis user for each worker of another host, with the keys and commands that Celery needs.

Redis forgets users that were set by a command when it restarts, unless it has a file for them. The row of a
credential therefore contains the hash of the password, with which the user is set again.
"""

import hashlib
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

from kombu.utils.url import parse_url

from app.scheduling.incidents import describe_error
from app.scheduling.queue import NOTIFY_TASK, get_celery
from app.settings import get_settings
from trainers.configs import Queue

if TYPE_CHECKING:
    from redis import Redis

# Celery's queues with their priorities, the bindings of kombu, its table of messages without acknowledgement,
# and the key of our check.
KEYS = (
    *(f"~{queue.value}*" for queue in Queue),
    "~_kombu.binding*",
    "~unacked*",
    f"~{NOTIFY_TASK}.check",
)
COMMANDS = (
    "-@all",
    "+@connection",
    "-client|kill",
    "-client|list",
    "-client|pause",
    "+@transaction",
    "+info",
    *(f"+{name}" for name in ("brpop", "lpush", "rpush", "rpop", "llen", "lrem", "del", "set", "get")),
    *(f"+{name}" for name in ("exists", "expire", "pexpire", "type")),
    *(f"+{name}" for name in ("sadd", "srem", "smembers", "scard", "sismember")),
    *(f"+{name}" for name in ("zadd", "zrem", "zrange", "zcard")),
    *(f"+{name}" for name in ("hset", "hget", "hdel", "hexists")),
)
DEFAULT_PORT = 6379
MAX_KILLS = 50
KILL_PAUSE_SECONDS = 0.1
TIMEOUT_SECONDS = 5


class RedisBlocked(Exception):
    """A script runs in Redis, so that a user cannot be deleted."""


def hash_password(password: str) -> str:
    """Return the SHA-256 of a password, as Redis stores it."""
    return hashlib.sha256(password.encode()).hexdigest()


def set_user(user: str, password_sha256: str) -> str | None:
    """Create the user, or set its password and rights again; return why the server refuses it, or None."""
    # Loaded by Celery only where the broker is Redis.
    from redis.exceptions import ResponseError

    try:
        _call("ACL", "SETUSER", user, "reset", "on", f"#{password_sha256}", *KEYS, "resetchannels", *COMMANDS)
    except ResponseError as error:
        return describe_error(error)
    return None


def delete_user(user: str) -> None:
    """Delete the user, which ends its connections; one that does not exist is left as it is.

    A script that blocks Redis is killed first: an earlier version allowed scripts. While it runs, Redis
    refuses all other commands, and so kombu's connections as well.

    Raises:
        RedisBlocked: A script runs that Redis does not kill.
    """
    from redis.exceptions import ResponseError

    with closing(_open_client()) as client:
        for _ in range(MAX_KILLS):
            try:
                _execute(client, "ACL", "DELUSER", user)
            except ResponseError as error:
                if not str(error).startswith("BUSY"):
                    raise
                _kill_script(client, user)
            else:
                return
    raise RedisBlocked(f"Scripts keep Redis from deleting the user {user}; it is tried again.")


def _kill_script(client: "Redis", user: str) -> None:
    """Ask Redis to end the script that runs, and wait a moment."""
    from redis.exceptions import ResponseError

    try:
        _execute(client, "SCRIPT", "KILL")
    except ResponseError as error:
        # It has ended by itself.
        if not str(error).startswith("NOTBUSY"):
            raise RedisBlocked(
                f"A script blocks Redis, which refuses to kill it ({describe_error(error)}), so that the "
                f"user {user} is not deleted yet. Restart Redis: it holds notifications only, which are sent "
                "again."
            ) from error
    time.sleep(KILL_PAUSE_SECONDS)


def list_users() -> set[str]:
    """Return the names of all users."""
    return {name.decode() if isinstance(name, bytes) else str(name) for name in _call("ACL", "USERS")}


def _open_client() -> "Redis":
    """Return a client of redis-py with kombu's options, without the command that kombu sends first."""
    from redis import Redis

    url = get_settings().broker_url.get_secret_value()
    parts = parse_url(url)
    options = parts.get("ssl") or ({"ssl_cert_reqs": "none"} if parts["transport"] == "rediss" else {})
    return Redis(
        host=parts["hostname"],
        port=parts["port"] or DEFAULT_PORT,
        username=parts["userid"],
        password=parts["password"],
        ssl=bool(options),
        socket_timeout=TIMEOUT_SECONDS,
        socket_connect_timeout=TIMEOUT_SECONDS,
        **options,
    )


def _call(*arguments: str) -> Any:
    with get_celery().connection_for_write() as connection:
        return _execute(connection.default_channel.client, *arguments)


def _execute(client: Any, *arguments: str) -> Any:
    return client.execute_command(*arguments)
