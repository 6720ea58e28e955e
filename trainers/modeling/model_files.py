"""Verification of a model folder, file by file, before any loader opens it.

Only files of an allow-list are visible to a loader: JSON configs, tokenizers, chat templates, the modules of
sentence-transformers, and safetensors whose headers have been checked. A folder with nothing else is used as
it is. Any other folder is represented by a view: a folder of links to the verified files, with copies of the
configs from which names of code were removed. So no pickle, no code, no file outside the folder and no second
model reaches a loader, whatever the loader would look for.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from trainers.mlx.adapter_format import MLX_WEIGHTS, convert_mlx_config, convert_mlx_weights, is_mlx_config
from trainers.modeling.embedding.module_files import MODULES, is_module_config, is_module_file, read_modules
from trainers.modeling.model_config import (
    Json,
    ModelFileRefused,
    check_template,
    clean_config,
    read_object,
)
from trainers.modeling.quantization.record import QUANTIZED_BASE, read_quantized_base
from trainers.modeling.safetensors_file import SafetensorsInvalid, check_safetensors
from trainers.runtime.error_codes import ErrorCode
from trainers.runtime.errors import ProgramError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
# Configs, which are parsed and from which names of code are removed.
CONFIGS = frozenset(
    {"generation_config.json", TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json"}
    | {"chat_template.json", "quantize_config.json", "quant_config.json", "hf_quant_config.json"}
    | {"preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"}
)
# Vocabularies: text, or the protocol buffers of SentencePiece.
VOCABULARIES = frozenset(
    {"tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model"}
    | {"sentencepiece.bpe.model", "tokenizer.model.v3", "tekken.json", "tiktoken.model", "qwen.tiktoken"}
)
TEMPLATE = re.compile(r"chat_template\.jinja|additional_chat_templates/[\w.-]+\.jinja")
BASE_WEIGHTS = re.compile(r"model(-\d+-of-\d+|\.\d+)?\.safetensors")
SHARD = re.compile(r"[\w.-]+\.safetensors")
# Files that no loader opens, and that the hub, its client and the artifact store put into a folder. The end
# of each name is fixed: an engine would load a `license.bin` as weights.
INERT = re.compile(
    r"(?i).*\.(md|rst|png|jpe?g|gif|svg|webp|pdf)|(licen[cs]e|notice)[\w-]*(\.(txt|html?))?|\.manifest\.json"
    r"|\.gitattributes|(.*/)?\.gitignore|\.cache/huggingface/(CACHEDIR\.TAG|.*\.(metadata|lock|incomplete))"
)
MAX_FILES = 10_000
MAX_TEMPLATE_BYTES = 1 << 20


class ModelRefused(ProgramError):
    """A file of the model is unsafe or damaged."""

    code = ErrorCode.model_refused


class BaseModelNotFound(ProgramError):
    code = ErrorCode.model_not_found


class ModelRole(StrEnum):
    """What a folder is loaded as: the same files mean different things to a loader."""

    base = "base"
    adapter = "adapter"

    @property
    def description(self) -> str:
        """The role with its article."""
        return "a model" if self is ModelRole.base else "an adapter"


@dataclass
class ModelFiles:
    """The verified files of a model folder."""

    folder: Path
    role: ModelRole
    links: dict[str, Path] = field(default_factory=dict)
    """The files that a loader may see, by their names, as real paths."""
    configs: dict[str, Json] = field(default_factory=dict)
    """The content of configs from which something was removed."""
    hidden: list[str] = field(default_factory=list)
    """Files that no loader may see."""
    mlx_weights: Path | None = None
    """The weights of an adapter in mlx-lm's format, which a loader sees in PEFT's."""


def open_model(
    folder: Path, role: ModelRole, roots: Sequence[Path] | None = None, views: Path | None = None
) -> Path:
    """Verify a model folder, and return the folder that a loader may open: itself, or a view of it.

    Args:
        folder: The model.
        role: What it is loaded as.
        roots: Folders that the real path of every file must be under. None is for a person's own folder.
        views: Folder for views; by default one in the temporary folder.

    Raises:
        BaseModelNotFound: The folder does not exist, or has no model in that role.
        ModelRefused: A file is unsafe or damaged.
    """
    files = read_model_files(folder, role, roots)
    if not files.hidden and not files.configs and files.mlx_weights is None:
        return files.folder
    return _link_view(files, views or _temporary_views())


def read_model_files(folder: Path, role: ModelRole, roots: Sequence[Path] | None = None) -> ModelFiles:
    """Verify every file that a loader may open; raises as `open_model`."""
    real = _resolve_folder(folder, role)
    files = ModelFiles(real, role)
    allowed = None if roots is None else _containers(real, roots)
    present = _list_files(real)
    shards = read_index(real / INDEX) if role is ModelRole.base and INDEX in present else set()
    for name in present:
        path = real / name
        if INERT.fullmatch(name):
            continue
        if not is_visible(name, role, shards):
            files.hidden.append(name)
            continue
        try:
            files.links[name] = _resolve_file(path, allowed)
            _check_file(name, files)
        except (ModelFileRefused, SafetensorsInvalid) as error:
            raise _refused(folder, f"its file {name} {error}") from error
        except OSError as error:
            raise _refused(folder, f"its file {name} cannot be read: {error.strerror}") from error
    if role is ModelRole.adapter:
        _convert_mlx_adapter(files)
    needed = set() if role is ModelRole.base or files.mlx_weights is not None else {ADAPTER_WEIGHTS}
    missing = (shards | needed) - files.links.keys()
    if missing:
        raise _refused(folder, f"its weights {min(missing)} are missing")
    return files


def is_adapter(folder: Path) -> bool:
    """Return whether a folder is an adapter rather than whole weights."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / CONFIG).is_file()


