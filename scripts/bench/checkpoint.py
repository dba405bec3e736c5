#!/usr/bin/env python3
"""What a checkpoint costs a run: steps that follow one another with checkpoints in between, saved at once or in the background.

    scripts/bench/checkpoint.py DATA                         # DATA: from `openmoe prepare` with the sample's tokenizer
    scripts/bench/checkpoint.py DATA --experts 128 --ranks 2

The time between rows of metrics.jsonl, as they appear: of a step alone, how much longer the one with a checkpoint before it
takes, and how much longer all steps of an interval between checkpoints take together than without any.
"""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"none": ["--set", "run.checkpoint_every=0"], "at once": ["--set", "run.checkpoint_every={every}"],
            "in the background": ["--set", "run.checkpoint_every={every}", "--set", "run.checkpoint_in_background=true"]}


def times_of_rows(command, metrics):
    """Seconds at which each row of the file appeared."""
    times, size = [], 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        if metrics.exists() and metrics.stat().st_size > size:
            now, text = time.perf_counter(), metrics.read_text()
            size = len(text.encode())
            times += [now] * (text.count("\n") - len(times))
        time.sleep(0.002)
    if process.returncode != 0:
        sys.exit(process.stderr.read())
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--every", type=int, default=6, help="steps between checkpoints")
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="of a rank; 0: its share of the cores")
    parser.add_argument("--binary", default=str(ROOT / "build/release/openmoe"))
    options = parser.parse_args()
    every, steps = options.every, options.every * (options.saves + 1) + 1
    launcher = [str(ROOT / "scripts/mpirun.sh"), "-np", str(options.ranks)] if options.ranks > 1 else []
    intervals = {}
    for name, extra in SETTINGS.items():
        with tempfile.TemporaryDirectory(prefix="openmoe-checkpoint-") as folder:
            run = Path(folder) / "run"
            command = launcher + [
                options.binary, "train", str(ROOT / "recipes/quickstart.json"), "--data", options.data, "--out", str(run),
                "--threads", str(options.threads or max(1, (os.cpu_count() or 1) // options.ranks)), "--ep", str(options.ranks),
                "--set", f"model.num_experts={options.experts}", "--set", f"run.num_steps={steps}",
                "--set", "run.validate_every=0", "--set", "run.keep_checkpoints=1"]
            command += [part.format(every=every) for part in extra]
            times = times_of_rows(command, run / "metrics.jsonl")
            gaps = [after - before for before, after in zip(times, times[1:])]
            intervals[name] = gaps[every - 1:]  # from the step after the first checkpoint on
            if name == "none":
                alone = statistics.median(intervals[name])
                print(f"a step alone {alone:.3f} s")
    for name, gaps in intervals.items():
        if name == "none":
            continue
        stalls = [gap - alone for gap in gaps[::every]][:options.saves]
        whole = [sum(gaps[i * every:(i + 1) * every]) - sum(intervals["none"][i * every:(i + 1) * every])
                 for i in range(options.saves)]
        print(f"{name:18s} the step with the checkpoint takes {statistics.median(stalls):.3f} s longer, "
              f"the {every} steps from it on together {statistics.median(whole):.3f} s")


if __name__ == "__main__":
    main()
