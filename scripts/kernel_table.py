#!/usr/bin/env python3
"""The table of cuda/KERNELS.md: hot kernels, what they move, what ptxas made of them, what a roofline expects.

Reads the statements above the kernels (`// hot`, `// bytes`, `// flops`: test/cuda/kernel_resources.h defines them) and the reports of ptxas
that a build with nvcc keeps beside its objects. Nothing is measured.
Usage: scripts/kernel_table.py [BUILD]            print the table; BUILD is build/cuda unless given
       scripts/kernel_table.py [BUILD] --write    put it into cuda/KERNELS.md
       scripts/kernel_table.py [BUILD] --check    exit 1 if cuda/KERNELS.md holds another; 77 if that cannot be told here
"""
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "cuda" / "KERNELS.md"
MARK = "<!-- From here on: scripts/kernel_table.py -->\n"
SKIPPED = 77

# H100 SXM, NVIDIA's data sheet, dense.
BANDWIDTH = 3.35e12
PEAK = {"tensor cores": 989e12, "f32": 67e12}
# Bytes that must be on their way at once on a multiprocessor for the whole bandwidth: bandwidth x latency / multiprocessors.
IN_FLIGHT = BANDWIDTH * 600e-9 / 132
# CUDA programming guide, technical specifications per compute capability.
SHARED_BYTES = {"sm_80": 164 << 10, "sm_90": 228 << 10}
ARCHS = ("sm_80", "sm_90")

KERNEL = re.compile(
    r"((?:// (?:hot|bytes|flops)[^\n]*\n)+)(?:template[^\n]*\n)?__global__ void __launch_bounds__\((\w+)(?:, \d+)?\)\s+(\w+)\(")
HOT = re.compile(r"// hot(?: <(\w+)>)?: at least (\d+) blocks? per SM(?:, with (\d+) bytes of dynamic shared memory)?")
TRAFFIC = re.compile(r"// bytes: (\d+) of (\d+) per element of (\w+)(?: \(([^)]*)\))?(?:, (\d+) in flight per thread)?"
                     r"(?:, (\d+) more from L2)?\n")
FLOPS = re.compile(r"// flops: (\d+) of (\d+) per element of \w+ \((tensor cores|f32)")


def parse_ptxas(text):
    """Reports by instance and architecture: {"mangled", "arch", "registers", "spilled", "shared"}."""
    reports = []
    for line in text.splitlines():
        entry = re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line)
        if entry:
            reports.append({"mangled": entry[1], "arch": entry[2], "registers": 0, "spilled": 0, "shared": 0})
        if not reports:
            continue
        if match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            reports[-1]["spilled"] = int(match[1]) + int(match[2])
        if match := re.search(r"Used (\d+) registers", line):
            reports[-1]["registers"] = int(match[1])
        if match := re.search(r"(\d+) bytes smem", line):
            reports[-1]["shared"] = int(match[1])
    return reports


