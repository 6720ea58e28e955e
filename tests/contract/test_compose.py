"""Settings, .env.example and docker-compose.yml agree, and each service is confined.

Goal: a setting that an operator writes into .env reaches the processes that need it. Method: the three lists
are compared; every exception names its reason.
"""

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from jsonschema import Draft7Validator

from app.settings import Settings
from app.settings.secret_files import FOREIGN_VARIABLES, SUFFIX
from tests.conftest import ROOT
from tests.services import find_program

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
ENV_EXAMPLE = (ROOT / ".env.example").read_text(encoding="utf-8")
SERVICES: dict[str, Any] = COMPOSE["services"]
WORKERS = [name for name in SERVICES if name.startswith("worker-")]
SETTINGS = {f"TUNESMITH_{name.upper()}" for name in Settings.model_fields}
BY_IMAGE = "the image sets it to the folder of a volume"
BY_COMMAND = "an argument of the image's command"
OF_WORKERS = "only workers read it"
OF_API = "only the API reads it"
OF_JOINED_HOSTS = "`python -m workers join` writes it into the file of a host outside Compose"
OF_OTHER_HOSTS = "only workers outside Compose, whose artifacts travel through the API, read it"
OF_LAUNCHED_HOSTS = "set on a host in a cloud when it joins"
FOR_ITS_HARDWARE = "set for the workers whose image or hardware needs it"
NOT_PASSED = {
    "api": {
        "DATA_DIR": BY_IMAGE,
        "MODEL_ROOTS": BY_IMAGE,
        "HOST": BY_COMMAND,
        "PORT": BY_COMMAND,
        "ENCRYPTION_KEY": "ENCRYPTION_KEY_FILE names its file",
        "TRAINER_PYTHON": "the API's image has no trainers",
        "MLFLOW_URI": OF_WORKERS,
        "MLFLOW_PUBLIC_URL": OF_WORKERS,
        "MLFLOW_EXPERIMENT": OF_WORKERS,
        "WANDB_PROJECT": OF_WORKERS,
        "WANDB_MODE": OF_WORKERS,
        "TENSORBOARD_DIR": OF_WORKERS,
        "TRACKING_RETRY_SECONDS": OF_WORKERS,
        "ENGINE_HOST": OF_WORKERS,
        "ENGINE_COMMANDS": OF_WORKERS,
        "DRAIN_SECONDS": OF_WORKERS,
        "PROBE_SECONDS": OF_WORKERS,
        "PROBE_TIMEOUT_SECONDS": OF_WORKERS,
        "WARM_START": OF_WORKERS,
        "GGUF_ENVIRONMENT": OF_WORKERS,
        "COMET_ENVIRONMENT": OF_WORKERS,
        "STOP_GRACE_SECONDS": OF_WORKERS,
        "DEVICE_LOCKS_DIR": OF_WORKERS,
        "NODE_ADDRESS": OF_WORKERS,
        "NODE_PORTS": OF_WORKERS,
        "HEARTBEAT_FILE": OF_WORKERS,
        "WORKER_KEY": OF_OTHER_HOSTS,
        "CONTROL_URL": OF_JOINED_HOSTS,
        "CONTROL_CA_FILE": OF_JOINED_HOSTS,
        "CREDENTIAL_ID": OF_JOINED_HOSTS,
        "TUNNEL_URL": OF_JOINED_HOSTS,
        "TUNNEL_KEY_FILE": OF_JOINED_HOSTS,
        "TUNNEL_FORWARDS": OF_JOINED_HOSTS,
        "HOST_ID": OF_LAUNCHED_HOSTS,
        "HOST_RENEWAL_FILE": OF_LAUNCHED_HOSTS,
    },
    "worker": {
        "DATA_DIR": BY_IMAGE,
        "MODEL_ROOTS": BY_IMAGE,
        "TRAINER_PYTHON": "the worker's own environment has the trainers",
        "ENGINE_HOST": "the entrypoint sets it to the container's address",
        "ENGINE_COMMANDS": FOR_ITS_HARDWARE,
        "DEVICE_LOCKS_DIR": FOR_ITS_HARDWARE,
        "HOST": OF_API,
        "PORT": OF_API,
        "PROCESSES": OF_API,
        "FIRST_ADMIN_KEY": OF_API,
        "ENCRYPTION_KEY": OF_API,
        "ENCRYPTION_KEY_FILE": OF_API,
        "WEBHOOK_ALLOWED_HOSTS": OF_API,
        "WORKER_KEY": OF_OTHER_HOSTS,
        "CONTROL_URL": OF_JOINED_HOSTS,
        "CONTROL_CA_FILE": OF_JOINED_HOSTS,
        "CREDENTIAL_ID": OF_JOINED_HOSTS,
        "TUNNEL_URL": OF_JOINED_HOSTS,
        "TUNNEL_KEY_FILE": OF_JOINED_HOSTS,
        "TUNNEL_FORWARDS": OF_JOINED_HOSTS,
        "HOST_ID": OF_LAUNCHED_HOSTS,
        "WORKER_DATABASE_URL": OF_API,
        "WORKER_BROKER_URL": OF_API,
        "WORKER_ARTIFACTS_URL": OF_API,
        "HOST_RENEWAL_FILE": OF_LAUNCHED_HOSTS,
    },
}
# Read by Compose itself.
OF_COMPOSE = {"COMPOSE_FILE", "COMPOSE_PROFILES"}


def list_offered() -> set[str]:
    """Return the variables that .env.example offers."""
    return set(re.findall(r"^#?([A-Z][A-Z0-9_]*)=", ENV_EXAMPLE, re.MULTILINE))


