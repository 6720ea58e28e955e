"""The files of sentence-transformers next to a model, verified before any loader opens them.

`modules.json` lists what follows the transformer, such as a pooling, each in a folder of its own with a
`config.json`, and with safetensors if it has weights.
"""

import re
from pathlib import Path

from trainers.modeling.model_config import Json, ModelFileRefused, read_list, read_object

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
MODULE_WEIGHTS = "model.safetensors"
# As sentence-transformers names it for its kinds of models.
TRANSFORMER_SETTINGS = re.compile(r"sentence_[a-z-]+_config\.json")
# sentence-transformers numbers the folders. One level only: `onnx/config.json` is another model.
MODULE_FOLDER = re.compile(r"\d{1,2}_[A-Za-z]{1,40}")
MODULE_FILE = re.compile(rf"{MODULE_FOLDER.pattern}/(config\.json|model\.safetensors)")


def is_module_config(name: str) -> bool:
    """Return whether a file is one of sentence-transformers' configs that are JSON objects."""
    return (
        name == PROMPTS
        or TRANSFORMER_SETTINGS.fullmatch(name) is not None
        or (name.endswith(".json") and MODULE_FILE.fullmatch(name) is not None)
    )


def is_module_file(name: str) -> bool:
    """Return whether a file belongs to sentence-transformers."""
    return name == MODULES or is_module_config(name) or MODULE_FILE.fullmatch(name) is not None


def read_modules(path: Path) -> list[Json]:
    """Read `modules.json`: objects with a `type` and a `path`, in the order in which they run.

    Raises:
        ModelFileRefused: It is damaged, or a path leads out of the folder.
        OSError: It cannot be read.
    """
    modules = read_list(path)
    for module in modules:
        if not isinstance(module, dict) or not isinstance(module.get("type"), str):
            raise ModelFileRefused("has a module without a type")
        folder = module.get("path")
        if not isinstance(folder, str) or (folder and not MODULE_FOLDER.fullmatch(folder)):
            raise ModelFileRefused(
                f"names the module folder {str(folder)[:100]!r}; only folders next to it, such as 1_Pooling, "
                "are read"
            )
    return modules


def read_settings(path: Path) -> Json:
    """Read a config that may be missing: then it is empty. Raises ModelFileRefused or OSError."""
    return read_object(path) if path.is_file() else {}
