"""The live routing records read by the programs they are for: the real TensorBoard, and h5py; and a log that h5py wrote.

Usage: routing_test.py OPENMOE SHARDS SOURCE CASE     CASE: tensorboard or log; exit code 77: a package is missing
"""
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile

SKIPPED = 77


def run(*arguments):
    result = subprocess.run(arguments, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"{' '.join(arguments)}\n{result.stdout}{result.stderr}")


def train(openmoe, shards, source, out, *more):
    run(openmoe, "train", f"{source}/test/recipes/tiny-released.json", "--data", shards, "--out", out, "--set", "run.num_steps=7",
        "--set", "run.validate_every=0", "--set", "run.routing_every=3", "--set", "run.checkpoint_every=3",
        "--set", "run.keep_checkpoints=9", *more)


def resume(openmoe, shards, source, out):
    train(openmoe, shards, source, out, "--resume")


def metrics(out):
    with open(f"{out}/metrics.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def routing_rows(out):
    return {row["step"]: row["routing"] for row in metrics(out) if "routing" in row}


def tensorboard(openmoe, shards, source):
    try:
        from tensorboard.backend.event_processing import event_accumulator
    except ImportError as error:
        print(f"skipped: {error}; test/python/setup.sh installs tensorboard from PyPI")
        sys.exit(SKIPPED)
    with tempfile.TemporaryDirectory() as folder:
        train(openmoe, shards, source, folder + "/run")
        rows = routing_rows(folder + "/run")
        assert sorted(rows) == [0, 3, 6], sorted(rows)
        files = glob.glob(folder + "/run/tensorboard/events.out.tfevents.*")
        assert len(files) == 1, files
        events = event_accumulator.EventAccumulator(folder + "/run/tensorboard")
        events.Reload()
        tags = events.Tags()["scalars"]
        for name in ("lost_first", "lost_second", "lost_both", "entropy_bits", "confidence", "balance_loss", "z_loss",
                     "rank_imbalance", "unchanged_favourites", "expert_share/3", "first/0", "second/1", "kept/3", "lost_first_by_position/0",
                     "lost_both_by_position/15"):
            tag = f"routing/layer_1/{name}"
            assert tag in tags, (tag, tags)
        for lost in ("lost_first", "lost_second", "lost_both"):
            assert any(tag.startswith(f"routing/layer_1/{lost}_by_source/") for tag in tags), tags
        with open(folder + "/run/metrics.jsonl", encoding="utf-8") as file:
            steps = {row["step"]: row for row in map(json.loads, file)}
        assert sorted(steps) == list(range(7)), sorted(steps)
        for key in ("loss", "cross_entropy", "load_balance_loss", "router_z_loss", "accuracy", "grad_norm", "learning_rate",
                    "tokens_per_s"):
            scalars = events.Scalars(f"train/{key}")
            assert [s.step for s in scalars] == sorted(steps), (key, scalars)
            for scalar in scalars:
                expected = steps[scalar.step][key]
                assert abs(scalar.value - expected) <= 1e-6 * abs(expected), (key, scalar, expected)
        for key in ("lost_second", "entropy_bits"):
            scalars = events.Scalars(f"routing/layer_1/{key}")
            assert [s.step for s in scalars] == [0, 3, 6]
            assert all(0 < steps[s.step]["routing_seconds"] < steps[s.step]["step_seconds"] for s in scalars)
            for scalar in scalars:
                expected = rows[scalar.step][0][key]
                assert abs(scalar.value - expected) <= 1e-6 * abs(expected), (key, scalar, expected)
        # A run that went on from an earlier checkpoint wrote some steps twice; each is shown once, as it was last.
        shutil.rmtree(folder + "/run/checkpoints/step-00000007")
        shutil.rmtree(folder + "/run/checkpoints/step-00000006")
        resume(openmoe, shards, source, folder + "/run")
        assert len(glob.glob(folder + "/run/tensorboard/events.out.tfevents.*")) == 2
        again = event_accumulator.EventAccumulator(folder + "/run/tensorboard")
        again.Reload()
        assert [s.step for s in again.Scalars("train/loss")] == list(range(7)), again.Scalars("train/loss")
        assert [s.step for s in again.Scalars("routing/layer_1/entropy_bits")] == [0, 3, 6]
        speeds = {row["step"]: row["tokens_per_s"] for row in metrics(folder + "/run")}  # differ from run to run
        for scalar in again.Scalars("train/tokens_per_s"):
            assert abs(scalar.value - speeds[scalar.step]) <= 1e-6 * speeds[scalar.step], (scalar, speeds)
        # A record whose checksums are wrong is refused by the reader: ours are right, or nothing would have been read.
        with open(files[0], "r+b") as file:
            file.seek(-6, os.SEEK_END)
            byte = file.read(1)
            file.seek(-6, os.SEEK_END)
            file.write(bytes([byte[0] ^ 1]))
        damaged = event_accumulator.EventAccumulator(files[0])
        try:
            damaged.Reload()
            seen = [s.step for s in damaged.Scalars("routing/layer_1/lost_second")]
        except Exception:  # versions differ in how they say it
            seen = []
        assert 6 not in seen, seen


def log(openmoe, shards, source):
    try:
        import h5py
        import numpy as np
    except ImportError as error:
        print(f"skipped: {error}; Debian and Ubuntu package python3-h5py")
        sys.exit(SKIPPED)
    with tempfile.TemporaryDirectory() as folder:
        train(openmoe, shards, source, folder + "/run")
        row = routing_rows(folder + "/run")[3][0]
        with h5py.File(folder + "/run/routing/step-00000003.h5") as file:
            assert file.attrs["format_version"] == 1 and file.attrs["step"] == 3
            choices = file["layers/1/choices"][:]
            assert choices.shape == (len(file["token_ids"]), 2)
            assert np.bincount(choices[:, 0], minlength=4).tolist() == row["first"]
        with h5py.File(folder + "/other.h5", "w") as file:  # as another system would write it
            rng = np.random.default_rng(1)
            tokens = rng.integers(0, 20, 512)
            file.attrs.update({"format": "openmoe-routing-log", "format_version": 1, "num_experts": 8, "top_k": 2})
            file["token_ids"] = tokens
            file["sequence_offsets"] = np.arange(0, 513, 64)
            file["sequence_sources"] = np.zeros(8, dtype="i4")
            file.create_dataset("sources", data=["text"], dtype=h5py.string_dtype())
            file["layers/0/choices"] = np.stack([tokens % 8, (tokens + 1) % 8], axis=1)
        run(openmoe, "analyze", "--log", folder + "/other.h5", "--min-count", "2", "--permutations", "9", "--resamples", "9",
            "--out", folder + "/out")
        with open(folder + "/out/results.json", encoding="utf-8") as file:
            figures = {figure["id"]: figure for figure in json.load(file)["figures"]}
        accuracy = [row[4] for row in figures["prediction"]["rows"] if row[2] == "token_id"]
        assert accuracy and min(accuracy) == 1.0, accuracy
        with h5py.File(folder + "/out/results.h5") as file:
            assert file["prediction/accuracy"].shape == (len(figures["prediction"]["rows"]),)


if __name__ == "__main__":
    {"tensorboard": tensorboard, "log": log}[sys.argv[4]](*sys.argv[1:4])
    print("ok")
