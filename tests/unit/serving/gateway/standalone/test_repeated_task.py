"""Repeated work of a gateway continues after a failure, which health shows until it ends."""

import asyncio

from serving.gateway.standalone.repeated_task import PROBLEMS, repeat_task


async def run_until_called(outcomes: list[BaseException | None], seen: list[dict[str, str]]) -> None:
    done = asyncio.Event()

    def action() -> None:
        seen.append(dict(PROBLEMS))
        if not outcomes:
            done.set()
        elif (outcome := outcomes.pop(0)) is not None:
            raise outcome

    task = asyncio.create_task(repeat_task("work", action, 0))
    await done.wait()
    task.cancel()


def test_work_continues_after_a_failure_and_health_shows_it_until_it_succeeds() -> None:
    seen: list[dict[str, str]] = []
    asyncio.run(run_until_called([OSError("disk full"), RuntimeError("odd"), None], seen))
    assert seen == [{}, {"work": "OSError: disk full"}, {"work": "RuntimeError: odd"}, {}]
