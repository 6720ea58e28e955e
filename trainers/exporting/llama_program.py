"""Quantize a GGUF file, or compute log-probabilities with it, in the environment of llama.cpp.

The environment has llama-cpp-python and NumPy, and none of our packages: this file is started by its path.

    python llama_program.py quantize SOURCE TARGET TYPE
    python llama_program.py evaluate MODEL LORA_OR_EMPTY REQUEST RESPONSE
"""

import ctypes
import json
import os
import sys
from pathlib import Path

import llama_cpp
import numpy as np

TYPES = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M}


def quantize(source: str, target: str, kind: str) -> None:
    """Write a quantized copy of a file."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = TYPES[kind], os.cpu_count() or 1
    status = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
    if status:
        sys.exit(f"llama_model_quantize returned {status}")


def evaluate(model: str, lora: str, request: str, response: str) -> None:
    """Write, for each prompt, its tokens and the log-probabilities of all tokens after the first."""
    prompts = json.loads(Path(request).read_text(encoding="utf-8"))
    n_ctx = max(len(prompt["ids"]) for prompt in prompts) + 8
    llama = llama_cpp.Llama(
        model, lora_path=lora or None, n_ctx=n_ctx, n_batch=n_ctx, logits_all=True, verbose=False
    )
    answers = []
    for prompt in prompts:
        ids = prompt["ids"]
        llama.reset()
        llama.eval(ids)
        logits_tv = np.array(llama.scores[: len(ids)], dtype=np.float64)
        logits_tv -= logits_tv.max(-1, keepdims=True)
        logprobs_tv = logits_tv - np.log(np.exp(logits_tv).sum(-1, keepdims=True))
        answers.append(
            {
                "ids": llama.tokenize(prompt["text"].encode(), add_bos=False, special=True),
                "logprobs": logprobs_tv[np.arange(len(ids) - 1), ids[1:]].tolist(),
            }
        )
    Path(response).write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "quantize":
        quantize(*sys.argv[2:])
    else:
        evaluate(*sys.argv[2:])