def read_adapter_base(folder: Path) -> str | None:
    """Return the base that an adapter's config names, with its revision if any; raises ModelRefused."""
    try:
        config = read_object(folder / ADAPTER_CONFIG)
    except (ModelFileRefused, OSError) as error:
        raise _refused(folder, f"its file {ADAPTER_CONFIG} {error}") from error
    name = "model" if is_mlx_config(config) else "base_model_name_or_path"
    base, revision = config.get(name), config.get("revision")
    if not isinstance(base, str) or not base:
        return None
    is_on_hub = base.count("/") == 1 and not base.startswith(("/", ".")) and "@" not in base
    return f"{base}@{revision}" if is_on_hub and isinstance(revision, str) and revision else base


def _resolve_folder(folder: Path, role: ModelRole) -> Path:
    real = folder.resolve()
    if not real.is_dir():
        raise BaseModelNotFound(f"The model folder {folder} does not exist.", "Check the path.")
    if role is ModelRole.base and is_adapter(real):
        raise BaseModelNotFound(
            f"The folder {folder} is an adapter, not a whole model.",
            "Name its base as the model and this folder as the adapter, or merge the two.",
        )
    names = (CONFIG, TOKENIZER_CONFIG) if role is ModelRole.base else (ADAPTER_CONFIG,)
    if not any((real / name).is_file() for name in names):
        raise BaseModelNotFound(
            f"The folder {folder} does not contain {role.description}: it has no {names[0]}.",
            "Check the path.",
        )
    return real


def _containers(folder: Path, roots: Sequence[Path]) -> list[Path]:
    """Return the folders that a file may be in: the roots of its folder, and the blobs of a hub's cache."""
    containers = [root for root in roots if folder.is_relative_to(root)] or [folder]
    # models--org--name/snapshots/<commit>/config.json is a link to models--org--name/blobs/<hash>.
    if folder.parent.name == "snapshots":
        containers.append(folder.parent.parent / "blobs")
    return containers


def _list_files(folder: Path) -> list[str]:
    """Return the relative paths of all files, without following links to folders."""
    names = []
    for root, folders, files in os.walk(folder):
        relative = Path(root).relative_to(folder)
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        names += [(relative / name).as_posix() for name in [*files, *links]]
        if len(names) > MAX_FILES:
            raise _refused(folder, f"it has more than {MAX_FILES:,} files")
    return sorted(names)


def read_index(index: Path) -> set[str]:
    """Return the weights that an index names, which must be safetensors in the same folder.

    Raises:
        ModelRefused: It names another file, or cannot be read.
    """
    try:
        weight_map = read_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelFileRefused("has no weight_map")
        for shard in weight_map.values():
            if not isinstance(shard, str) or not SHARD.fullmatch(shard):
                raise ModelFileRefused(
                    f"names the weights {str(shard)[:100]!r}; only safetensors in the same folder are loaded"
                )
    except (ModelFileRefused, OSError) as error:
        raise _refused(index.parent, f"its file {index.name} {error}") from error
    return set(weight_map.values())


