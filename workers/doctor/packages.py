"""The check of installed versions against the pins of a clone, or else the bounds of the package."""

import importlib.metadata
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement

import trainers
from app.workers.host_hardware import find_version
from workers.doctor.check_result import CheckResult

DISTRIBUTION = "tunesmith"
# Extras whose packages a worker uses; `dev` only repeats them.
EXTRAS = ("", "api", "trainer", "evaluation", "mlx", "cuda", "s3")
MAX_SHOWN = 5


def check_packages() -> Iterator[CheckResult]:
    """Yield the check of Python, and that of the packages."""
    yield CheckResult.ok("python", f"{platform.python_version()}, {sys.executable}")
    requirements = list(_list_requirements())
    yield compare_versions(requirements, _read_pins(), _find_versions(requirements))


def compare_versions(
    requirements: Sequence[Requirement], pins: dict[str, str], installed: dict[str, str]
) -> CheckResult:
    """Return the check of installed packages against the required bounds, and against the tested pins.

    A package that is not installed is a matter of the extras that were chosen, not of versions.
    """
    name = "packages"
    wrong = [
        f"{one.name} {installed[one.name]} (needs {one.specifier})"
        for one in requirements
        if one.name in installed and not one.specifier.contains(installed[one.name], prereleases=True)
    ]
    command = "pip install -c constraints.txt" if pins else "pip install --upgrade"
    if wrong:
        packages = " ".join(f"'{one.partition(' ')[0]}'" for one in wrong[:MAX_SHOWN])
        return CheckResult.error(name, _join(wrong), f"Run `{command} {packages}`.")
    moved = [
        f"{one} {version} (tested: {pins[_normalize(one)]})"
        for one, version in installed.items()
        if _normalize(one) in pins and version.partition("+")[0] != pins[_normalize(one)].partition("+")[0]
    ]
    if moved:
        packages = " ".join(one.partition(" ")[0] for one in moved[:MAX_SHOWN])
        return CheckResult.warning(name, _join(moved), f"Run `{command} {packages}`.")
    basis = "as pinned in constraints.txt" if pins else "within the bounds of the package"
    return CheckResult.ok(name, f"{DISTRIBUTION} {find_version(DISTRIBUTION)}; {len(installed)} {basis}")


def _list_requirements() -> Iterator[Requirement]:
    seen = set()
    for line in importlib.metadata.requires(DISTRIBUTION) or []:
        one = Requirement(line)
        applies = one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in EXTRAS)
        if applies and one.name not in seen and _normalize(one.name) != DISTRIBUTION:
            seen.add(one.name)
            yield one


def _find_versions(requirements: Sequence[Requirement]) -> dict[str, str]:
    found = {one.name: find_version(one.name) for one in requirements}
    return {name: version for name, version in found.items() if version is not None}


def _read_pins() -> dict[str, str]:
    """Return the pinned versions of a clone, by normalized name; a wheel contains none."""
    file = Path(trainers.__file__).resolve().parents[1] / "constraints.txt"
    if not file.is_file():
        return {}
    lines = (line.partition(";")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    pairs = (line.partition("==") for line in lines if "==" in line and not line.startswith("#"))
    return {_normalize(name.partition("[")[0]): version for name, _, version in pairs}


def _normalize(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def _join(items: Sequence[str]) -> str:
    more = f" and {len(items) - MAX_SHOWN} more" if len(items) > MAX_SHOWN else ""
    return ", ".join(items[:MAX_SHOWN]) + more
