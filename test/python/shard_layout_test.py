"""Shards read with the real h5py, by the layout that data/shard.h documents and by nothing else.

Usage: shard_layout_test.py OPENMOE     exit code 77: h5py is missing
"""
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import unittest

SKIPPED = 77
try:
    import h5py
    import numpy as np
except ImportError as error:
    print(f"skipped: {error}; Debian and Ubuntu package python3-h5py")
    sys.exit(SKIPPED)
try:
    import sentencepiece
except ImportError:
    sentencepiece = None
try:
    import xxhash
except ImportError:
    xxhash = None

SAMPLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "data", "sample")
MODEL = os.path.join(SAMPLE, "unigram-8000.model")
OPENMOE = ""


def text_of(record):
    return record.get("text") or record.get("content")


class Layout(unittest.TestCase):
    def prepare(self, source, *options):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = os.path.join(SAMPLE, source + ".jsonl")
        subprocess.run([OPENMOE, "prepare", "--tokenizer", MODEL, "--input", path, "--out", folder.name,
                        "--validation-fraction", "0.2", *options], check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        names = sorted(os.listdir(os.path.join(folder.name, source)))
        shards = [h5py.File(os.path.join(folder.name, source, name)) for name in names]
        for shard in shards:
            self.addCleanup(shard.close)
        with open(path, encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines]
        return path, records, shards

    def test_attributes(self):
        path, records, shards = self.prepare("the_stack")
        attributes = shards[0].attrs
        self.assertEqual(attributes["format"], "openmoe-shard")
        self.assertEqual(attributes["format_version"], 1)
        self.assertTrue(attributes["tool_version"].startswith("openmoe "))
        self.assertEqual(attributes["source"], "the_stack")
        with open(path, "rb") as file:
            self.assertEqual(attributes["input_sha256"], hashlib.sha256(file.read()).hexdigest())
        self.assertEqual((attributes["tokenizer_pieces"], attributes["tokenizer_sentinels"]), (8000, 100))
        self.assertEqual(len(attributes["tokenizer_sha256"]), 64)
        self.assertEqual((attributes["records_begin"], attributes["records_end"]), (0, len(records)))
        self.assertEqual(attributes["input_complete"], 1)
        self.assertEqual(json.loads(attributes["settings"])["validation_fraction"], 0.2)
        self.assertEqual(attributes["text_bytes"], sum(len(text_of(record).encode()) for record in records))

    def check_documents(self, source, *options):
        _, records, shards = self.prepare(source, *options)
        processor = sentencepiece.SentencePieceProcessor(model_file=MODEL) if sentencepiece else None
        seen = []
        for shard in shards:
            tags = [tag.decode() for tag in shard["tags"][:]]
            for split in ("train", "validation"):
                group = shard[split]
                offsets, tokens = group["document_offsets"][:], group["tokens"]
                self.assertEqual(tokens.dtype, np.uint16)
                self.assertEqual(offsets[0], 0)
                self.assertEqual(offsets[-1], len(tokens))
                for d, record in enumerate(group["document_records"][:]):
                    text = text_of(records[record])
                    seen.append(record)
                    self.assertEqual(tags[group["document_tags"][d]], records[record].get(
                        "lang", tags[group["document_tags"][d]]))
                    ids = tokens[offsets[d]:offsets[d + 1]]
                    if processor:
                        self.assertEqual(ids.tolist(), processor.encode(text))
                    if xxhash:
                        high, low = group["document_hashes"][d]
                        self.assertEqual(int(high) << 64 | int(low), xxhash.xxh3_128_intdigest(text.encode()))
                if xxhash:
                    self.check_checksums(group)
        self.assertEqual(sorted(seen), list(range(len(records))))  # both splits together, nothing twice

    def check_checksums(self, group):
        tokens = group["tokens"][:]
        blocks = [xxhash.xxh3_64_intdigest(tokens[i:i + 65536].tobytes()) for i in range(0, len(tokens), 65536)]
        self.assertEqual(group["block_checksums"][:].tolist(), blocks)
        parts = b"".join(xxhash.xxh3_64_intdigest(group[name][:].tobytes() if name in group else b"").to_bytes(8, "little")
                         for name in ("document_offsets", "document_hashes", "document_records", "document_tags",
                                      "part_offsets", "part_ends"))
        self.assertEqual(group.attrs["index_checksum"], f"{xxhash.xxh3_64_intdigest(parts):016x}")

    def test_documents(self):
        self.check_documents("the_stack")

    def test_compressed_and_in_several_shards(self):
        self.check_documents("wikipedia_en", "--deflate", "4", "--shard-tokens", "20000")

    def test_conversations(self):
        _, records, shards = self.prepare("conversations", "--chat")
        self.assertEqual(shards[0].attrs["chat"], 1)
        group = shards[0]["train"]
        offsets, parts, ends = (group[name][:] for name in ("document_offsets", "part_offsets", "part_ends"))
        for d, record in enumerate(group["document_records"][:]):
            own = ends[parts[d]:parts[d + 1]]
            turns = [turn for turn in records[record]["conversation"]]
            self.assertEqual(len(own), len(turns) // 2 * 2)
            self.assertEqual(own[-1], offsets[d + 1] - offsets[d])
            self.assertTrue(np.all(np.diff(own) > 0))


if __name__ == "__main__":
    OPENMOE = sys.argv.pop(1)
    for name, module in (("sentencepiece", sentencepiece), ("xxhash", xxhash)):
        if module is None:
            print(f"not compared: {name} is not installed")
    unittest.main()
