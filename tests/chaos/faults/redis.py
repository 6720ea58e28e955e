"""Faults of Redis: emptied, stopped, paused, poisoned, full, or read-only as after a failover."""

import random
import time

from redis import Redis

from tests.chaos.faults.fault import TEAM, Fault
from tests.chaos.platforms import Platform

QUEUE = "cpu"
HOLD_SECONDS = (0.5, 4.0)
# What the list of a queue never contains: not JSON, JSON that is no message, and a very deep one.
POISON = ("garbage{{{", "5", "[]", "null", "{}", '{"body": 7}', "[" * 5000)


def flush(platform: Platform, choose: random.Random) -> bool:
    """Delete everything."""
    with _connect(platform) as redis:
        redis.flushall()
    return True


def restart(platform: Platform, choose: random.Random) -> bool:
    """Stop the server, whose content is lost, and start it again."""
    assert platform.redis is not None
    platform.redis.stop()
    _hold(choose)
    platform.redis.start()
    return True


def end_connections(platform: Platform, choose: random.Random) -> bool:
    """End all connections of clients."""
    with _connect(platform) as redis:
        return bool(redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"))


def pause(platform: Platform, choose: random.Random) -> bool:
    """Let all commands of all clients wait."""
    with _connect(platform) as redis:
        redis.client_pause(round(1000 * choose.uniform(*HOLD_SECONDS)))
    return True


def poison(platform: Platform, choose: random.Random) -> bool:
    """Add an item that is not a message to a queue."""
    with _connect(platform) as redis:
        if redis.type(QUEUE) in (b"list", b"none"):
            redis.rpush(QUEUE, choose.choice(POISON))
            return True
    return False


def replace_queue(platform: Platform, choose: random.Random) -> bool:
    """Replace a queue by a value of another type."""
    with _connect(platform) as redis:
        redis.set(QUEUE, "not a list")
        _hold(choose)
        redis.delete(QUEUE)
    return True


def limit_memory(platform: Platform, choose: random.Random) -> bool:
    """Let the server refuse all commands that need memory."""
    with _connect(platform) as redis:
        redis.config_set("maxmemory", "1")
        _hold(choose)
        redis.config_set("maxmemory", "0")
    return True


def make_read_only(platform: Platform, choose: random.Random) -> bool:
    """Make the server a replica, which refuses writes."""
    with _connect(platform) as redis:
        redis.execute_command("REPLICAOF", "127.0.0.1", "1")
        _hold(choose)
        redis.execute_command("REPLICAOF", "NO", "ONE")
    return True


FAULTS = [
    Fault("Redis flushed", flush, 3, TEAM, "redis"),
    Fault("Redis restarted", restart, 3, TEAM, "redis"),
    Fault("connections to Redis ended", end_connections, 3, TEAM, "redis"),
    Fault("Redis paused", pause, 2, TEAM, "redis"),
    Fault("Redis poisoned", poison, 5, TEAM, "redis"),
    Fault("queue in Redis of another type", replace_queue, 3, TEAM, "redis"),
    Fault("Redis out of memory", limit_memory, 3, TEAM, "redis"),
    Fault("Redis read-only", make_read_only, 3, TEAM, "redis"),
]


def _hold(choose: random.Random) -> None:
    time.sleep(choose.uniform(*HOLD_SECONDS))


def _connect(platform: Platform) -> Redis:
    assert platform.redis is not None
    return Redis.from_url(platform.redis.url)
