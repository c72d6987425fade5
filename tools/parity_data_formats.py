#!/usr/bin/env python3
"""Compares the readers of data sets with the libraries that made the formats: names, labels, splits and bytes.

    cargo build -p graftwork-runtime --examples
    python tools/parity_data_formats.py target/debug/examples

Needs numpy, pandas, pyarrow, datasets, webdataset, pillow, scikit-learn, torchvision, blake3; embedding-reader where it is
there. Every input is made here. Exits 1 if anything differs.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import blake3
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

FAILED = []
RNG = np.random.default_rng(0)


def check(what, same, detail=""):
    print(f"{'ok  ' if same else 'FAIL'} {what}{'' if same else ': ' + str(detail)[:600]}")
    if not same:
        FAILED.append(what)


def digest(data):
    return blake3.blake3(data).hexdigest()


def picture(n, form="PNG", size=(8, 6)):
    pixels = np.random.default_rng(n).integers(0, 256, (*size, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form)
    return out.getvalue()


class Reader:
    """The example that lists a data set."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def list(self, source, *flags):
        run = subprocess.run([self.folder / "list_data", str(source), *flags], capture_output=True, text=True)
        if run.returncode:
            return None, run.stderr
        lines = [json.loads(line) for line in run.stdout.splitlines()]
        return lines[:-1], lines[-1]


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def image_folders(reader, root):
    """torchvision's ImageFolder, and Hugging Face's imagefolder in its several forms."""
    from datasets import load_dataset
    from torchvision.datasets import ImageFolder

    tree = root / "torchvision"
    for n, name in enumerate(["train/cat/1.png", "train/cat/sub/2.png", "train/dog/10.png", "train/dog/9.png", "val/dog/3.png", "val/cat/x.png"]):
        write(tree / name, picture(n))
    rows, end = reader.list(tree)
    for split, folder in [("train", "train"), ("val", "val")]:
        theirs = ImageFolder(tree / folder)
        expected = {(os.path.relpath(path, tree), theirs.classes[label]) for path, label in theirs.samples}
        ours = {(row["name"], row["label"]) for row in rows if row["split"] == split}
        check(f"ImageFolder {split}", ours == expected, (ours, expected))
    check("ImageFolder classes", end["classes"] == ImageFolder(tree / "train").classes)

    def compare(name, tree, *flags, splits=("train", "validation", "test"), label=True):
        theirs = load_dataset("imagefolder", data_dir=str(tree), cache_dir=str(root / "hf-cache"))
        theirs = theirs.cast_column("image", __import__("datasets").Image(decode=False))
        rows, end = reader.list(tree, *flags)
        if rows is None:
            check(name, False, end)
            return
        expected = []
        for split in splits:
            for row in theirs.get(split, []):
                path = row["image"]["path"]
                data = row["image"]["bytes"] or Path(path).read_bytes()
                value = row.get("label")
                feature = theirs[split].features.get("label")
                if value is not None and hasattr(feature, "int2str"):
                    value = feature.int2str(value)
                expected.append(("train" if split == "train" else "val", None if value is None else str(value), digest(data)))
        ours = [(row["split"], row["label"], row.get("id")) for row in rows]
        check(name, sorted(ours, key=str) == sorted(expected, key=str), (ours, expected))

    for names in [("train", "test"), ("training", "valid"), ("train2017", "val2017"), ("my-train", "my_dev")]:
        tree = root / "hf" / names[0]
        for n in range(8):
            write(tree / names[n % 2] / f"class {n // 2 % 2}" / f"{n}.png", picture(n))
        compare(f"imagefolder with {names[0]} and {names[1]}", tree)
    tree = root / "hf" / "uneven"
    for n, name in enumerate(["training/a/1.png", "training/b/c/2.png", "testing/a/3.png"]):
        write(tree / name, picture(n))
    compare("imagefolder of uneven depth has no labels", tree, "--keep")
    for form in ["csv", "jsonl", "parquet"]:
        tree = root / "hf" / form
        frame = pd.DataFrame({"file_name": [f"x/{n}.png" for n in range(6)], "label": [f"l{n % 3}" for n in range(6)], "n": range(6)})
        for folder in ["train", "test"]:
            for n in range(6):
                write(tree / folder / f"x/{n}.png", picture(n + 10 * len(folder)))
            target = tree / folder / f"metadata.{form}"
            if form == "csv":
                frame.to_csv(target, index=False)
            elif form == "jsonl":
                frame.to_json(target, orient="records", lines=True)
            else:
                frame.to_parquet(target)
        compare(f"imagefolder with metadata.{form}", tree)


