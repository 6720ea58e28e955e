"""The report of a worker's host, as the worker writes it into its row."""

import logging

from app.scheduling.incidents import describe_error
from workers.doctor.check_result import CheckState
from workers.doctor.report import inspect
from workers.hosts.worker import WorkerContext

logger = logging.getLogger(__name__)


def announce_report(worker: WorkerContext) -> None:
    """Check the host, write the report into the worker's row, and log what is wrong.

    The worker serves its queues meanwhile: an import of torch takes seconds, a version of an engine longer.
    """
    try:
        report = inspect(worker.settings)
        for check in report.checks:
            if check.state is not CheckState.ok:
                logger.warning("%s: %s: %s → %s", check.state, check.name, check.found, check.fix)
        worker.announce_report(report.to_row())
    except Exception as error:
        # The report informs people; no work depends on it.
        logger.warning("cannot report on this host: %s", describe_error(error))
