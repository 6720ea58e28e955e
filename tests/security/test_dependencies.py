"""The images install exactly the packages that were chosen: each is pinned, and its files have hashes.

`make audit` compares the lists with the databases of known vulnerabilities; it needs the internet.
"""

import re
import tomllib
from pathlib import Path

import pytest

from tests.security.regression import Regression

ROOT = Path(__file__).parents[2]
LISTS = {"api": ["api"], "worker": ["api", "trainer", "cuda", "tracking"]}
PIN = re.compile(r"^(?P<name>[a-z0-9.-]+)==(?P<version>[^ ;]+)(?P<rest>.*)$")


def read_list(name: str) -> str:
    return (ROOT / "requirements" / f"{name}.txt").read_text()


def parse_list(text: str) -> dict[str, tuple[str, list[str]]]:
    """Return the version and the hashes of each package; raise ValueError for a line of another form."""
    packages = {}
    for entry in text.replace("\\\n", " ").splitlines():
        if (pin := PIN.match(entry.strip())) is None:
            raise ValueError(f"not pinned: {entry}")
        packages[pin["name"]] = (pin["version"], re.findall(r"--hash=sha256:([0-9a-f]{64})\b", pin["rest"]))
    return packages


def normalize(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("name", LISTS)
def test_every_package_of_an_image_is_pinned_with_hashes(name: str) -> None:
    packages = parse_list(read_list(name))
    assert len(packages) > 40
    assert [package for package, (_, hashes) in packages.items() if not hashes] == []


@pytest.mark.parametrize("name", LISTS)
def test_the_images_have_the_versions_that_the_tests_ran_with(name: str) -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = dict(line.split(";")[0].strip().split("==") for line in lines if "==" in line)
    tested = {normalize(package): version for package, version in tested.items()}
    pinned = {normalize(package): version for package, (version, _) in parse_list(read_list(name)).items()}
    assert {p: v for p, v in pinned.items() if p in tested and tested[p] != v} == {}


@pytest.mark.parametrize("name", LISTS)
def test_an_image_has_every_dependency_of_its_extras(name: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    needed = {
        normalize(re.split(r"[\[<>=;! ]", requirement)[0])
        for extra in LISTS[name]
        for requirement in extras[extra]
    }
    assert needed - set(map(normalize, parse_list(read_list(name)))) == set()


@pytest.mark.parametrize("dockerfile", ["Dockerfile.api", "Dockerfile.gpu"])
def test_an_image_checks_the_hashes(dockerfile: str) -> None:
    text = (ROOT / dockerfile).read_text()
    assert "--require-hashes --no-deps" in text and "--no-build-isolation" in text


REGRESSIONS = [
    Regression(
        "a package has no hash",
        "tests.security.test_dependencies:read_list",
        lambda name: (ROOT / "requirements" / f"{name}.txt").read_text() + "extra==1.0\n",
        "test_every_package_of_an_image_is_pinned_with_hashes",
    ),
    Regression(
        "the images have another version",
        "tests.security.test_dependencies:read_list",
        lambda name: f"starlette==0.1 --hash=sha256:{'0' * 64}\n",
        "test_the_images_have_the_versions_that_the_tests_ran_with",
    ),
]
