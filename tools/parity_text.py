"""Compares text encoders with sentence-transformers: tiny networks of several kinds, each with its own tokenizer and configuration.

    python tools/parity_text.py --embed target/release/examples/embed [--ort-lib LIBRARY]

Each case is a model folder that sentence-transformers opens and encodes texts with, in batches and with its own padding; the
example `embed` does the same from the ONNX export of the network. Vectors must agree within 1e-5 of the largest number in them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

import fixtures_text as made
from parity_common import check, finish

TOLERANCE = 1e-5
ALL = ("input_ids", "attention_mask", "token_type_ids")
TEXTS = made.TEXTS + ["Fox", "fox", "the head", "never again " * 3]


def bert(folder: Path, names=ALL, pooling="mean", normalize=True, seed=0, **config):
    model, tokenizer = made.network(seed)
    save(folder, model, tokenizer, names)
    made.write_config(folder, pooling, normalize, **config)


def save(folder: Path, model, tokenizer, names):
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    made.export(model, folder / "model.onnx", names)


def roberta(folder: Path):
    """Byte-level BPE, padding that is not 0, and positions that the network counts itself by what is not padding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(made.CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=62, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        cls_token="<s>", sep_token="</s>", model_input_names=["input_ids", "attention_mask"],
    )
    torch.manual_seed(3)
    config = RobertaConfig(
        vocab_size=len(fast), hidden_size=made.HIDDEN, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=64, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2, initializer_range=0.3,
        attn_implementation="eager",
    )
    save(folder, RobertaModel(config, add_pooling_layer=False).eval(), fast, ALL[:2])
    made.write_config(folder, "mean", normalize=False, max_length=None)


def edit(path: Path, **fields):
    value = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**value, **fields}))


def prompted(folder: Path, include: bool):
    bert(folder, include_prompt=include)
    edit(folder / "config_sentence_transformers.json", prompts={"query": "the network "}, default_prompt_name="query")


def cased(folder: Path):
    """A tokenizer that keeps capitals, under a configuration that wants them gone."""
    bert(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    edit(folder / "tokenizer_config.json", do_lower_case=False)
    edit(folder / "sentence_bert_config.json", do_lower_case=True)


def left(folder: Path):
    bert(folder, max_length=12)
    edit(folder / "tokenizer_config.json", truncation_side="left")


def switches(folder: Path):
    bert(folder)
    config = {"word_embedding_dimension": made.HIDDEN, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))


class Sentence(torch.nn.Module):
    """A graph that pools by itself."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        tokens = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        return (tokens * mask).sum(1) / mask.sum(1)


def own_pooling(folder: Path):
    bert(folder, normalize=False)
    model, _ = made.network(0)
    names = list(ALL[:2])
    example = torch.ones(2, 7, dtype=torch.int64)
    axes = {name: {0: "texts", 1: "tokens"} for name in names} | {"sentence_embedding": {0: "texts"}}
    torch.onnx.export(
        Sentence(model).eval(), (example, example), str(folder / "model.onnx"), input_names=names,
        output_names=["sentence_embedding"], dynamic_axes=axes, opset_version=17, dynamo=False,
    )


CASES = {
    "mean, one long": bert,
    **{mode: lambda folder, mode=mode: bert(folder, pooling=mode, normalize=False) for mode in made.POOLINGS},
    "cls and max": lambda folder: bert(folder, pooling=["cls", "max"], seed=1),
    "switches of old versions": switches,
    "cut off at 12": lambda folder: bert(folder, max_length=12),
    "cut off on the left": left,
    "no length said": lambda folder: bert(folder, max_length=None),
    "no token types": lambda folder: bert(folder, names=ALL[:2]),
    "positions asked for": lambda folder: bert(folder, names=(*ALL, "position_ids")),
    "no mask": lambda folder: bert(folder, names=ALL[:1]),
    "prompt": lambda folder: prompted(folder, True),
    "prompt not pooled": lambda folder: prompted(folder, False),
    "lower case": cased,
    "roberta": roberta,
    "a graph that pools": own_pooling,
}


def main():
    # That the tiny networks have no pooler is no news.
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embed", type=Path, required=True, help="the built example")
    parser.add_argument("--ort-lib", type=Path, help="the ONNX Runtime library, where it is not found")
    args = parser.parse_args()
    environment = {**os.environ, "JSON": "1"}
    if args.ort_lib:
        environment["ORT_DYLIB_PATH"] = str(args.ort_lib)
    with tempfile.TemporaryDirectory() as temporary:
        for number, (name, make) in enumerate(CASES.items()):
            folder = Path(temporary) / str(number)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                make(folder)
                reference = SentenceTransformer(str(folder), device="cpu")
                rows = reference.encode(TEXTS, batch_size=4, convert_to_numpy=True, show_progress_bar=False)
            lines = "".join(json.dumps(text) + "\n" for text in TEXTS)
            done = subprocess.run([args.embed, folder / "model.onnx"], input=lines, capture_output=True, text=True, env=environment)
            found = [np.array(json.loads(line)) for line in done.stdout.splitlines()]
            check(f"{name}: exit code", (done.returncode, done.stderr), (0, ""))
            check(f"{name}: rows", len(found), len(TEXTS))
            check(f"{name}: numbers", {len(row) for row in found}, {rows.shape[1]})
            worst = 0.0
            for text, row, wanted in zip(TEXTS, found, rows.astype(np.float64)):
                error = np.abs(row - wanted).max() / np.abs(wanted).max()
                worst = max(worst, error)
                check(f"{name}: {text[:30]!r} within {TOLERANCE:g} ({error:.1e})", bool(error <= TOLERANCE), True)
            print(f"{name:28} {len(found)} texts, largest difference {worst:.1e}", flush=True)
    finish()


main()
