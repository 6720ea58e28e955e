"""Score translations with a COMET model, in the environment of the comet package.

The environment has none of our packages: this file is started by its path.

    python -I comet_program.py MODEL REQUEST RESPONSE BATCH_SIZE MAX_MEMORY_BYTES

REQUEST has a line `{"src": …, "mt": …, "ref": …}` for each translation. The first line of RESPONSE describes
the model and the versions of the packages; each following line is `{"score": …}`. A model that cannot be used
is reported on the last line of stderr, with exit status 3.
"""

import hashlib
import inspect
import json
import resource
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

REFUSED = 3
PACKAGES = ("unbabel-comet", "torch", "transformers")
# Other classes have other inputs or outputs, and their values were never compared with their own program's.
CLASS, ENCODER = "regression_metric", "XLM-RoBERTa"
# From the fields of the hparams: what a model computes; the others are of its training.
FIELDS = (
    *("layer", "layer_transformation", "layer_norm", "pool", "dropout"),
    *("hidden_sizes", "activations", "final_activation"),
)


class ScorerRefused(Exception):
    """The model is incomplete, of another kind, or contains objects besides tensors."""


def main(model: str, request: str, response: str, batch_size: str, max_memory_bytes: str) -> None:
    """Load the model within the limit of memory, and write the scores in the order of the request."""
    import torch

    folder = Path(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scorer = load_model(folder, 0 if device.type == "cuda" else int(max_memory_bytes)).to(device)
    with Path(request).open(encoding="utf-8") as file:
        samples = [json.loads(line) for line in file]
    scores = predict(scorer, samples, int(batch_size), device)
    description = {
        "model_sha256": hash_folder(folder),
        "versions": {package: version(package) for package in PACKAGES},
        "device": device.type,
    }
    lines = [description, *({"score": score} for score in scores)]
    Path(response).write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


def load_model(folder: Path, max_memory_bytes: int) -> Any:
    """Return the model of a folder with `hparams.yaml`, `checkpoints/` and `encoder/`.

    Nothing of the folder is executed: the hparams are plain YAML, the class is fixed, the weights are tensors
    alone, and the encoder's folder has its config and tokenizer.
    """
    import comet.encoders.xlmr
    import yaml
    from comet.models import RegressionMetric

    # Address space that the libraries reserve is not memory, so the limit begins after their import.
    if max_memory_bytes:
        limit_memory(max_memory_bytes)
    comet.encoders.xlmr.XLMREncoder.forward = forward_encoder
    try:
        hparams = yaml.safe_load(open_file(folder / "hparams.yaml").read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ScorerRefused("its hparams.yaml is not plain YAML") from error
    if not isinstance(hparams, dict) or hparams.get("class_identifier") != CLASS:
        raise ScorerRefused(f"its hparams.yaml does not have the class_identifier {CLASS}")
    if hparams.get("encoder_model") != ENCODER:
        raise ScorerRefused(f"its encoder_model is {hparams.get('encoder_model')!r}, and must be {ENCODER}")
    encoder = folder / "encoder"
    for name in ("config.json", "tokenizer.json"):
        open_file(encoder / name)
    if hparams.get("layer_transformation") == "sparsemax_patch":
        hparams["layer_transformation"] = "softmax"  # As comet does since 2.2.4.
    accepted = inspect.signature(RegressionMetric.__init__).parameters
    model = RegressionMetric(
        **{name: hparams[name] for name in FIELDS if name in hparams and name in accepted},
        encoder_model=ENCODER,
        pretrained_model=str(encoder),
        load_pretrained_weights=False,
        local_files_only=True,
    )
    # Old checkpoints contain buffers that newer encoders do not have; nothing may be missing.
    missing = model.load_state_dict(read_weights(folder / "checkpoints"), strict=False).missing_keys
    if missing:
        raise ScorerRefused(f"its checkpoint lacks {len(missing)} tensors, such as {missing[0]}")
    return model.eval()


def read_weights(folder: Path) -> Any:
    """Return the tensors of `model.safetensors`, or of a `model.ckpt` that contains nothing else."""
    import torch
    from safetensors.torch import load_file

    if (folder / "model.safetensors").is_file():
        return load_file(folder / "model.safetensors")
    try:
        loaded = torch.load(open_file(folder / "model.ckpt"), map_location="cpu", weights_only=True)
        return loaded["state_dict"]
    except Exception as error:
        if isinstance(error, MemoryError | ScorerRefused):
            raise
        raise ScorerRefused(
            f"its model.ckpt cannot be read as tensors alone ({str(error).splitlines()[0][:200]}); save its "
            "state_dict as checkpoints/model.safetensors"
        ) from error


def forward_encoder(self: Any, input_ids: Any, attention_mask: Any, **_: Any) -> dict[str, Any]:
    """Return what comet's own method does with transformers 4, whose output had an empty pooler state."""
    output = self.model(
        input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True, return_dict=True
    )
    return {
        "sentemb": output.last_hidden_state[:, 0, :],
        "wordemb": output.last_hidden_state,
        "all_layers": output.hidden_states,
        "attention_mask": attention_mask,
    }


def predict(model: Any, samples: list[dict[str, str]], batch_size: int, device: Any) -> list[float]:
    """Return the scores; batches are of similar length, so that little of them is padding."""
    import torch

    scores = [0.0] * len(samples)
    order = sorted(range(len(samples)), key=lambda i: sum(map(len, samples[i].values())))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        inputs = model.prepare_sample([samples[i] for i in chosen], stage="predict")
        with torch.inference_mode():
            found = model(**{name: tensor.to(device) for name, tensor in inputs.items()}).score
        for i, score in zip(chosen, found.tolist(), strict=True):
            scores[i] = score
    return scores


def hash_folder(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of the files that are read."""
    digest = hashlib.sha256()
    for path in [folder / "hparams.yaml", *sorted((folder / "encoder").iterdir()), weights_file(folder)]:
        digest.update(f"{path.relative_to(folder)}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def weights_file(folder: Path) -> Path:
    """Return the file that `read_weights` reads."""
    safe = folder / "checkpoints" / "model.safetensors"
    return safe if safe.is_file() else safe.with_name("model.ckpt")


def open_file(path: Path) -> Path:
    """Return the path of a file; raises ScorerRefused if there is none."""
    if not path.is_file():
        raise ScorerRefused(f"{path.parent.name}/{path.name} is missing")
    return path


def limit_memory(max_bytes: int) -> None:
    """Limit the process to what it uses now and `max_bytes` more; only Linux enforces this."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        limit = int(statm.read_text().split()[0]) * resource.getpagesize() + max_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ScorerRefused as refused:
        sys.stderr.write(f"{refused}\n")
        sys.exit(REFUSED)
