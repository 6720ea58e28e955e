"""Reduction of the events of runs that ended some time ago, which keeps the curve of every metric.

Status, warning, checkpoint and resumed events stay. Log, sample and progress events go: the files `log.txt`
and `samples.jsonl` contain all of them. Of the metrics, each curve keeps evenly spaced
points with its first, last and extreme ones.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from sqlalchemy import delete, or_, select, update
from sqlmodel import Session, col

from app.retention.checkpoints import DAY_SECONDS
from app.retention.report import Removal, RemovalReason
from app.settings import Settings
from app.storage.database import database_now, read_session, transaction
from app.tables import FINISHED, Event, EventType, Run

ROWS_PER_READ = 1000
# Both databases limit the number of parameters of a statement.
ROWS_PER_DELETE = 5000


class ThinnedCurve:
    """The points of one metric that stay; memory does not depend on the length of the curve."""

    def __init__(self, max_points: int) -> None:
        self._max_points = max_points
        self._stride = 1
        self._count = 0
        self._spaced: list[int] = []
        self._last: int | None = None
        self._lowest: tuple[float, int] | None = None
        self._highest: tuple[float, int] | None = None

    def add(self, seq: int, value: float | None) -> None:
        """Add the next point; its value is None if it was not finite."""
        if self._count % self._stride == 0:
            self._spaced.append(seq)
            if len(self._spaced) > self._max_points:
                self._spaced = self._spaced[::2]
                self._stride *= 2
        self._count += 1
        self._last = seq
        if value is not None:
            if self._lowest is None or value < self._lowest[0]:
                self._lowest = value, seq
            if self._highest is None or value > self._highest[0]:
                self._highest = value, seq

    def list_seqs(self) -> set[int]:
        """Return the numbers of the events that contain the points."""
        extremes = [point[1] for point in (self._lowest, self._highest) if point is not None]
        return {*self._spaced, *extremes} | ({self._last} if self._last is not None else set())


def thin_events(settings: Settings, before_each: Callable[[], None], *, dry_run: bool) -> Iterator[Removal]:
    """Reduce the events of each run that ended long enough ago, once after each of its ends."""
    if not settings.event_detail_days:
        return
    due = select(col(Run.id)).where(
        col(Run.status).in_(FINISHED),
        col(Run.finished_at) < database_now(-settings.event_detail_days * DAY_SECONDS),
        or_(col(Run.thinned_at).is_(None), col(Run.thinned_at) < col(Run.finished_at)),
    )
    with read_session() as session:
        run_ids = session.scalars(due.order_by(col(Run.id))).all()
    for run_id in run_ids:
        before_each()
        with read_session(streaming=True) as session:
            surplus = _list_surplus(session, run_id, settings.max_metric_points)
        if not dry_run:
            _delete_events(run_id, surplus)
        if surplus:
            yield Removal(reason=RemovalReason.events_thinned, name=f"{len(surplus)} events of {run_id}")


def _list_surplus(session: Session, run_id: str, max_points: int) -> list[int]:
    """Return the numbers of the events that a run no longer needs."""
    is_published = session.scalar(select(col(Run.log_artifact)).where(col(Run.id) == run_id)) is not None
    dropped = {EventType.progress} | ({EventType.log, EventType.samples} if is_published else set())
    curves: dict[str, ThinnedCurve] = defaultdict(lambda: ThinnedCurve(max_points))
    metrics: list[int] = []
    events = select(col(Event.seq), col(Event.data)).where(
        col(Event.run_id) == run_id, col(Event.type) == EventType.metrics
    )
    rows = session.execute(events.order_by(col(Event.seq)).execution_options(yield_per=ROWS_PER_READ))
    for seq, values in rows:
        metrics.append(seq)
        for name, value in values.items():
            curves[name].add(seq, value)
    others = select(col(Event.seq)).where(col(Event.run_id) == run_id, col(Event.type).in_(dropped))
    needed = set().union(*(curve.list_seqs() for curve in curves.values()))
    return [*session.scalars(others), *(seq for seq in metrics if seq not in needed)]


def _delete_events(run_id: str, seqs: Sequence[int]) -> None:
    """Delete events in short transactions, between which others can write, and mark the run as thinned.

    An interruption leaves the mark unset. The next collection then reduces what is left.
    """
    for start in range(0, len(seqs), ROWS_PER_DELETE):
        part = seqs[start : start + ROWS_PER_DELETE]
        statement = delete(Event).where(col(Event.run_id) == run_id, col(Event.seq).in_(part))
        with transaction() as session:
            if not _lock_finished(session, run_id):
                return
            session.execute(statement.execution_options(synchronize_session=False))
    with transaction() as session:
        if _lock_finished(session, run_id):
            thinned = update(Run).where(col(Run.id) == run_id).values(thinned_at=database_now())
            session.execute(thinned.execution_options(synchronize_session=False))


def _lock_finished(session: Session, run_id: str) -> bool:
    """Lock a run that has ended, which excludes a retry; return whether there is one."""
    locked = select(col(Run.id)).where(col(Run.id) == run_id, col(Run.status).in_(FINISHED))
    return session.scalar(locked.with_for_update()) is not None