def manifests(reader, root):
    """pandas writes, we read; classes as LabelEncoder has them."""
    from sklearn.preprocessing import LabelEncoder

    names = ["plain.png", "with space.png", 'quote".png', "comma,name.png", "ünïcode.png", "new\nline.png", "sub/dir.png"]
    for n, name in enumerate(names):
        write(root / name, picture(n))
    for kind, labels in [("strings", ["b", "a", "C", "b", "10", "9", "a"]), ("integers", [10, 9, -1, 100, 9, 10, 2])]:
        frame = pd.DataFrame({"filename": names, "target": labels, "split": ["train", "training", "train", "train", "train", "train", "train"]})
        # A validation row of each class: what is only there would be refused.
        frame = pd.concat([frame, frame.assign(split="dev")])
        encoder = LabelEncoder().fit(frame["target"])
        for form in ["csv", "tsv", "jsonl", "parquet"]:
            path = root / f"{kind}.{form}"
            if form == "csv":
                frame.to_csv(path, index=False)
            elif form == "tsv":
                frame.to_csv(path, index=False, sep="\t")
            elif form == "jsonl":
                frame.to_json(path, orient="records", lines=True)
            else:
                frame.to_parquet(path, index=False)
            rows, end = reader.list(path)
            what = f"{form} of {kind}"
            if rows is None:
                check(what, False, end)
                continue
            check(f"{what}: classes", end["classes"] == [str(name) for name in encoder.classes_], (end["classes"], encoder.classes_))
            expected = [(name, str(label), "train" if split.startswith("train") else "val", digest((root / name).read_bytes())) for name, label, split in frame.itertuples(index=False)]
            check(f"{what}: rows", [(row["name"], row["label"], row["split"], row.get("id")) for row in rows] == expected, rows)
    texts = ['say "so"', "two\nlines", "comma, and ünïcode 🙂", "tab\there", "last"]
    frame = pd.DataFrame({"text": texts, "label": [1, 0, 1, 0, 1]})
    for form in ["csv", "tsv", "jsonl", "parquet"]:
        path = root / f"texts.{form}"
        if form in ("csv", "tsv"):
            frame.to_csv(path, index=False, sep="\t" if form == "tsv" else ",")
        elif form == "jsonl":
            frame.to_json(path, orient="records", lines=True)
        else:
            frame.to_parquet(path)
        rows, end = reader.list(path, "--loose")
        check(f"texts in {form}", rows is not None and [row["text"] for row in rows] == texts, end if rows is None else rows)


