"""The engine that serves a request: the first choice, and another one for the second attempt."""

from serving.gateway.request_context import RequestContext, TrafficKey
from serving.gateway.routes import Route, Target
from serving.gateway.upstreams import Upstreams
from serving.http.errors import EngineCircuitOpen, EngineUnavailable


class RouteTargets:
    """The target of one request, chosen among those of its route whose circuits are closed."""

    current: Target

    def __init__(self, upstreams: Upstreams, context: RequestContext, route: Route, streamed: bool) -> None:
        self.route = route
        self._upstreams = upstreams
        self._context = context
        self._streamed = streamed
        self._failed_key: TrafficKey | None = None

    def first(self) -> Target:
        """Return the first choice; raises EngineCircuitOpen if no circuit is closed."""
        breakers = self._upstreams.breakers
        return self._choose(breakers.open_targets() if breakers.circuits else ())

    async def next(self, stale: bool) -> Target:
        """Look the route up and return another target, or the same if only its connection was stale.

        Raises:
            EngineUnavailable: The deployment was stopped, or no circuit is closed.
        """
        self._failed_key = None if stale else self._context.traffic_key
        routes = self._upstreams.routes
        if not routes.is_fresh():
            await routes.refresh()
        route = routes.find(self.route.name)
        if route is None:
            raise EngineUnavailable(f"The deployment {self.route.name!r} was stopped during the request.")
        self.route = route
        avoided = self._upstreams.breakers.open_targets()
        other = None if stale else route.choose([*avoided, self.current])
        return other or self._choose(avoided)

    def take(self, target: Target) -> None:
        """Make a target the current one, and count the request for its version of an alias."""
        self.current = target
        # The target of an alias without any deployment has no id.
        if self.route.measured_version is None or not target.deployment_id:
            return
        key = self.route.name, self.route.measured_version, target.deployment_id
        if self._failed_key is not None and self._failed_key != key:
            self._upstreams.traffic.count_failed_attempt(self._failed_key)
        self._context.traffic_key = key
        self._context.streamed = self._streamed

    def record(self, succeeded: bool) -> None:
        """Count a success or a failure of the current target for its circuit."""
        breakers = self._upstreams.breakers
        if not succeeded:
            breakers.record_failure(self.current)
        elif breakers.circuits:
            breakers.record_success(self.current)

    def _choose(self, avoided: "list[Target] | tuple[()]") -> Target:
        target = self.route.choose(avoided)
        if target is None:
            raise EngineCircuitOpen(self.route.name, self._upstreams.breakers.retry_after_seconds())
        return target
