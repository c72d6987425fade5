"""Fixtures of texts: a tiny sentence-transformers model with its tokenizer, as ONNX, and the vectors that sentence-transformers gives.

The network is a BERT of two layers with random weights; what counts is that tokens, padding, pooling and lengths are the same.
`expected.json` holds texts, their tokens, and a vector for each text and pooling.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, BertTokenizerFast

HIDDEN = 32
MAX_LENGTH = 48
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CORPUS = [
    "a frozen network is computed once and never again",
    "the quick brown fox jumps over the lazy dog",
    "features of texts and pictures are cached by their content",
    "transfer learning trains a new head on a trained network",
]
TEXTS = [
    "a frozen network",
    "The quick brown fox jumps over the lazy dog.",
    "Hello, wörld! 你好 🙂",
    "x",
    "features " * 20,
    # Longer than the model takes: cut off.
    "the head of a trained network computes pictures again and again " * 9,
    "  spaces\tand\nlines  ",
]
POOLINGS = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


def make(folder: Path) -> dict:
    """Writes everything below `folder`; returns the numbers that the manifest records."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    model, tokenizer = network(0)
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    tokenizer.save_pretrained(folder)
    export(model, folder / "model.onnx")
    write_config(folder, "mean", normalize=True)
    expected = {
        "texts": TEXTS,
        "tokens": [tokenizer(text, truncation=True, max_length=MAX_LENGTH)["input_ids"] for text in TEXTS],
        "vectors": {mode: vectors(model, tokenizer, mode, TEXTS) for mode in POOLINGS},
    }
    (folder / "expected.json").write_text(json.dumps(expected, ensure_ascii=False) + "\n")
    return {"text_tokens": sum(map(len, expected["tokens"]))}


def network(seed: int, **config):
    """A BERT with random weights, and a WordPiece tokenizer of a few words and letters."""
    tokenizer = wordpiece()
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=HIDDEN, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=MAX_LENGTH, pad_token_id=0, initializer_range=0.3, attn_implementation="eager", **config,
    )
    return BertModel(config, add_pooling_layer=False).eval(), tokenizer


def wordpiece() -> BertTokenizerFast:
    # Training breaks ties by chance; this does not.
    words = sorted({word for line in CORPUS for word in line.split()})
    letters = sorted({letter for word in words for letter in word} | set(".,!"))
    pieces = SPECIAL + letters + ["##" + letter for letter in letters] + [word for word in words if len(word) > 1]
    tokenizer = Tokenizer(models.WordPiece({piece: idx for idx, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)
    cls, sep = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    return BertTokenizerFast(tokenizer_object=tokenizer, model_max_length=MAX_LENGTH)


class Tokens(torch.nn.Module):
    """Only the last hidden state, by position of the inputs."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs):
        return self.model(**dict(zip(self.names, inputs, strict=True))).last_hidden_state


def export(model, path: Path, names=("input_ids", "attention_mask", "token_type_ids"), opset=17):
    """`model` up to its last hidden state, with free numbers of texts and tokens."""
    axes = {0: "texts", 1: "tokens"}
    example = torch.ones(2, 7, dtype=torch.int64)
    torch.onnx.export(
        Tokens(model, names).eval(), tuple(example for _ in names), str(path), input_names=list(names),
        output_names=["last_hidden_state"], dynamic_axes=dict.fromkeys([*names, "last_hidden_state"], axes),
        opset_version=opset, dynamo=False,
    )


def write_config(folder: Path, pooling, normalize: bool, max_length: int | None = MAX_LENGTH, **more):
    """The files of sentence-transformers beside a tokenizer."""
    name = "sentence_transformers.models"
    modules = [("", f"{name}.Transformer"), ("1_Pooling", f"{name}.Pooling")]
    modules += [("2_Normalize", f"{name}.Normalize")] if normalize else []
    listing = [{"idx": idx, "name": str(idx), "path": path, "type": kind} for idx, (path, kind) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listing, indent=1) + "\n")
    (folder / "1_Pooling").mkdir(exist_ok=True)
    config = {"word_embedding_dimension": HIDDEN, "pooling_mode": pooling, **more}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_length, "do_lower_case": False}) + "\n")


def vectors(model, tokenizer, mode, texts) -> list[list[float]]:
    """Each text alone, so that no padding is involved, pooled by sentence-transformers' own code."""
    from sentence_transformers.sentence_transformer.modules.pooling import Pooling

    pooling = Pooling(HIDDEN, pooling_mode=mode)
    rows = []
    with torch.no_grad():
        for text in texts:
            tokens = tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
            features = {"token_embeddings": model(**tokens).last_hidden_state, "attention_mask": tokens["attention_mask"]}
            row = torch.nn.functional.normalize(pooling(features)["sentence_embedding"], dim=-1)[0]
            rows.append([float(f"{value:.8g}") for value in row])
    return rows
