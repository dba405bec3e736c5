#!/usr/bin/env python3
"""The README's table of planned runs: the released models on 8, 64 and 512 GPUs.

For each model and number of GPUs it asks `openmoe plan` for every grid of ep 1 to 32 and tp 1 to 8 with recipes/released as they are,
in bf16, with gradients reduced in buckets, and prints the one with the shortest step that fits. Nothing is measured: all numbers
are computed from the description of the machine.
Usage: scripts/plan_table.py [MACHINE.json]      default: recipes/machines/h100-node.json
"""
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
OPENMOE = os.path.join(ROOT, "build/release/openmoe")
COMMON = ["--set", "run.compute_type=bf16", "--set", "parallel.reduction_bucket_kb=65536"]


def plan(machine, model, gpus, ep, tp, more):
    command = [OPENMOE, "plan", os.path.join(ROOT, "recipes/released", f"openmoe-{model}.json"), "--json", "--machine", machine,
               "--ranks", str(gpus), "--ep", str(ep), "--tp", str(tp), *COMMON, *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout)
    if done.returncode == 2 and "does not fit" in done.stderr:  # the grid, or the machine
        return None
    sys.exit(done.stderr)


def fastest(machine, model, gpus, more=()):
    grids = [(ep, tp) for ep in (1, 2, 4, 8, 16, 32) for tp in (1, 2, 4, 8) if gpus % (ep * tp) == 0]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        plans = pool.map(lambda grid: plan(machine, model, gpus, *grid, more), grids)
    return min(filter(None, plans), key=lambda of: of["time"]["step_seconds"], default=None)


def row(name, gpus, of):
    if of is None:
        return f"| {name} | {gpus} | none fits | | | | | | | | |"
    grid, time = of["grid"], of["time"]
    step = time["step_seconds"]

    def share(key):
        return f"{100 * time[key] / step:.0f} %"
    return (f"| {name} | {gpus} | {grid['dp']} x {grid['ep']} x {grid['tp']} | {of['memory']['total'] / 2**30:.1f} | {step:.3g} | "
            f"{share('compute_seconds')} | {share('optimizer_seconds')} | {share('exposed_communication_seconds')} | "
            f"{time['tokens_per_second'] / 1e6:.3g}M | {time['days']:.3g} | {time['share_of_peak']:.2f} |")


def main():
    machine = sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, "recipes/machines/h100-node.json")
    print("| model | GPUs | dp x ep x tp | GiB per GPU | step, s | compute | optimizer | exposed communication | tokens/s | days | share of "
          "peak |\n|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, model in (("Base", "base"), ("8B", "8b"), ("34B", "34b")):
        for gpus in (8, 64, 512):
            of = fastest(machine, model, gpus)
            if of is None and model == "base":
                # Its batch is too small for so many: eight times the rows in an eighth of the steps.
                more = ["--set", "data.batch_rows=1024", "--set", "run.num_steps=62500"]
                print(row(name + ", 1,024 rows", gpus, fastest(machine, model, gpus, more)))
            else:
                print(row(name, gpus, of), flush=True)


main()
