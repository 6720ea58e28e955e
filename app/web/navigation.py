"""The views in the navigation, in order: a path, and the key of its name in the catalogue `common`."""

from typing import NamedTuple


class NavigationItem(NamedTuple):
    """A link of the navigation; it is current on every path below its own and the other ones."""

    path: str
    name: str
    others: tuple[str, ...] = ()

    def is_current(self, address: str) -> bool:
        """Return whether an address belongs to the view."""
        return address.startswith((self.path, *self.others))


NAVIGATION = (
    NavigationItem("/jobs", "jobs", others=("/runs",)),
    NavigationItem("/datasets", "datasets"),
    NavigationItem("/evaluations", "evaluations", others=("/leaderboard",)),
    NavigationItem("/comparisons", "comparisons", others=("/compare",)),
    NavigationItem("/models", "models"),
    NavigationItem("/chat", "chat"),
    NavigationItem("/deployments", "deployments", others=("/aliases",)),
    NavigationItem("/batches", "openai_api", others=("/fine-tuning",)),
    NavigationItem("/hosts", "hosts"),
    NavigationItem("/storage", "storage"),
)
