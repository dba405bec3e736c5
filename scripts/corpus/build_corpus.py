#!/usr/bin/env python3
"""Builds a corpus of real text over all domains of the paper from packages of Debian 12.

    apt-get update                                            # once, as root; nothing gets installed
    scripts/corpus/build_corpus.py --out corpus               # about 170 MB of text
    scripts/corpus/build_corpus.py --out corpus --limit-mb 30 # the same mixture, scaled down

Writes one JSON Lines file per domain in the record layout of the data set it stands in for: RedPajama ("text", "meta"),
The Stack ("content", "lang"), WildChat ("conversation"); parallel-LANG.jsonl has aligned pages ("segments").
manifest.json lists documents, bytes and SHA-256 of each file, and version and licence of each package. The output
depends on the versions of the packages alone. Needs Python 3.9, apt-get and dpkg-deb.
"""
import argparse
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from pathlib import Path

from catalogue import CATALOGUE
from readers import READERS, normalise, squash

MEGABYTE = 1_000_000
MIN_CHARACTERS = 200


class CorpusError(Exception):
    """Something that the user can put right."""


def run(command, folder):
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        raise CorpusError(f"{command[0]}: not found; this needs Debian 12, or a container of it") from None
    if result.returncode != 0:
        reason = "\n  ".join(result.stderr.strip().splitlines()[-6:])
        raise CorpusError(f"{' '.join(command[:2])} failed:\n  {reason}\nRun `apt-get update` as root first; "
                          "the catalogue is for Debian 12 (bookworm), section main.")
    return result.stdout