def tars(reader, root):
    """webdataset writes and groups; Python's tarfile writes each of its dialects."""
    import webdataset

    pattern = str(root / "shard-%03d.tar")
    with webdataset.ShardWriter(pattern, maxcount=7, verbose=0) as sink:
        for n in range(20):
            sample = {"__key__": f"dir.v1/{n:05d}{n % 10:04d}", "jpg": picture(n, "JPEG"), "cls": n % 12, "txt": f"text {n}"}
            sink.write(sample)
    source = str(root / "shard-{000..002}.tar")
    theirs = [(s["__key__"], int(s["cls"]), digest(s["jpg"]), s["txt"].decode()) for s in webdataset.WebDataset(source, shardshuffle=False)]
    rows, end = reader.list(source, "--loose", "--threads", "3")
    ours = [(row["name"].split(".tar/")[1], int(row["label"]), row["id"]) for row in rows or []]
    check("webdataset: samples", ours == [row[:3] for row in theirs], (end, ours, theirs))
    check("webdataset: classes", end["classes"] == [str(n) for n in range(12)], end)
    rows, _ = reader.list(source, "--loose", "--texts")
    check("webdataset: texts", [row["text"] for row in rows] == [row[3] for row in theirs])

    def grouped(path):
        out = []
        for s in webdataset.WebDataset(str(path), shardshuffle=False):
            field = next((f for f in ("jpg", "jpeg", "png", "webp", "bmp", "gif") if f in s), None)
            if field:
                out.append((s["__key__"], digest(s[field])))
        return out

    long = {"USTAR": "d" * 150 + "/" + "n" * 90, "GNU": "d" * 150 + "/" + "n" * 120, "PAX": "d" * 150 + "/" + "ü" * 120}
    members = ["a.b/x.jpg", "a.b/x.cls", "__meta__.jpg", "noext", ".hidden.jpg", "y.PNG", "y.Cls", "LONG.jpg", "z.seg.png", "z.jpg", "ünï.jpg", "d/.h", "d/1.jpg"]
    for dialect in ["USTAR", "GNU", "PAX"]:
        path = root / f"{dialect}.tar"
        with tarfile.open(path, "w", format=getattr(tarfile, f"{dialect}_FORMAT")) as tar:
            folder = tarfile.TarInfo("d/")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "a.b/x.jpg"
            tar.addfile(link)
            for n, name in enumerate(members):
                data = b"3" if name.lower().endswith("cls") else picture(n)
                info = tarfile.TarInfo(name.replace("LONG", long[dialect]))
                info.size = len(data)
                if dialect == "PAX":
                    info.pax_headers = {"comment": "ü" * 50}
                tar.addfile(info, io.BytesIO(data))
        rows, end = reader.list(path, "--loose", "--keep")
        ours = [(row["name"].split(".tar/", 1)[1], row["id"]) for row in rows or []]
        check(f"tarfile's {dialect} as webdataset groups it", ours == grouped(path), (end, ours, grouped(path)))
    whole = (root / "shard-000.tar").read_bytes()
    wrong = []
    for cut in range(0, len(whole), 997):
        path = write(root / "cut.tar", whole[:cut])
        rows, end = reader.list(path, "--loose", "--keep")
        try:
            theirs = []
            for s in webdataset.WebDataset(str(path), shardshuffle=False, handler=webdataset.handlers.ignore_and_stop):
                if "jpg" in s:
                    theirs.append((s["__key__"], digest(s["jpg"])))
        except Exception:  # noqa: BLE001 - an empty tar raises where a list of none is meant
            pass
        ours = [(row["name"].split(".tar/", 1)[1], row["id"]) for row in rows or []]
        # Ours may have one more: a sample of which a member behind the picture is missing.
        if ours[: len(theirs)] != theirs or len(ours) > len(theirs) + 1:
            wrong.append((cut, ours, theirs))
        # The last 1,024 bytes and more are the end mark and its padding.
        if rows is not None and whole[cut:].strip(b"\0") and not any("cut" in left["reason"] for left in end["left_out"]):
            wrong.append((cut, end))
    check("a tar cut short gives what webdataset gives before it stops", not wrong, wrong)


