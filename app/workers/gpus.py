"""The NVIDIA GPUs of this host, and those of them that this worker may use."""

import logging
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

NVIDIA_SMI_TIMEOUT_SECONDS = 20
QUERY = ["--query-gpu=index,uuid,memory.total,mig.mode.current,name", "--format=csv,noheader,nounits"]
USE_QUERY = ["--query-gpu=uuid,memory.used,utilization.gpu", "--format=csv,noheader,nounits"]
MIG_DEVICE = re.compile(r"\s+MIG (\S+)\s+Device\s+\d+: \(UUID: (MIG-[^)]+)\)")
# GPUs before Ampere emulate bf16, at a fraction of their speed.
EMULATES_BF16 = re.compile(
    r"\b(T4G?|[VPKM]\d{2,3}|GTX|RTX 20\d0|Quadro (?:RTX|GV|GP)|TITAN)\b", re.IGNORECASE
)
LISTED_GPU = re.compile(r"GPU \d+: .* \(UUID: (GPU-[^)]+)\)")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a MIG device, which is a part of one."""

    index: int
    """Index of the GPU in the order of the PCI bus, as `nvidia-smi` shows it."""
    uuid: str
    name: str
    memory_bytes: int | None
    """None where the driver reports none, as on GPUs that share the memory of the CPU."""
    parent_uuid: str | None = None
    """The GPU of a MIG device."""

    @property
    def is_mig_device(self) -> bool:
        """Whether this is a part of a GPU; a process can use only one such part."""
        return self.parent_uuid is not None


@dataclass(frozen=True)
class GpuUse:
    """What all processes use of a GPU; None where the driver does not report it, as of MIG devices."""

    used_bytes: int | None = None
    use_percent: int | None = None
    """Share of the last second or less in which the GPU was computing."""


def find_gpus(visible_devices: str | None) -> list[Gpu]:
    """Return the GPUs that `CUDA_VISIBLE_DEVICES` of this worker allows; none where there is no driver."""
    table = _call_nvidia_smi(*QUERY)
    if table is None:
        return []
    gpus = parse_gpus(table, _call_nvidia_smi("-L") or "")
    return select_visible(gpus, visible_devices)


def read_gpu_use() -> dict[str, GpuUse]:
    """Return the use of this host's GPUs by their UUIDs."""
    return parse_gpu_use(_call_nvidia_smi(*USE_QUERY) or "")


def parse_gpu_use(table: str) -> dict[str, GpuUse]:
    """Parse the table of `USE_QUERY`; odd lines and values are left out."""
    found = {}
    for line in table.splitlines():
        uuid, *values = (field.strip() for field in line.split(","))
        if len(values) == 2 and uuid.startswith("GPU-"):
            mebibytes, percent = (int(value) if value.isdigit() else None for value in values)
            found[uuid] = GpuUse(None if mebibytes is None else mebibytes << 20, percent)
    return found


def parse_gpus(table: str, listing: str) -> list[Gpu]:
    """Parse the outputs of `nvidia-smi`: the table of `QUERY`, and `-L`, which has the MIG devices.

    A GPU that cannot be parsed is reported and left out, and so is one in MIG mode without a MIG device.
    """
    parts = dict(_parse_mig_devices(listing))
    gpus: list[Gpu] = []
    for line in filter(str.strip, table.splitlines()):
        try:
            index, uuid, mebibytes, mig_mode, name = (field.strip() for field in line.split(",", 4))
            if not uuid.startswith("GPU-"):
                raise ValueError(f"{uuid!r} is not the UUID of a GPU")
            gpu = Gpu(int(index), uuid, name, int(mebibytes) << 20 if mebibytes.isdigit() else None)
        except ValueError as error:
            logger.warning("a GPU is left out: nvidia-smi reports %r (%s)", line.strip(), error)
            continue
        if mig_mode != "Enabled":
            gpus.append(gpu)
        elif uuid in parts:
            gpus += [
                Gpu(gpu.index, part, f"{name} MIG {profile}", _profile_bytes(profile), uuid)
                for part, profile in parts[uuid]
            ]
        else:
            logger.warning("GPU %s (%s) is left out: it is in MIG mode and has no MIG device", index, uuid)
    return gpus


def select_visible(gpus: Sequence[Gpu], visible_devices: str | None) -> list[Gpu]:
    """Return the GPUs that `CUDA_VISIBLE_DEVICES` names, in its order; all of them if it is not set.

    As in CUDA, an element is an index, or a UUID or its beginning, and the first element that names no
    device ends the list: `-1` and `NoDevFiles` therefore hide all that follow.
    """
    if visible_devices is None:
        return list(gpus)
    selected: dict[str, Gpu] = {}
    for element in (element.strip() for element in visible_devices.split(",")):
        found = _find_named(gpus, element)
        if not found:
            if element not in ("", "-1", "NoDevFiles"):
                logger.warning(
                    "CUDA_VISIBLE_DEVICES is %r, but %r is not a GPU here", visible_devices, element
                )
            break
        selected |= {gpu.uuid: gpu for gpu in found}
    return list(selected.values())


def _find_named(gpus: Sequence[Gpu], element: str) -> list[Gpu]:
    """Return the GPU that the element names, or all MIG devices of the GPU that it names."""
    if element.isdigit():
        return [gpu for gpu in gpus if gpu.index == int(element)]
    if element.startswith("MIG-"):
        return [gpu for gpu in gpus if gpu.uuid == element]
    if element.startswith("GPU-"):
        wholes = {gpu.parent_uuid or gpu.uuid for gpu in gpus}
        matching = [uuid for uuid in wholes if uuid.startswith(element)]
        if len(matching) == 1:
            return [gpu for gpu in gpus if matching[0] in (gpu.uuid, gpu.parent_uuid)]
    return []


def _parse_mig_devices(listing: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield the UUID of each GPU with MIG devices, and the UUIDs and profiles of these."""
    for block in re.split(r"^(?=GPU )", listing, flags=re.MULTILINE):
        gpu = LISTED_GPU.match(block)
        if gpu is not None and (found := MIG_DEVICE.findall(block)):
            yield gpu[1], [(uuid, profile) for profile, uuid in found]


def _profile_bytes(profile: str) -> int | None:
    """Return the memory in the name of a MIG profile, such as `1c.3g.20gb`."""
    found = re.search(r"(\d+)gb", profile)
    return int(found[1]) << 30 if found else None


def _call_nvidia_smi(*arguments: str) -> str | None:
    """Return what `nvidia-smi` prints, even if it fails on one of several GPUs; None if there is none."""
    try:
        done = subprocess.run(
            ["nvidia-smi", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=NVIDIA_SMI_TIMEOUT_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        return None
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("the GPUs of this host are unknown: nvidia-smi cannot be used: %s", error)
        return None
    if done.returncode:
        reason = (done.stderr or done.stdout).strip()
        logger.warning("nvidia-smi %s failed with status %d: %s", arguments[0], done.returncode, reason)
    return done.stdout
