#!/usr/bin/env python3
"""Speed of the data system on this machine, beside SentencePiece's own encoder and a peer's loader.

    scripts/bench/data.py corpus/*.jsonl                     # needs the package sentencepiece (spm_encode)
    VENV/bin/python scripts/bench/data.py corpus/*.jsonl     # VENV: pip install megatron-core mosaicml-streaming

Prints a table, or with --json one object. "Per core" is per second of processor time, children included, so that other
work on the machine does not count. Each figure is the best of three runs.
"""
import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LENGTH = 2048


def text_of(line):
    record = json.loads(line)
    turns = record.get("conversation") or []
    return record.get("text") or record.get("content") or "\n\n".join(turn["content"] for turn in turns)


def measured(command, repeats=3, before=lambda: None, **options):
    """(wall seconds, processor seconds) of the run that took the least processor time."""
    best = None
    for _ in range(repeats):
        before()
        start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = (time.perf_counter() - start, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime)
        best = run if best is None or run[1] < best[1] else best
    return best


def bench_prepare(openmoe, tokenizer, inputs, folder):
    """Text to ids: `prepare` whole (JSON, hashes, shards and all), and spm_encode on the same text as plain lines."""
    plain = folder / "text.txt"
    with open(plain, "w", encoding="utf-8") as out:
        for path in inputs:
            for line in open(path, encoding="utf-8"):
                out.write(text_of(line) + "\n")
    megabytes = plain.stat().st_size / 1e6
    rows = []
    for threads in (1, 2):
        out = folder / f"shards-{threads}"
        command = [openmoe, "--threads", str(threads), "prepare", "--tokenizer", tokenizer, "--out", str(out), "--input",
                   *map(str, inputs), "--max-record-mb", "64", "--sentinels", "300"]
        wall, cpu = measured(command, before=lambda: shutil.rmtree(out, ignore_errors=True))
        rows.append({"what": f"prepare, {threads} thread" + "s" * (threads > 1), "MB": megabytes, "seconds": wall,
                     "cpu_seconds": cpu, "MB_per_second": megabytes / wall, "MB_per_cpu_second": megabytes / cpu})
    if shutil.which("spm_encode"):
        command = ["spm_encode", "--model=" + tokenizer, "--output_format=id", f"--input={plain}", "--output=/dev/null"]
        wall, cpu = measured(command)
        rows.append({"what": "spm_encode", "MB": megabytes, "seconds": wall, "cpu_seconds": cpu,
                     "MB_per_second": megabytes / wall, "MB_per_cpu_second": megabytes / cpu})
    return rows


def write_recipe(folder, name, objective, packing, sources):
    (folder / "mixtures").mkdir(exist_ok=True)
    (folder / "mixtures" / "all.json").write_text(json.dumps(
        {"name": "all", "description": "all sources of the benchmark", "unit": "rows", "weight_sum": len(sources),
         "sources": [{"name": source, "weight": 1} for source in sources]}))
    path = folder / f"{name}.json"
    path.write_text(json.dumps({
        "extends": str(ROOT / "recipes" / "quickstart.json"), "name": name, "description": "benchmark of streaming",
        "model": {"vocab_size": 8448}, "routing": {"group_tokens": LENGTH},
        "data": {"sequence_length": LENGTH, "batch_rows": 64,
                 "phases": [{"objective": objective, "packing": packing, "mixture": "all"}]}}))
    return path


def bench_stream(openmoe, folder, sources):
    rows = []
    for objective, packing in (("ul2", "faithful"), ("ul2", "packed"), ("causal_lm", "faithful"), ("causal_lm", "packed")):
        recipe = write_recipe(folder, f"{objective}-{packing}", objective, packing, sources)
        command = [openmoe, "data", "bench", str(recipe), "--data", str(folder / "shards-1"), "--steps", "40", "--json"]
        report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        rows.append({"what": f"openmoe {objective} {packing}", "padding_percent": 100 * report["padding_share"],
                     "positions_per_cpu_second": report["positions_per_cpu_second"]})
    return rows