def parquet(reader, root):
    """datasets writes; every codec, encoding and page version that pyarrow has and we read."""
    import datasets

    names = ["zebra", "ape", "unseen"]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    pictures = {"train": [picture(n) for n in range(230)], "test": [picture(1000 + n) for n in range(31)]}
    for split, all_bytes in pictures.items():
        data = datasets.Dataset.from_dict({"image": [{"bytes": b, "path": None} for b in all_bytes], "label": [n % 2 for n in range(len(all_bytes))]}, features=features)
        n_files = 2 if split == "train" else 1
        for shard in range(n_files):
            path = root / "repo" / "data" / f"{split}-{shard:05d}-of-{n_files:05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            data.shard(n_files, shard, contiguous=True).to_parquet(path)
    for threads in ["1", "4"]:
        rows, end = reader.list(root / "repo", "--threads", threads)
        if rows is None:
            check("datasets' parquet", False, end)
            continue
        check(f"datasets' parquet, {threads} threads: classes", end["classes"] == names, end)
        for split, ours in [("train", "train"), ("test", "val")]:
            expected = [(names[n % 2], digest(b)) for n, b in enumerate(pictures[split])]
            got = [(row["label"], row.get("id")) for row in rows if row["split"] == ours]
            check(f"datasets' parquet, {threads} threads: {split}", got == expected)

    table = pa.table({
        "image": pa.array([{"bytes": picture(n), "path": f"{n}.png"} for n in range(300)], pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "label": pa.array([f"c{n % 7}" for n in range(300)]).dictionary_encode(),
        "tags": pa.array([["x"] * (n % 3) for n in range(300)]),
    })
    expected = [(f"c{n % 7}", digest(picture(n))) for n in range(300)]
    for options in [
        dict(compression="none"), dict(compression="snappy"), dict(compression="zstd"), dict(data_page_version="2.0"), dict(data_page_version="2.0", compression="zstd"),
        dict(row_group_size=37, data_page_size=1000, write_batch_size=5), dict(use_dictionary=False),
        dict(use_dictionary=False, column_encoding={"image.bytes": "DELTA_LENGTH_BYTE_ARRAY", "label": "DELTA_BYTE_ARRAY"}), dict(write_page_index=True), dict(version="1.0"),
        dict(write_page_checksum=True),
    ]:
        path = root / "x.parquet"
        pq.write_table(table, path, **options)
        rows, end = reader.list(path, "--loose", "--threads", "3")
        got = [(row["label"], row.get("id")) for row in rows or []]
        check(f"pyarrow with {options}", got == expected, end)
    for compression in ["gzip", "brotli", "lz4"]:
        pq.write_table(table, root / "x.parquet", compression=compression)
        rows, end = reader.list(root / "x.parquet", "--loose")
        said = end if rows is None else str(rows[:1]) + str(end["left_out"])
        check(f"{compression} is refused by name", compression in said.lower(), said)
    large = pa.table({"image": pa.array([picture(n) for n in range(20)], pa.large_binary()), "label": pa.array(range(20), pa.uint8()), "caption": pa.array([f"t{n}" for n in range(20)], pa.large_string())})
    pq.write_table(large, root / "x.parquet")
    rows, end = reader.list(root / "x.parquet", "--loose")
    check("large_binary and uint8", rows is not None and [(row["label"], row["id"]) for row in rows] == [(str(n), digest(picture(n))) for n in range(20)], end)
    rows, end = reader.list(root / "x.parquet", "--loose", "--texts")
    check("large_string", rows is not None and [row["text"] for row in rows] == [f"t{n}" for n in range(20)], end)


def arrays(reader, root):
    """numpy writes."""
    colour = RNG.integers(0, 256, (9, 5, 4, 3), dtype=np.uint8)
    grey = RNG.integers(0, 256, (6, 7, 7), dtype=np.uint8)

    def rgb(array):
        return [digest(np.ascontiguousarray(np.repeat(a[..., None], 3, -1) if a.ndim == 2 else a).tobytes()) for a in array]

    np.save(root / "X.npy", colour)
    for labels in [np.arange(9) % 3, np.array(["b", "a", "ü"])[np.arange(9) % 3], (np.arange(9) % 2).astype(bool)]:
        np.save(root / "y.npy", labels)
        rows, end = reader.list(root / "X.npy", "--loose")
        check(f"npy with labels of {labels.dtype}", rows is not None and [(row["rgb"], row["label"]) for row in rows] == list(zip(rgb(colour), map(str, labels))), end)
    for save in [np.savez, np.savez_compressed]:
        save(root / "keras.npz", x_train=grey, y_train=np.arange(6) % 2, x_test=colour, y_test=np.arange(9) % 2)
        rows, end = reader.list(root / "keras.npz")
        got = {split: [(row["rgb"], row["label"]) for row in rows or [] if row["split"] == split] for split in ("train", "val")}
        expected = {"train": list(zip(rgb(grey), map(str, np.arange(6) % 2))), "val": list(zip(rgb(colour), map(str, np.arange(9) % 2)))}
        check(f"npz by {save.__name__}", got == expected, end)
    for name, array in [("float", colour / 255), ("objects", np.array([{}, []], dtype=object)), ("fortran", np.asfortranarray(colour)), ("structured", np.zeros(3, [("a", "u1")])), ("channels first", colour.transpose(0, 3, 1, 2).copy())]:
        np.save(root / "X.npy", array, allow_pickle=True)
        rows, end = reader.list(root / "X.npy", "--loose", "--keep")
        check(f"npy of {name} is refused", rows is None, rows)


def clip_retrieval(reader, root):
    """We write, numpy, pandas and embedding-reader read; they write, we read."""
    try:
        from embedding_reader import EmbeddingReader
    except ImportError:
        EmbeddingReader = None
    names = [f"dir/{n}.jpg" for n in range(25)]
    labels = [None if n % 3 == 0 else f"class {n % 3}" for n in range(25)]
    values = RNG.standard_normal((25, 7)).astype(np.float32)
    for dtype, flag in [(np.float16, "f16"), (np.float32, "f32")]:
        folder = root / flag
        text = "\n".join(json.dumps({"name": n, "label": l, "row": [float(v) for v in r]}) for n, l, r in zip(names, labels, values))
        run = subprocess.run([reader.folder / "clip_layout", "write", str(folder), flag, "2", "25"], input=text, capture_output=True, text=True)
        check(f"clip-retrieval {flag}: written", run.returncode == 0, run.stderr)
        files = sorted((folder / "img_emb").glob("*.npy"))
        check(f"clip-retrieval {flag}: names", [f.name for f in files] == [f"img_emb_{n:02d}.npy" for n in range(13)], files)
        check(f"clip-retrieval {flag}: numbers", np.array_equal(np.concatenate([np.load(f, mmap_mode="r") for f in files]), values.astype(dtype)))
        frame = pd.concat([pd.read_parquet(f) for f in sorted((folder / "metadata").glob("*.parquet"))])
        check(f"clip-retrieval {flag}: metadata", frame["image_path"].tolist() == names and [None if pd.isna(l) else l for l in frame["label"]] == labels)
        if EmbeddingReader:
            theirs = EmbeddingReader(str(folder / "img_emb"), metadata_folder=str(folder / "metadata"), meta_columns=["image_path"], file_format="parquet_npy")
            batches = list(theirs(batch_size=10, start=0, end=25, show_progress=False))
            same = np.array_equal(np.concatenate([b for b, _ in batches]), values.astype(dtype)) and sum((m["image_path"].tolist() for _, m in batches), []) == names
            check(f"clip-retrieval {flag}: embedding-reader", same)
    folder = root / "theirs"
    for kind, column in [("img_emb", "image_path"), ("text_emb", "caption")]:
        (folder / kind).mkdir(parents=True)
        (folder / "metadata").mkdir(exist_ok=True)
        # `OutputSink` of clip-retrieval's writer.py: zfill(int(log10(partitions)) + 1), numpy.save, DataFrame.to_parquet.
        for partition in range(3):
            np.save(folder / kind / f"{kind}_{partition}.npy", values[partition * 8 : partition * 8 + 8].astype(np.float16))
    for partition in range(3):
        rows = slice(partition * 8, partition * 8 + 8)
        pd.DataFrame({"image_path": names[rows], "caption": [f"about {n}" for n in names[rows]], "width": range(8)[: len(names[rows])]}).to_parquet(folder / "metadata" / f"metadata_{partition}.parquet")
    for kind, expected in [("images", names[:24]), ("texts", [f"about {n}" for n in names[:24]])]:
        run = subprocess.run([reader.folder / "clip_layout", "read", str(folder), kind], capture_output=True, text=True)
        got = [json.loads(line) for line in run.stdout.splitlines()]
        same = [row["name"] for row in got] == expected and np.array_equal(np.array([row["row"] for row in got], np.float32), values[:24].astype(np.float16).astype(np.float32))
        check(f"clip-retrieval's {kind} are read", same, run.stderr)


PARTS = [image_folders, manifests, tars, parquet, arrays, clip_retrieval]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("examples", help="the folder of the example programs")
    parser.add_argument("--only", action="append", choices=[part.__name__ for part in PARTS])
    args = parser.parse_args()
    reader = Reader(args.examples)
    with tempfile.TemporaryDirectory() as scratch:
        for part in PARTS:
            if not args.only or part.__name__ in args.only:
                root = Path(scratch) / part.__name__
                root.mkdir()
                part(reader, root)
    print(f"{len(FAILED)} differences" if FAILED else "all equal")
    sys.exit(bool(FAILED))


if __name__ == "__main__":
    main()
