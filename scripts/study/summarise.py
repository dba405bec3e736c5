#!/usr/bin/env python3
"""Keeps what is small of the routing study: summarise.py COURSE FINAL RESULTS: two folders of `openmoe analyze`, and where to.

Copies the pictures that the README shows, and writes results.json: the numbers behind its statements, for every run,
checkpoint and layer.
"""
import csv
import json
import pathlib
import shutil
import sys

# name here: which folder, figure, and its picture from 1; 0: the last
PICTURES = {
    "prediction-over-steps": ("course", "prediction", 0),
    "information-over-steps": ("course", "information", 0),
    "tokens-over-checkpoints": ("course", "tokens_over_checkpoints", 3),
    "stability": ("course", "stability", 1),
    "favourites": ("course", "stability", 2),
    "prediction": ("final", "prediction", 1),
    "information": ("final", "information", 1),
    "experts-by-domain": ("final", "domains", 1),
    "experts-by-language": ("final", "natural_languages", 1),
    "experts-by-token": ("final", "tokens", 1),
    "specialisation": ("final", "specialisation", 1),
    "drops": ("final", "drops_by_position", 1),
    "drops-of-runs": ("final", "drops_of_runs", 1),
    "drops-of-runs-conversations": ("final", "drops_of_runs", 5),
}


def number(text):
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def rows(report, figure):
    with open(report / f"{figure}.csv", newline="", encoding="utf-8") as file:
        return [{key: number(value) for key, value in row.items()} for row in csv.DictReader(file)]


def drop_shares(report):
    """Shares lost in the first and the second half of a row, by run, rule, set and layer, and which half."""
    sums = {}
    for figure in ("drops_by_position", "drops_of_runs"):
        table = rows(report, figure)
        length = max(row["position_end"] for row in table)
        for row in table:
            half = "first_half" if row["position_begin"] < length / 2 else "second_half"
            key = (figure, row["model"], row["rule"], row["layer"], row["set"])
            entry = sums.setdefault(key, {"first_half": [0, 0, 0], "second_half": [0, 0, 0]})[half]
            entry[0] += row["tokens"]
            entry[1] += row["tokens"] * row["lost_first"]
            entry[2] += row["tokens"] * row["lost_all"]
    result = []
    for (figure, model, rule, layer, name), halves in sums.items():
        entry = {"figure": figure, "model": model, "rule": rule, "layer": layer, "set": name}
        for half, (tokens, first, both) in halves.items():
            entry[half] = {"lost_first": round(first / max(1, tokens), 4), "lost_all": round(both / max(1, tokens), 4)}
        result.append(entry)
    return result


def rounded(table, digits=4):
    return [{k: round(v, digits) if isinstance(v, float) else v for k, v in row.items()} for row in table]


def first_choices(table):
    return rounded([row for row in table if row["counted"] == "first"])


def main():
    course, final, results = map(pathlib.Path, sys.argv[1:4])
    folders = {"course": course, "final": final}
    results.mkdir(parents=True, exist_ok=True)
    for name, (folder, figure, number_of) in PICTURES.items():
        place = number_of or len(list(folders[folder].glob(f"{figure}-*.svg")))
        shutil.copyfile(folders[folder] / f"{figure}-{place}.svg", results / f"{name}.svg")
    summary = {}
    for name, folder in folders.items():
        facts = json.loads((folder / "results.json").read_text(encoding="utf-8"))["facts"]
        summary[f"facts of {name}"] = facts
        summary[f"prediction, {name}"] = first_choices(rows(folder, "prediction"))
        summary[f"information, {name}"] = first_choices(rows(folder, "information"))
    summary["specialisation"] = rounded(rows(final, "specialisation"))
    summary["stability"] = rounded(rows(course, "stability"))
    summary["drops"] = drop_shares(final)
    summary["losses"] = rounded(rows(final, "losses"))
    # One row a line: small, and changes can be read.
    lines = []
    for key, value in summary.items():
        if isinstance(value, dict):
            lines.append(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
        else:
            body = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in value)
            lines.append(f" {json.dumps(key)}: [\n{body}\n ]")
    (results / "results.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