def blocks_per_sm(report, threads, dynamic):
    warps = threads // 32
    per_warp = (report["registers"] * 32 + 255) // 256 * 256
    by_registers = 16384 // per_warp * 4 // warps
    by_shared = SHARED_BYTES[report["arch"]] // (report["shared"] + dynamic + 1024)
    return min(by_registers, 64 // warps, by_shared, 32)


def is_instance(mangled, name, last_argument):
    at = mangled.find(f"{len(name)}{name}")
    return at >= 0 and (last_argument is None or mangled.find(f"Li{last_argument}EE", at) >= 0)


def share_of_peak(moved, needed, in_flight, done=0, useful=0, unit="f32"):
    """What the task needs at least, at the peaks, over what the kernel does, at what it can reach of them; and which binds it.
    in_flight: bytes on their way on a multiprocessor, None for a kernel that is not bound by memory."""
    reach = 1 if in_flight is None else min(1, in_flight / IN_FLIGHT)
    memory, compute = moved / BANDWIDTH / reach, done / PEAK[unit]
    least = max(needed / BANDWIDTH, useful / PEAK[unit])
    return least / max(memory, compute), unit if compute > memory else "memory" if reach == 1 else "latency"


def row(source, statements, hot, traffic, threads, name, reports):
    last_argument, dynamic = hot[1], int(hot[3] or 0)
    cells = {}
    for arch in ARCHS:
        instances = [r for r in reports if r["arch"] == arch and is_instance(r["mangled"], name, last_argument)]
        if not instances:
            sys.exit(f"{name}: no report of ptxas for {arch}; build openmoe_cuda for sm_80 and sm_90")
        blocks = min(blocks_per_sm(r, threads, dynamic) for r in instances)
        cells[arch] = (max(r["registers"] for r in instances), blocks, blocks * threads // 32, max(r["shared"] for r in instances))
    moved, needed, element, types, per_thread, cached = traffic.groups()
    flops = FLOPS.search(statements)
    arithmetic = (int(flops[1]), int(flops[2]), flops[3]) if flops else ()
    if not flops and not per_thread:
        sys.exit(f"{name} states neither flops nor bytes in flight per thread")
    in_flight = cells["sm_90"][2] * 32 * int(per_thread) if per_thread else None
    share, bound = share_of_peak(int(moved), int(needed), in_flight, *arithmetic)
    both = ["/".join(str(cells[arch][i]) for arch in ARCHS) for i in range(3)]
    shown = f"`{name}`" + (f" `<{last_argument}>`" if last_argument else "")
    per = f"{element} ({types})" if types else element
    return (f"| {shown} | {source} | {per} | {moved} / {needed} | {cached or '-'} | {in_flight or '-'} | "
            f"{f'{flops[1]} / {flops[2]}' if flops else '-'} | {both[0]} | {cells['sm_90'][3]} | {dynamic or '-'} | {hot[2]} | "
            f"{both[1]} | {both[2]} | {100 * share:.0f} | {bound} |")


def constants_of(sources):
    constants = {}
    for path in sources:
        for match in re.finditer(r"inline constexpr int (k\w+) = (\d+);", path.read_text()):
            constants[match[1]] = int(match[2])
    return constants


def compiler_of(build):
    """Which nvcc the build was configured with, or None."""
    for path in sorted((build / "CMakeFiles").glob("*/CMakeCUDACompiler.cmake")):
        if match := re.search(r'CMAKE_CUDA_COMPILER_VERSION "(\S+)"', path.read_text()):
            return f"nvcc {match[1]}"
    return None


def table(build, compiler):
    constants = constants_of(sorted((ROOT / "cuda").glob("*.*h")))
    objects = build / "cuda" / "CMakeFiles" / "openmoe_cuda.dir"
    rows, others = [], set()
    for path in sorted((ROOT / "cuda").glob("*.cu")):
        text, log = path.read_text(), objects / (path.name + ".o.ptxas")
        if not log.exists():
            sys.exit(f"{log} is not there: build openmoe_cuda first (cmake --preset cuda; ninja -C build/cuda openmoe_cuda)")
        reports = parse_ptxas(log.read_text())
        known = constants | {m[1]: int(m[2]) for m in re.finditer(r"constexpr int (k\w+) = (\d+);", text)}
        names = set(re.findall(r"__global__ void (?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(", text))
        for match in KERNEL.finditer(text):
            statements, bounds, name = match.groups()
            traffic = TRAFFIC.search(statements)
            if not traffic:
                sys.exit(f"{path.name}: {name} states no bytes, or not in the form of test/cuda/kernel_resources.h")
            rows += [row(path.name, statements, hot, traffic, known[bounds], name, reports) for hot in HOT.finditer(statements)]
            names.discard(name)
        others |= names
    return "\n".join([
        f"Compiled by {compiler} for sm_80 and sm_90 (`80/90` below; registers are those of the hungriest instance).", "",
        "| kernel | file | element | bytes moved / needed | more from L2 | in flight per SM | FLOPs done / needed | registers 80/90 | static shared | "
        "dynamic shared | blocks per SM stated | compiled 80/90 | warps per SM 80/90 | expected % of peak, H100 | bound by |",
        "|" + "---|" * 15, *rows, "",
        "Not hot, a few blocks or a few bytes each: " + ", ".join(f"`{name}`" for name in sorted(others)) + ".", ""])


def main(arguments):
    options = [a for a in arguments if a.startswith("--")]
    folders = [a for a in arguments if not a.startswith("--")]
    if len(options) > 1 or len(folders) > 1 or any(o not in ("--write", "--check") for o in options):
        sys.exit(__doc__)
    build = Path(folders[0]) if folders else ROOT / "build" / "cuda"
    compiler = compiler_of(build)
    if compiler is None:
        print(f"{build} was not configured with nvcc; nothing to compare")
        sys.exit(SKIPPED)
    page = PAGE.read_text()
    head, _, committed = page.partition(MARK)
    if options == ["--check"] and f"Compiled by {compiler} for" not in committed:
        print(f"cuda/KERNELS.md was made with another compiler than {compiler}; ptxas may differ")
        sys.exit(SKIPPED)
    fresh = table(build, compiler)
    if options == ["--write"]:
        PAGE.write_text(head + MARK + fresh)
    elif options == ["--check"]:
        if committed != fresh:
            sys.exit("cuda/KERNELS.md is not what scripts/kernel_table.py makes of this build; "
                     "run scripts/kernel_table.py BUILD --write and read the difference")
    else:
        print(fresh, end="")


if __name__ == "__main__":
    main(sys.argv[1:])