def documents_of(folder):
    import h5py
    import numpy as np
    for path in sorted((folder / "shards-1").glob("*/*.h5")):
        with h5py.File(path) as shard:
            tokens, offsets = shard["train/tokens"][:], shard["train/document_offsets"][:]
        for begin, end in zip(offsets[:-1], offsets[1:]):
            yield np.append(tokens[begin:end], 1).astype(np.uint16)


def timed_reads(what, dataset, count):
    dataset[0]
    best = None
    for _ in range(3):
        start = time.process_time()
        for index in range(count):
            dataset[index]
        used = time.process_time() - start
        best = used if best is None else min(best, used)
    return {"what": what, "positions_per_cpu_second": count * LENGTH / best}


def bench_megatron(folder):
    """Megatron Core's GPTDataset over its memory-mapped IndexedDataset: causal rows, numpy and torch on one core."""
    import torch
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder
    from megatron.core.datasets.utils import Split
    torch.set_num_threads(1)
    prefix = str(folder / "megatron")
    builder = IndexedDatasetBuilder(prefix + ".bin", dtype=DType.optimal_dtype(8300))
    for document in documents_of(folder):
        builder.add_document(torch.from_numpy(document.astype("int32")), [len(document)])
    builder.finalize(prefix + ".idx")

    class Tokenizer:  # what the dataset asks of one
        eod, unique_identifiers, vocab_size = 1, {"class": "bench"}, 8300
        pad = 0

    config = GPTDatasetConfig(random_seed=1, sequence_length=LENGTH, blend=([prefix], None), split="1,0,0",
                              path_to_cache=str(folder / "megatron-cache"), tokenizer=Tokenizer(),
                              reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False,
                              create_attention_mask=False)
    indexed = IndexedDataset(prefix, multimodal=False, mmap=True)
    import numpy as np
    count = 2000
    dataset = GPTDataset(indexed, prefix, np.arange(len(indexed), dtype=np.int32), count, Split.train, config)
    return timed_reads("Megatron Core GPTDataset (causal)", dataset, count)


def bench_streaming(folder):
    """MosaicML Streaming: rows of LENGTH tokens as MDS records, read back in order by one process."""
    import numpy as np
    from streaming import MDSWriter, StreamingDataset
    out = str(folder / "mds")
    stock, rows = np.empty(0, dtype=np.uint16), 0
    with MDSWriter(out=out, columns={"tokens": "ndarray:uint16"}) as writer:
        for document in documents_of(folder):
            stock = np.concatenate([stock, document])
            while len(stock) >= LENGTH:
                writer.write({"tokens": stock[:LENGTH]})
                stock, rows = stock[LENGTH:], rows + 1
    dataset = StreamingDataset(local=out, shuffle=False, batch_size=1)
    return timed_reads("MosaicML StreamingDataset (causal)", dataset, min(2000, rows))


def bench_peers(folder):
    rows = []
    for bench in (bench_megatron, bench_streaming):
        try:
            rows.append(bench(folder))
        except ImportError as error:
            rows.append({"what": bench.__name__.replace("bench_", ""), "skipped": str(error)})
    return rows


def print_rows(rows):
    for row in rows:
        if "skipped" in row:
            print(f"{row['what']:38s} skipped: {row['skipped']}")
        elif "MB" in row:
            print(f"{row['what']:38s} {row['MB_per_second']:8.2f} MB/s  {row['MB_per_cpu_second']:8.2f} MB/s per core")
        else:
            padding = f"  {row['padding_percent']:.2f}% padding" if "padding_percent" in row else ""
            print(f"{row['what']:38s} {row['positions_per_cpu_second'] / 1e6:8.2f} million positions/s per core{padding}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("inputs", nargs="+", type=Path, help="JSON Lines files")
    parser.add_argument("--openmoe", default=str(ROOT / "build" / "release" / "openmoe"))
    parser.add_argument("--tokenizer", default=str(ROOT / "data" / "sample" / "unigram-8000.model"))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = bench_prepare(options.openmoe, options.tokenizer, options.inputs, folder)
        sources = sorted(path.name for path in (folder / "shards-1").iterdir() if path.is_dir())
        rows += bench_stream(options.openmoe, folder, sources)
        rows += bench_peers(folder)
    if options.json:
        print(json.dumps(rows, indent=1))
    else:
        print_rows(rows)


if __name__ == "__main__":
    sys.exit(main())
