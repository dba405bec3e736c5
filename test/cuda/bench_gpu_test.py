#!/usr/bin/env python3
"""scripts/bench_gpu.sh on emulated devices: every number of its report that follows from others does, even routing is even, and
what it does not understand it refuses. The times themselves mean nothing here.
Usage: test/cuda/bench_gpu_test.py OPENMOE_EMULATED"""
import json
import os
import subprocess
import sys
import tempfile
import unittest

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
SCRIPT = os.path.join(ROOT, "scripts", "bench_gpu.sh")
PEAKS = {"f32": 2e9, "bf16": 4e9, "memory": 1e9}
# Copies of the even choice, and the layout of rows around an exchange, which a rehearsal does not play.
UNPLANNED = {"copy", "copy_rows"}
RECIPE = {
    "name": "tiny",
    "model": {"vocab_size": 64, "num_layers": 2, "d_model": 16, "num_heads": 2, "head_dim": 8, "ffn_dim": 24, "num_experts": 4,
              "moe_interval": 2},
    "routing": {"group_tokens": 16, "capacity_counts": "dropless"},
    "data": {"sequence_length": 16, "batch_rows": 4,
             "phases": [{"objective": "causal_lm", "packing": "packed", "mixture": "none"}]},
    "run": {"num_steps": 10},
}


def run(*arguments):
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return done.returncode, done.stdout + done.stderr


