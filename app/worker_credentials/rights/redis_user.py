"""A Redis user for each worker of another host, with the keys and commands that Celery needs.

Redis forgets users that were set by a command when it restarts, unless it has a file for them. The row of a
credential therefore contains the hash of the password, with which the user is set again.
"""

import hashlib
from typing import Any

from app.scheduling.incidents import describe_error
from app.scheduling.queue import NOTIFY_TASK, get_celery
from trainers.configs import Queue

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
    # The lock with which one of several workers looks for messages without acknowledgement.
    "+eval",
    "+evalsha",
    "+script|load",
    "+script|exists",
)


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
    """Delete the user, which ends its connections; one that does not exist is left as it is."""
    _call("ACL", "DELUSER", user)


def list_users() -> set[str]:
    """Return the names of all users."""
    return {name.decode() if isinstance(name, bytes) else str(name) for name in _call("ACL", "USERS")}


def _call(*arguments: str) -> Any:
    with get_celery().connection_for_write() as connection:
        return connection.default_channel.client.execute_command(*arguments)
