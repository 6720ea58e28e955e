"""What clouds offer, as the worker with their keys has last read it, and what is refused at a POST."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlmodel import Session, col

from app.http.errors import Conflict, field_error
from app.tables import ApiKey, CloudState, Worker
from app.workers.service import AliveWorkers
from trainers.configs.clouds.offers import CloudName, HostSpec, Offer
from trainers.runtime.error_codes import ErrorCode

MAX_NAMED_TYPES = 12
VARIABLES: dict[CloudName, str] = {
    CloudName.aws: "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_DEFAULT_REGION, AWS_EC2_KEY_NAME, "
    "AWS_EC2_SECURITY_GROUP and AWS_EC2_SUBNET_ID",
    CloudName.lambda_cloud: "LAMBDA_API_KEY, LAMBDA_REGION and LAMBDA_SSH_KEY_PATH",
}


class CloudUnattended(Conflict):
    """No live worker holds the keys of the cloud, or it has not read the offers yet."""

    code = ErrorCode.cloud_unattended


class HostsNeedKeys(Conflict):
    """The service has no API key, and a host needs one: its key would be the first and lock the service."""

    code = ErrorCode.hosts_need_keys


def capability_of(cloud: CloudName) -> str:
    """Return the capability of a worker that holds the keys of a cloud."""
    return f"cloud:{cloud}"


def is_attended(workers: Sequence[Worker], cloud: CloudName) -> bool:
    """Return whether one of the workers holds the keys of the cloud."""
    return any(capability_of(cloud) in worker.capabilities for worker in workers)


def list_offers(session: Session) -> list[tuple[CloudState, list[Offer]]]:
    """Return the clouds with what they offer, the cheapest first."""
    clouds = session.scalars(select(CloudState).order_by(col(CloudState.name))).all()
    return [(cloud, [Offer.model_validate(offer) for offer in cloud.offers]) for cloud in clouds]


def require_offer(session: Session, alive: AliveWorkers, spec: HostSpec, prefix: str = "") -> Offer:
    """Return the cheapest offer of a host, with capacity if that is known.

    `prefix` is that of the fields in errors.

    Raises:
        HostsNeedKeys: The service has no API key.
        CloudUnattended: No live worker holds the keys of the cloud.
        UnprocessableContent: The type, its region or the price does not fit.
    """
    require_attended(session, alive, spec.cloud)
    state = session.get(CloudState, spec.cloud)
    if state is None or state.offers_at is None:
        raise _explain_missing_offers(session, alive, spec.cloud, state)
    offers = [Offer.model_validate(offer) for offer in state.offers]
    of_type = [offer for offer in offers if _is_of_type(offer, spec) and offer.spot == spec.spot]
    if not of_type:
        raise field_error(f"{prefix}type", _explain_unknown_type(spec, offers))
    in_region = [offer for offer in of_type if spec.region in (None, offer.region)]
    if not in_region:
        regions = ", ".join(sorted({offer.region for offer in of_type}))
        message = f"{spec.cloud} offers {of_type[0].type} in {regions}, not in {spec.region}."
        raise field_error(f"{prefix}region", message)
    chosen = min(
        in_region, key=lambda offer: (offer.has_capacity is False, not offer.is_home, offer.usd_per_hour)
    )
    if chosen.usd_per_hour > spec.max_usd:
        raise field_error(
            f"{prefix}max_usd",
            f"One hour of {chosen.type} costs {chosen.usd_per_hour:.2f} US dollars, and max_usd is "
            f"{spec.max_usd:.2f}. Raise max_usd, or choose a cheaper type: GET /api/v1/hosts/offers.",
        )
    return chosen


def require_attended(session: Session, alive: AliveWorkers, cloud: CloudName) -> None:
    """Raise HostsNeedKeys or CloudUnattended if no host can be launched in the cloud."""
    has_key = select(col(ApiKey.id)).where(col(ApiKey.revoked_at).is_(None)).limit(1)
    if session.scalar(has_key) is None:
        raise HostsNeedKeys(
            "The service has no API key. A host needs one, and the first key locks the service.",
            hint="Create your own first: `python -m app keys create --name me --scope admin`.",
        )
    if not is_attended(alive.read(session), cloud):
        raise CloudUnattended(
            f"No live worker holds the keys of {cloud}.",
            hint=f"Set {VARIABLES[cloud]} for a worker on the control host, with PostgreSQL and Redis, and "
            "restart it.",
        )


def _explain_missing_offers(
    session: Session, alive: AliveWorkers, cloud: CloudName, state: CloudState | None
) -> CloudUnattended:
    """Return the error of a cloud whose offers no worker has read, with what keeps the worker from it."""
    attending = [worker for worker in alive.read(session) if capability_of(cloud) in worker.capabilities]
    problems = [problem for worker in attending for problem in worker.problems if str(cloud) in problem]
    reason = state.error if state is not None and state.error else next(iter(problems), None)
    if reason is None:
        return CloudUnattended(
            f"The worker with the keys of {cloud} has started, and has not read what it offers yet.",
            hint="Repeat the request in a minute.",
        )
    return CloudUnattended(
        f"The worker with the keys of {cloud} cannot launch hosts: {reason}",
        hint=f"Correct that for the worker {attending[0].name}, restart it, and repeat the request.",
    )


def _is_of_type(offer: Offer, spec: HostSpec) -> bool:
    return offer.is_default if spec.type is None else offer.type == spec.type


def _explain_unknown_type(spec: HostSpec, offers: Sequence[Offer]) -> str:
    types = list(dict.fromkeys(offer.type for offer in offers if offer.spot == spec.spot))
    kind = "spot type" if spec.spot else "type"
    if not types:
        return f"{spec.cloud} offers no {kind} now."
    more = f" and {len(types) - MAX_NAMED_TYPES} more" if len(types) > MAX_NAMED_TYPES else ""
    names = ", ".join(types[:MAX_NAMED_TYPES])
    if spec.type is None:
        variable = f"{spec.cloud.upper()}_INSTANCE_TYPE"
        offered = f"{spec.cloud} offers {names}{more}."
        return f"Name a {kind}, or set {variable} for the worker with the keys. {offered}"
    return f"{spec.cloud} offers no {kind} {spec.type}. It offers {names}{more}: GET /api/v1/hosts/offers."
