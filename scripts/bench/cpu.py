#!/usr/bin/env python3
"""Measures CPU training on this machine: ours in f32 and bf16, with 1 and 2 threads, and PyTorch if it is there.

  scripts/bench/cpu.py [--models m v] [--rounds 3] [--json FILE] [--torch PYTHON ...]

All variants of a model run one after the other in each round, so that a drifting clock meets all of them; the table has the
median of the rounds, and ratios are medians of the ratios within a round. "peak" is the register-only FMA rate that our
bench measures directly before and after every step. PyTorch runs as installed (libopenblas0-pthread, Debian's first
choice, where it is there), and tuned: libopenblas0-openmp, large blocks kept by malloc, transparent huge pages. Nothing else
may run meanwhile.
"""
import argparse, glob, json, os, statistics, subprocess, sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TUNED = {"MALLOC_MMAP_THRESHOLD_": str(1 << 34), "MALLOC_TRIM_THRESHOLD_": str(1 << 34),
         "MALLOC_TOP_PAD_": str(1 << 28), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def run(command, environment):
    """The last JSON value that the command prints, or an error text."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
    done = subprocess.run(command, env={**env, **environment}, capture_output=True, text=True)
    if done.returncode != 0:
        return {"error": (done.stderr.strip().splitlines() or ["exit code %d" % done.returncode])[-1]}
    return json.loads(done.stdout[done.stdout.index("{"):])


def variants(model, args):
    """{label: (command, environment)} of one model."""
    recipe = os.path.join(ROOT, "recipes", "bench", f"model-{model}.json")
    ours = [args.openmoe, "bench", recipe, "--json", "--steps", str(args.steps), "--warmup", "1"]
    found = {}
    for dtype in ("f32", "bf16"):
        found[f"openmoe {dtype}"] = ours + ["--set", "run.compute_type=" + dtype], {"OMP_NUM_THREADS": str(args.threads)}
    if model == "m":
        for dtype in ("f32", "bf16"):
            found[f"openmoe {dtype}, recomputed FFN"] = (
                ours + ["--set", "run.compute_type=" + dtype, "--set", "parallel.recompute=ffn"],
                {"OMP_NUM_THREADS": str(args.threads)})
        found["openmoe f32, one row of 2048"] = (
            ours + ["--set", "data.sequence_length=2048", "--set", "data.batch_rows=1"],
            {"OMP_NUM_THREADS": str(args.threads)})
    found["openmoe f32, 1 thread"] = ours + ["--set", "run.compute_type=f32"], {"OMP_NUM_THREADS": "1"}
    blas = {kind: glob.glob("/usr/lib/*/openblas-" + kind) for kind in ("openmp", "pthread")}
    for python in args.torch:
        version = subprocess.run([python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True)
        if version.returncode != 0:
            print(f"no PyTorch in {python}: left out", file=sys.stderr)
            continue
        name = "torch " + version.stdout.strip()
        peer = [python, os.path.join(ROOT, "scripts", "bench", "peer_torch.py"), recipe, "--steps", str(args.steps),
                "--threads", str(args.threads)]
        tuned = {**TUNED, "LD_LIBRARY_PATH": blas["openmp"][0]} if blas["openmp"] else TUNED
        plain = {"LD_LIBRARY_PATH": blas["pthread"][0]} if blas["pthread"] else {}
        found[f"{name} f32 as installed"] = peer, plain
        found[f"{name} f32 tuned"] = peer, tuned
        found[f"{name} bf16 tuned"] = peer + ["--dtype", "bf16"], tuned
    return found


def median_of(samples, key):
    values = [s[key] for s in samples if key in s]
    return statistics.median(values) if values else None


def number(value, form):
    return form % value if value is not None else "-"


def report(model, results):
    print(f"\nmodel {model.upper()}")
    print(f"{'':34} {'tokens/s':>9} {'step ms':>9} {'GFLOP/s':>8} {'of peak':>8} {'resident MiB':>13} {'beyond P+G+O':>13}")
    for label, samples in results.items():
        good = [s for s in samples if "error" not in s]
        if not good:
            print(f"{label:34} failed: {samples[0]['error']}")
            continue
        print(f"{label:34} {median_of(good, 'tokens_per_s'):9.0f} {median_of(good, 'step_ms'):9.0f} "
              f"{median_of(good, 'gflops'):8.1f} {number(median_of(good, 'share_of_peak'), '%.3f'):>8} "
              f"{median_of(good, 'peak_rss_mb'):13.0f} {number(median_of(good, 'beyond_them_mb'), '%.0f'):>13}")


def ratio(results, first, second, key):
    """Median over rounds of first[key] / second[key]; None when a side is missing."""
    pairs = [(a[key], b[key]) for a, b in zip(results.get(first, []), results.get(second, [])) if key in a and key in b]
    return statistics.median(a / b for a, b in pairs) if pairs else None


def attention_ratio(samples):
    """Time of attention beside that of the products it must make (six, causal) at the speed of linear layers."""
    found = []
    for sample in samples:
        ops = {op["name"]: op for op in sample.get("ops", [])}
        attention = [ops[name] for name in ("attention_forward", "attention_backward") if name in ops]
        if attention:
            products_ms = sum(op["gflops"] * op["ms"] for op in attention) / ops["linear_forward"]["gflops"]
            found.append(sum(op["ms"] for op in attention) / products_ms)
    return statistics.median(found) if found else None


def report_ratios(results):
    ratios = {}
    peers = [label for label in results if label.startswith("torch")]
    for dtype in ("f32", "bf16"):
        for peer in (p for p in peers if f" {dtype} " in p):
            ratios[f"{dtype} speed against {peer}"] = ratio(results, f"openmoe {dtype}", peer, "tokens_per_s")
            ratios[f"{dtype} memory against {peer}"] = ratio(results, f"openmoe {dtype}", peer, "peak_rss_mb")
            ratios[f"{dtype} memory, recomputed FFN, against {peer}"] = ratio(
                results, f"openmoe {dtype}, recomputed FFN", peer, "peak_rss_mb")
    threads = "openmoe f32", "openmoe f32, 1 thread"
    ratios["2 threads against 1"] = ratio(results, *threads, "tokens_per_s")
    ratios["2 threads against 1, FMA peak"] = ratio(results, *threads, "peak_gflops")
    for dtype in ("f32", "bf16"):
        samples = [s for s in results[f"openmoe {dtype}"] if "parts" in s]
        ratios[f"{dtype}: outside products and attention"] = median_of(samples, "share_outside_products")
        heads = [p["ms"] / p["products_ms"] for s in samples for p in s["parts"] if p["name"] == "head"]
        ratios[f"{dtype}: head and loss against its products"] = statistics.median(heads) if heads else None
    ratios["f32: attention at T = 2048 against its products"] = attention_ratio(results.get("openmoe f32, one row of 2048", []))
    for name, value in ratios.items():
        if value is not None:
            print(f"  {name:62} {value:7.3f}")
    return ratios


def report_ops(results, dtype):
    samples = [s for s in results[f"openmoe {dtype}"] if "ops" in s]
    if not samples:
        return
    print(f"  ops of a step, {dtype} (last round)            ms   share  GFLOP/s  of peak")
    for kind in ("ops", "parts"):
        for op in samples[-1][kind]:
            if op["share"] >= 0.002:
                speed = f"{op['gflops']:8.1f} {op['gflops'] / samples[-1]['peak_gflops']:8.2f}" if op["gflops"] else ""
                print(f"    {op['name']:42} {op['ms']:8.1f} {op['share']:6.1%} {speed}")
        print()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=["m", "v"], default=["m", "v"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="counted steps of each run")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--openmoe", default=os.path.join(ROOT, "build", "release", "openmoe"))
    parser.add_argument("--torch", nargs="*", default=["/usr/bin/python3"], help="interpreters that have torch; none: skip")
    parser.add_argument("--only", default="", help="run variants whose name contains this")
    parser.add_argument("--json", help="file for everything that was measured")
    args = parser.parse_args()
    everything = {}
    for model in args.models:
        chosen = {k: v for k, v in variants(model, args).items() if args.only in k}
        results = {label: [] for label in chosen}
        for turn in range(args.rounds):
            for label, (command, environment) in chosen.items():
                print(f"model {model}, round {turn + 1} of {args.rounds}: {label}", file=sys.stderr)
                results[label].append(run(command, environment))
        report(model, results)
        ratios = {}
        if not args.only:
            ratios = report_ratios(results)
            for dtype in ("f32", "bf16"):
                report_ops(results, dtype)
        everything[model] = {"runs": results, "ratios": ratios}
    if args.json:
        with open(args.json, "w") as file:
            json.dump(everything, file, indent=1)


if __name__ == "__main__":
    main()