def is_visible(name: str, role: ModelRole, shards: set[str]) -> bool:
    """Return whether a loader may see a file; `shards` are the weights that the folder's index names."""
    if name in CONFIGS or name in VOCABULARIES or TEMPLATE.fullmatch(name):
        return True
    if role is ModelRole.adapter:
        return name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, MLX_WEIGHTS, QUANTIZED_BASE)
    if name in (CONFIG, INDEX) or name in shards or is_module_file(name):
        return True
    # With an index, other weights would be loaded by an engine that takes all of a folder's safetensors.
    return not shards and BASE_WEIGHTS.fullmatch(name) is not None


def _resolve_file(path: Path, allowed: Sequence[Path] | None) -> Path:
    """Return the real path of a file; raises ModelFileRefused or OSError."""
    real = path.resolve(strict=True)
    if not stat.S_ISREG(real.stat().st_mode):
        raise ModelFileRefused("is not a regular file")
    if allowed is not None and not any(real.is_relative_to(folder) for folder in allowed):
        raise ModelFileRefused("is a link to a file outside the folders that models may be read from")
    return real


def _check_file(name: str, files: ModelFiles) -> None:
    path = files.links[name]
    if name.endswith(".safetensors"):
        check_safetensors(path)
    elif TEMPLATE.fullmatch(name):
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise ModelFileRefused(f"is larger than {MAX_TEMPLATE_BYTES >> 20} MiB")
        check_template(path.read_text(encoding="utf-8", errors="replace"))
    elif name == MODULES:
        read_modules(path)
    elif name == QUANTIZED_BASE:
        read_quantized_base(path)
    elif name in CONFIGS or name in (CONFIG, ADAPTER_CONFIG) or is_module_config(name):
        config = read_object(path)
        cleaned = clean_config(name, config)
        if cleaned != config:
            files.configs[name] = cleaned


def _convert_mlx_adapter(files: ModelFiles) -> None:
    """Replace the config of an adapter of mlx-lm by PEFT's; raises ModelRefused."""
    weights = files.links.pop(MLX_WEIGHTS, None)
    config = files.configs.get(ADAPTER_CONFIG) or read_object(files.links[ADAPTER_CONFIG])
    if not is_mlx_config(config):
        files.hidden += [] if weights is None else [MLX_WEIGHTS]
        return
    if weights is None:
        raise _refused(files.folder, f"its weights {MLX_WEIGHTS} are missing")
    try:
        files.configs[ADAPTER_CONFIG] = convert_mlx_config(config, weights)
    except ModelFileRefused as error:
        raise _refused(files.folder, f"its file {ADAPTER_CONFIG} {error}") from error
    files.links.pop(ADAPTER_WEIGHTS, None)
    files.mlx_weights = weights


def _link_view(files: ModelFiles, views: Path) -> Path:
    """Create the view of a folder, unless it exists; its name is the hash of what it contains."""
    configs = {name: json.dumps(config, ensure_ascii=False) for name, config in files.configs.items()}
    links = {name: path for name, path in files.links.items() if name not in configs}
    content: list[object] = [
        str(files.folder),
        files.role,
        sorted(configs.items()),
        sorted(map(str, links.items())),
    ]
    if files.mlx_weights is not None:
        # A copy, unlike a link, is of one version of the file.
        status = files.mlx_weights.stat()
        content += [str(files.mlx_weights), status.st_size, status.st_mtime_ns]
    view = views / hashlib.sha256(json.dumps(content).encode(errors="surrogateescape")).hexdigest()[:32]
    if view.is_dir():
        return view
    staging = views / f"{view.name}.{secrets.token_hex(4)}"
    for name, text in configs.items():
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).write_text(text, encoding="utf-8")
    for name, path in links.items():
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).symlink_to(path)
    if files.mlx_weights is not None:
        convert_mlx_weights(files.mlx_weights, staging / ADAPTER_WEIGHTS)
    try:
        staging.rename(view)
    except OSError:
        if not view.is_dir():
            raise
        shutil.rmtree(staging)
    return view


def _temporary_views() -> Path:
    """Return a folder for views that only this user can write to."""
    views = Path(tempfile.gettempdir()) / f"tunesmith-models-{os.getuid()}"
    views.mkdir(mode=0o700, exist_ok=True)
    status = views.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022 or not stat.S_ISDIR(status.st_mode):
        raise ModelRefused(f"The folder {views} belongs to another user.", "Remove it, or set TMPDIR.")
    return views


def _refused(folder: Path, reason: str) -> ModelRefused:
    return ModelRefused(
        f"The model {folder} cannot be used: {reason}.",
        "Use a folder with config.json, a tokenizer and safetensors weights, without code of its author.",
    )
