"""Celery's Redis transport without scripts, so that no user of Redis needs the right to run one.

kombu looks for messages that none has acknowledged under a lock, which redis-py releases by a script. Here
the lock expires instead. A script that never ends would block Redis for everyone.
"""

import time
from typing import Any

from kombu.transport import redis


class _ScriptlessQoS(redis.QoS):
    """A QoS that restores messages at most once in the time after which its lock expires."""

    def restore_visible(self, start: int = 0, num: int = 10, interval: int = 10) -> None:
        """Return messages to their queues that a worker has received and not acknowledged for long."""
        self._vrestore_count += 1
        if (self._vrestore_count - 1) % (interval or 1):
            return
        with self.channel.conn_or_acquire() as client:
            if not client.set(self.unacked_mutex_key, 1, nx=True, ex=self.unacked_mutex_expire):
                return
            oldest = time.time() - self.visibility_timeout
            tags: list[Any] = client.zrange(
                self.unacked_index_key, oldest, 0, desc=True, byscore=True, offset=start, num=num
            )
            for tag in tags:
                self.restore_by_tag(tag, client)


class _ScriptlessChannel(redis.Channel):
    QoS = _ScriptlessQoS


class RedisTransport(redis.Transport):
    """The transport that `redis://` and `rediss://` name."""

    Channel = _ScriptlessChannel
