"""The views in the navigation, in order: a path, and the key of its name in the catalogue `common`."""

from typing import NamedTuple


class NavigationItem(NamedTuple):
    """A link of the navigation; it is current on every path below its own."""

    path: str
    name: str


NAVIGATION = (NavigationItem("/jobs", "jobs"),)