def download(names, cache):
    """The .deb file of each package, downloaded unless `cache` has it."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as empty:  # apt-get lists only files that are not there yet
        listing = run(["apt-get", "download", "--print-uris", *names], empty)
    files = {line.split()[1].split("_", 1)[0]: cache / line.split()[1]
             for line in listing.splitlines() if line.startswith("'")}
    missing = [name for name in names if name not in files or not files[name].is_file()]
    if missing:
        print(f"downloading {len(missing)} packages", file=sys.stderr)
        run(["apt-get", "download", *missing], cache)
    return files


def read_package(path, source):
    """(path, bytes) of the files wanted, sorted; archives inside the package (*.tar.xz) are looked into."""
    found = []

    def walk(archive, prefix):
        for member in archive:
            name = prefix + re.sub(r"^\./", "", member.name)
            if not member.isfile():
                continue
            if name.endswith(".tar.xz"):
                with tarfile.open(fileobj=archive.extractfile(member), mode="r|xz") as inner:
                    walk(inner, name + "/")
            elif re.search(source.wanted, name) and not re.search(source.unwanted, name):
                found.append((name, archive.extractfile(member).read()))

    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(path)], stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            walk(archive, "")
        process.stdout.read()
    if process.returncode:
        raise CorpusError(f"{path}: dpkg-deb cannot unpack it; delete it and try again")
    return sorted(found)


class Seen:
    """Exact duplicates anywhere, and documents most of whose longer lines stood in earlier ones of their domain."""

    def __init__(self):
        self.documents = set()
        self.lines = defaultdict(set)

    def is_new(self, text, domain):
        digest = hashlib.sha256(squash(text).encode()).digest()
        lines = [hash_of(line.strip())[:8] for line in text.split("\n") if len(line.strip()) >= 24]
        repeated = sum(line in self.lines[domain] for line in lines)
        if digest in self.documents or (len(lines) >= 4 and repeated > 0.7 * len(lines)):
            return False
        self.documents.add(digest)
        self.lines[domain].update(lines)
        return True


def hash_of(text):
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def size_of(document):
    return len(document["text"].encode())


def take(documents, budget):
    """Documents up to a number of bytes, chosen by hash, in their order."""
    chosen, used = set(), 0
    for document in sorted(documents, key=lambda d: hash_of(f"{d['package']}:{d['path']}:{d['text'][:200]}")):
        if used + size_of(document) <= budget:
            chosen.add(id(document))
            used += size_of(document)
    return [document for document in documents if id(document) in chosen]


def collect(source, debs, seen):
    documents = []
    for package in source.packages:
        for document in READERS[source.reader](read_package(debs[package], source)):
            document.update(text=normalise(document["text"]), package=package, licence=source.licence)
            # A translation repeats the original's code and names: no duplicate.
            if (len(document["text"]) >= MIN_CHARACTERS and "\ufffd" not in document["text"]
                    and (source.domain == "parallel" or seen.is_new(document["text"], source.domain))):
                documents.append(document)
    documents = take(documents, source.max_mb * MEGABYTE)
    if not documents:
        raise CorpusError(f"no usable text in {' '.join(source.packages)}: have the packages changed their layout?")
    return documents


def record_of(domain, document):
    meta = {"url": f"deb:{document['package']}/{document['path']}", "title": document.get("title", ""),
            "package": document["package"], "license": document["licence"]}
    if domain == "the_stack":
        return {"content": document["text"], "lang": document["language"], "size": size_of(document),
                "max_stars_repo_path": document["path"], "max_stars_repo_name": "debian/" + document["package"],
                "max_stars_repo_licenses": [document["licence"]]}
    if domain == "conversations":
        meta["task"] = document["task"]
        return {"conversation": document["turns"], "turn": len(document["turns"]) // 2, "meta": meta}
    if domain == "github":
        meta["language"] = [{"name": document["language"], "bytes": str(size_of(document))}]
    record = {"text": document["text"], "meta": {**meta, "source": domain}}
    if "segments" in document:
        record["segments"] = document["segments"]
    return record


def write(out, name, domain, documents):
    data = "".join(json.dumps(record_of(domain, d), ensure_ascii=False) + "\n" for d in documents).encode()
    (out / name).write_bytes(data)
    text_bytes = sum(map(size_of, documents))
    print(f"{name:24s} {len(documents):7d} documents {text_bytes / MEGABYTE:8.2f} MB of text")
    return {"documents": len(documents), "text_bytes": text_bytes, "sha256": hashlib.sha256(data).hexdigest()}


def build(out, cache, limit_mb, domains):
    sources = [source for source in CATALOGUE if source.domain in domains]
    names = sorted({name for source in sources for name in source.packages})
    debs = download(names, cache)
    seen = Seen()
    by_file = defaultdict(list)  # (file, domain) -> documents
    for source in sources:
        for document in collect(source, debs, seen):
            part = "-" + document["language"] if source.domain == "parallel" else ""
            by_file[source.domain + part + ".jsonl", source.domain].append(document)
    total = sum(size_of(document) for documents in by_file.values() for document in documents)
    share = min(1.0, limit_mb * MEGABYTE / total) if limit_mb else 1.0
    out.mkdir(parents=True, exist_ok=True)
    manifest = {"files": {}, "packages": {}}
    for (name, domain), documents in sorted(by_file.items()):
        kept = documents if share == 1.0 else take(documents, share * sum(map(size_of, documents)))
        manifest["files"][name] = write(out, name, domain, kept)
    for name in names:
        manifest["packages"][name] = {
            "version": run(["dpkg-deb", "--show", "--showformat=${Version}", str(debs[name])], cache),
            "licences": sorted({source.licence for source in sources if name in source.packages})}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def main():
    all_domains = sorted({source.domain for source in CATALOGUE})
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON Lines files")
    parser.add_argument("--limit-mb", type=float, help="scale the corpus down to about this much text")
    parser.add_argument("--domains", nargs="+", choices=all_domains, default=all_domains, help="these only")
    parser.add_argument("--cache", type=Path, help="folder that keeps the packages for the next run")
    options = parser.parse_args()
    try:
        if options.cache:
            build(options.out, options.cache.resolve(), options.limit_mb, options.domains)
        else:
            with tempfile.TemporaryDirectory() as cache:
                Path(cache).chmod(0o755)  # apt-get drops its rights to download
                build(options.out, Path(cache), options.limit_mb, options.domains)
    except (CorpusError, OSError) as error:
        sys.exit(f"build_corpus: {error}")


if __name__ == "__main__":
    main()
