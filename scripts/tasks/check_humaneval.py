"""Checker of recipes/tasks/humaneval.json: runs a completion with the problem's tests; exit code 0 when all pass.

It executes what a model wrote, in a process of its own with a time limit and a memory limit and nothing else: run it where
that can do no harm.
"""
import json
import resource
import subprocess
import sys

SECONDS = 10
MEMORY_BYTES = 2 << 30


def limit():
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))


request = json.load(sys.stdin)
example = request["example"]
program = f"{example['prompt']}{request['completion']}\n{example['test']}\ncheck({example['entry_point']})\n"
try:
    done = subprocess.run([sys.executable, "-I", "-c", program], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, timeout=SECONDS, preexec_fn=limit)
    sys.exit(0 if done.returncode == 0 else 1)
except subprocess.TimeoutExpired:
    sys.exit(1)