class BenchGpu(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.recipe, cls.out = os.path.join(cls.folder.name, "tiny.json"), os.path.join(cls.folder.name, "report.json")
        with open(cls.recipe, "w") as file:
            json.dump(RECIPE, file)
        options = [f"--peak-{name}={value}" for name, value in PEAKS.items()]
        cls.command = ["-n", "2", "-b", OPENMOE, "-o", cls.out, cls.recipe, cls.recipe, "--", "--ep", "2", "--steps", "2", "--warmup",
                       "1", "--exchange-least", "4096", "--exchange-most", "65536", "--exchange-calls", "2", *options]
        code, text = run(*cls.command)
        assert code == 0, text
        with open(cls.out) as file:
            cls.report = json.load(file)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_machine(self):
        machine = self.report["machine"]
        self.assertEqual(machine["device"], "cuda")
        self.assertEqual((machine["ranks"], machine["ranks_per_host"]), (2, 2))
        self.assertEqual([device["rank"] for device in machine["devices"]], [0, 1])
        for device in machine["devices"]:
            self.assertEqual(device["architecture"], "sm_90")
            self.assertGreater(device["memory_bytes"], 0)
        for library in ("driver", "runtime", "cuBLASLt", "NCCL", "openmoe"):
            self.assertRegex(machine["versions"][library], r"^\d+\.\d+")
        self.assertTrue(machine["is_emulated"])
        self.assertIn("say nothing", machine["note"])
        self.assertEqual({name: self.report["peaks"][name] for name in PEAKS}, PEAKS)
        self.assertEqual(len(self.report["command"]), 2)

    def test_exchange(self):
        exchange = self.report["all_to_all"]
        self.assertEqual(exchange["ranks"], 2)
        self.assertEqual([size["bytes"] for size in exchange["sizes"]], [4096, 16384, 65536])
        for size in exchange["sizes"]:
            self.assertGreater(size["seconds"], 0)
            self.assertAlmostEqual(size["algbw"] * size["seconds"] / size["bytes"], 1)
            self.assertAlmostEqual(size["busbw"] / size["algbw"], 1 / 2)

    def test_steps(self):
        self.assertEqual(len(self.report["recipes"]), 2)
        for recipe in self.report["recipes"]:
            self.assertEqual(recipe["grid"], {"dp": 1, "ep": 2, "tp": 1})
            self.assertEqual(recipe["positions_per_step"], 64)
            self.assertIn("3 x the forward", recipe["flop_formula"])
            steps = recipe["steps"]
            for routing in ("real_routing", "even_routing"):
                series = steps[routing]
                self.assertEqual(len(series["seconds_of_each"]), 2)
                self.assertAlmostEqual(series["tokens_per_s"] * series["seconds"] / 64, 1)
                self.assertAlmostEqual(series["mfu"] * series["seconds"] * 2 * PEAKS["f32"] / series["flops"], 1)
                self.assertEqual(series["kept_share"], 1)  # dropless
            self.assertAlmostEqual(steps["real_over_even_seconds"] * steps["even_routing"]["seconds"] / steps["real_routing"]["seconds"],
                                   1)
            # Random routers do not choose evenly; forced ones do, exactly.
            self.assertGreater(steps["real_routing"]["largest_over_mean_load"], 1)
            self.assertEqual(steps["even_routing"]["largest_over_mean_load"], 1)
            # Nothing is dropped, so both kinds of steps have the same arithmetic: 6 FLOPs per weight that a position meets, and
            # the pairs of attention.
            self.assertEqual(steps["real_routing"]["flops"], steps["even_routing"]["flops"])

    def test_ops(self):
        for recipe in self.report["recipes"]:
            ops = {row["op"]: row for row in recipe["ops"]}
            unplanned = {op for op, row in ops.items() if row["roofline_seconds"] is None}
            self.assertLessEqual(unplanned, UNPLANNED)
            for op, row in ops.items():
                self.assertGreater(row["calls"], 0, op)
                if op in unplanned:
                    continue
                least = max(row["flops"] / PEAKS["f32"], row["bytes"] / PEAKS["memory"])
                most = row["flops"] / PEAKS["f32"] + row["bytes"] / PEAKS["memory"]
                self.assertGreaterEqual(row["roofline_seconds"], least * (1 - 1e-9), op)
                self.assertLessEqual(row["roofline_seconds"], most * (1 + 1e-9), op)
                self.assertAlmostEqual(row["percent_of_roofline"] * row["seconds"] / row["roofline_seconds"], 100, msg=op)
                bound = "arithmetic" if row["flops"] / PEAKS["f32"] > row["bytes"] / PEAKS["memory"] else "memory"
                self.assertEqual(row["bound_by"], bound, op)
            # By hand: a norm reads and writes the 32 positions of a rank, 16 f32 each.
            norms = ops["rms_norm_forward"]
            self.assertEqual(norms["bytes"], norms["calls"] * 2 * 32 * 16 * 4)
            # 2 x 32 rows of a rank by 16 x 48 weights of the gate (two halves), 16 x 24 up and 24 x 16 down, in any number of calls.
            self.assertEqual(ops["grouped_matmul_forward"]["flops"], 2 * 64 * 16 * (48 + 24 + 24))
            total = sum(row["seconds"] for row in ops.values())
            self.assertAlmostEqual((recipe["timed_step_seconds"] - recipe["outside_ops_seconds"]) / total, 1)

    def test_refusals(self):
        start = ["-n", "1", "-b", OPENMOE, "-o", self.out + ".refused"]
        for arguments, said in (
                ([*start, self.recipe], "--peak-f32"),  # of an emulated device nobody knows the peaks
                ([*start, self.recipe, "--", "--peak-f32", "0"], "--peak-f32"),
                ([*start, self.recipe, "--", "--steps", "0"], "--steps"),
                ([*start, self.recipe, "--", "--collectives", "pigeons"], "pigeons"),
                ([*start, self.recipe, "--", "--rows", "0"], "--rows"),
                ([*start, self.recipe, "--steps", "1"], "stand before the recipes"),
                ([*start, self.recipe + ".gone"], "no recipe"),
                (["-n", "none", *start[2:], self.recipe], "allowed: a whole number"),
                (["-n", "1", "-b", "/gone", self.recipe], "is not there"),
                (["-x", self.recipe], "Usage"),
        ):
            with self.subTest(arguments=arguments[6:]):
                code, text = run(*arguments)
                self.assertEqual(code, 2, text)
                self.assertIn(said, text)
                self.assertFalse(os.path.exists(self.out + ".refused"))

    def test_rows_and_cpu(self):
        """The same command on the CPU, which measures its own peaks, with other rows, micro-batches and no exchange."""
        code, text = run("-n", "1", "-b", OPENMOE, "-o", self.out + ".cpu", self.recipe, "--", "--device", "cpu", "--rows", "2",
                         "--steps", "1", "--exchange-most", "0", "--set", "parallel.micro_batch_rows=1")
        self.assertEqual(code, 0, text)
        with open(self.out + ".cpu") as file:
            report = json.load(file)
        self.assertEqual(report["machine"]["device"], "cpu")
        self.assertFalse(report["machine"]["is_emulated"])
        self.assertEqual(report["peaks"]["source"], "measured")
        self.assertEqual(report["all_to_all"]["sizes"], [])
        self.assertEqual(report["recipes"][0]["positions_per_step"], 32)
        self.assertEqual(report["recipes"][0]["positions_per_micro_batch_and_rank"], 16)
        self.assertGreater(report["recipes"][0]["steps"]["real_routing"]["mfu"], 0)
        self.assertLessEqual({row["op"] for row in report["recipes"][0]["ops"] if row["bytes"] is None}, UNPLANNED)


if __name__ == "__main__":
    OPENMOE = os.path.abspath(sys.argv.pop(1))
    unittest.main()
