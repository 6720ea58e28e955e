"""Create a COMET model of random weights and score a request with the comet package's own program.

python -I tiny_comet.py create CORPUS FOLDER
python -I tiny_comet.py predict FOLDER REQUEST RESPONSE
"""

import json
import sys
from pathlib import Path
from typing import Any

import comet.encoders.xlmr
import torch
import yaml
from comet import load_from_checkpoint
from comet.models import RegressionMetric


def forward(self: Any, input_ids: Any, attention_mask: Any, **_: Any) -> dict[str, Any]:
    """Unpack the output of the encoder under transformers 5, which has no pooler state."""
    last, layers = self.model(
        input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True, return_dict=False
    )
    return {"sentemb": last[:, 0], "wordemb": last, "all_layers": layers, "attention_mask": attention_mask}


def create(corpus: str, folder: str) -> None:
    import sentencepiece
    from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizer

    target = Path(folder)
    (target / "checkpoints").mkdir(parents=True)
    (target / "encoder").mkdir()
    pieces = str(target / "pieces")
    sentencepiece.SentencePieceTrainer.train(
        input=corpus, model_prefix=pieces, vocab_size=1200, model_type="unigram", hard_vocab_limit=False
    )
    vocabulary = sentencepiece.SentencePieceProcessor(model_file=f"{pieces}.model")
    known = [
        (vocabulary.id_to_piece(i), vocabulary.get_score(i)) for i in range(3, vocabulary.get_piece_size())
    ]
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    tokenizer = XLMRobertaTokenizer(vocab=[*special, *known, ("<mask>", 0.0)])
    tokenizer.save_pretrained(target / "encoder")
    torch.manual_seed(4)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer) + 2, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=514, type_vocab_size=1,
    )  # fmt: skip
    XLMRobertaModel(config).save_pretrained(target / "encoder")
    model = RegressionMetric(
        pretrained_model=str(target / "encoder"), hidden_sizes=[32, 16], nr_frozen_epochs=0, layer="mix"
    )
    (target / "encoder" / "model.safetensors").unlink()
    checkpoint = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": "2.6.6",
    }
    torch.save(checkpoint, target / "checkpoints" / "model.ckpt")
    hparams = dict(model.hparams) | {"class_identifier": "regression_metric"}
    (target / "hparams.yaml").write_text(yaml.safe_dump(hparams))


def predict(folder: str, request: str, response: str) -> None:
    comet.encoders.xlmr.XLMREncoder.forward = forward
    model = load_from_checkpoint(f"{folder}/checkpoints/model.ckpt", local_files_only=True)
    samples = [json.loads(line) for line in Path(request).read_text().splitlines()]
    found = model.predict(samples, batch_size=8, gpus=0, num_workers=0, progress_bar=False)
    Path(response).write_text(json.dumps([float(score) for score in found.scores]))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "create":
        create(*arguments)
    else:
        predict(*arguments)