def list_substituted(text: str) -> set[str]:
    """Return the variables that Compose substitutes; `$$` is a dollar sign for the container's shell."""
    return set(re.findall(r"(?<!\$)\$\{([A-Z][A-Z0-9_]*)", text))


def list_passed(service: str) -> set[str]:
    """Return the variables that the service gets, under their own names where they come as files."""
    return {
        name.removesuffix(SUFFIX) if name not in SETTINGS else name
        for name in SERVICES[service].get("environment", {})
    }


@pytest.mark.parametrize("service", ["api", *WORKERS])
def test_a_service_gets_every_setting_that_it_needs(service: str) -> None:
    reasons = NOT_PASSED["api" if service == "api" else "worker"]
    assert SETTINGS - list_passed(service) - {f"TUNESMITH_{name}" for name in reasons} == set()


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_gets_only_settings_that_exist(service: str) -> None:
    ours = {name for name in list_passed(service) if name.startswith("TUNESMITH_")}
    assert ours - SETTINGS == set()


@pytest.mark.parametrize("file", ["docker-compose.yml", "deploy/private-network.yml"])
def test_the_schema_of_version_2_accepts_the_files(file: str) -> None:
    schema = get_builtin_schema("vendor.compose-spec")
    content = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))
    assert [error.message for error in Draft7Validator(schema).iter_errors(content)] == []


def test_no_exception_is_outdated() -> None:
    assert {name for reasons in NOT_PASSED.values() for name in reasons} <= {
        name.removeprefix("TUNESMITH_") for name in SETTINGS
    }


def test_every_variable_of_the_services_is_in_the_example_of_env() -> None:
    passed = {
        name.removesuffix(SUFFIX)
        for service in ("api", *WORKERS)
        for name, value in SERVICES[service]["environment"].items()
        if value is None or name.removesuffix(SUFFIX) in FOREIGN_VARIABLES
    }
    substituted = list_substituted(TEXT) | list_substituted((ROOT / "deploy/private-network.yml").read_text())
    assert (passed | substituted) - list_offered() == set()


def test_every_variable_in_the_example_of_env_is_used() -> None:
    passed = {name for service in ("api", *WORKERS) for name in list_passed(service)}
    substituted = list_substituted(TEXT) | list_substituted((ROOT / "deploy/private-network.yml").read_text())
    assert list_offered() - SETTINGS - passed - substituted - OF_COMPOSE == set()


@pytest.mark.parametrize("service", SERVICES)
def test_no_secret_is_in_the_environment_of_a_service(service: str) -> None:
    secret = re.compile(r"(PASSWORD|TOKEN|SECRET_ACCESS_KEY|API_KEY|ENCRYPTION_KEY|ADMIN_KEY)$")
    environment = SERVICES[service].get("environment", {})
    assert [name for name in environment if secret.search(name)] == []


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_the_secrets_whose_files_it_reads(service: str) -> None:
    text = json.dumps(SERVICES[service])
    assert (
        sorted(set(re.findall(r"/run/secrets/(\w+)", text)) - set(SERVICES[service].get("secrets", []))) == []
    )


def test_the_script_creates_every_secret_once(tmp_path: Path) -> None:
    find_program("openssl")
    command = ["sh", str(ROOT / "deploy/create-secrets.sh"), str(tmp_path / "secrets")]
    subprocess.run(command, check=True, capture_output=True)
    files = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert set(files) == set(COMPOSE["secrets"])
    assert subprocess.run(command, check=True, capture_output=True).stdout == b""
    identity = json.loads(files["s3_identities"])["identities"][0]["credentials"][0]
    assert identity["secretKey"] == files["s3_secret_access_key"].strip()
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0


def test_the_script_creates_nothing_without_the_program_that_makes_passwords(tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sh", "dirname", "mkdir", "chmod", "sed", "tail", "cat"):
        (programs / name).symlink_to(str(shutil.which(name)))
    command = ["sh", str(ROOT / "deploy/create-secrets.sh"), str(tmp_path / "secrets")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={"PATH": str(programs)})
    assert done.returncode != 0 and "openssl" in done.stderr
    assert not (tmp_path / "secrets").exists()


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_confined(service: str) -> None:
    settings = SERVICES[service]
    assert settings["read_only"] is True
    assert settings["cap_drop"] == ["ALL"] and settings["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "pids_limit"} <= set(settings)
    assert "cpus" in settings or service == "migrate"


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_from_elsewhere_has_an_exact_version(service: str) -> None:
    image = SERVICES[service]["image"]
    if "build" in SERVICES[service] or image.startswith("tunesmith-"):
        return
    assert re.search(r":v?\d+\.\d+(\.\d+)?(-[\w.]+)?$", image), image


def test_the_image_of_vllm_has_the_version_of_the_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    version = SERVICES["worker-vllm"]["build"]["args"]["VLLM_VERSION"].removeprefix("${VLLM_VERSION:-")
    assert extras["vllm"][0].startswith(f"vllm=={version.removesuffix('}')};")


@pytest.mark.parametrize("name", ["Dockerfile.api", "Dockerfile.gpu"])
def test_a_base_image_has_an_exact_version(name: str) -> None:
    (image,) = re.findall(r"^ARG BASE_IMAGE=(\S+)", (ROOT / name).read_text(), re.MULTILINE)
    assert re.search(r":\d+\.\d+\.\d+-", image), image


@pytest.mark.parametrize("service", SERVICES)
def test_nothing_is_published_but_on_loopback_or_an_address_that_the_operator_names(service: str) -> None:
    public = [
        port for port in SERVICES[service].get("ports", []) if not port.startswith(("127.0.0.1:", "${"))
    ]
    assert public == []
