"""generate, evaluate and train --from as a user runs them. Needs nothing but Python.

Usage: commands_test.py OPENMOE SHARDS SOURCE [CASE...]
"""
import glob
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest
import urllib.request

openmoe, shards, source = sys.argv[1:4]
MIXED = "test/recipes/tiny-released.json"
# Ranks, and how they share a model of 4 experts and 2 heads in decoding.
GRIDS = ((2,), (2, "--tp", "2"), (4, "--ep", "2", "--tp", "2"))
SHORT = ["--set", "run.num_steps=4", "--set", "run.validate_every=0", "--set", "data.phases.0.until_step=2"]


def call(*arguments, ranks=1, stdin=""):
    command = [openmoe, *arguments]
    if ranks > 1:
        command = [os.path.join(source, "scripts/mpirun.sh"), "-np", str(ranks), *command]
    return subprocess.run(command, input=stdin.encode(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env=dict(os.environ, OMP_NUM_THREADS="1"))


def run(*arguments, **options):
    done = call(*arguments, **options)
    assert done.returncode == 0, f"openmoe {' '.join(arguments)}\n{done.stdout.decode()}\n{done.stderr.decode()}"
    return done.stdout.decode()


def train(out, *arguments, recipe=MIXED):
    return run("train", os.path.join(source, recipe), "--data", shards, "--out", out, *arguments)


def weights(folder):
    """name -> (shape, bytes) of the exported weights of a run."""
    target = tempfile.mkdtemp(dir=scratch.name) + "/hf"
    run("convert", folder, target)
    with open(target + "/model.safetensors", "rb") as f:
        size = struct.unpack("<Q", f.read(8))[0]
        header, data = json.loads(f.read(size)), f.read()
    return {n: (t["shape"], data[t["data_offsets"][0]:t["data_offsets"][1]]) for n, t in header.items() if n != "__metadata__"}


def floats(raw):
    return struct.unpack(f"<{len(raw) // 4}f", raw)


class Generate(unittest.TestCase):
    def test_cache_batch_and_ranks_do_not_matter(self):
        prompts = ["The first", "int main() {", "Das ist", "a b c d e f"]
        alone = [run("generate", model, "--prompt", p, "--tokens", "16") for p in prompts]
        with open(path("prompts.txt"), "w") as f:
            f.write("\n".join(prompts) + "\n")
        for options in (["--batch", "1"], ["--batch", "4"], ["--batch", "3", "--recompute"]):
            lines = run("generate", model, "--prompts", path("prompts.txt"), "--tokens", "16", *options).splitlines()
            self.assertEqual([json.loads(line)["text"] + "\n" for line in lines], alone, options)
        for ranks, *options in GRIDS:
            self.assertEqual(run("generate", model, "--prompt", prompts[0], "--tokens", "16", *options, ranks=ranks), alone[0], options)
        self.assertEqual(run("generate", model, "--tokens", "16", stdin=prompts[0]), alone[0])

    def test_grids_of_a_file_of_prompts_and_of_a_dense_model(self):
        with open(path("many.txt"), "w") as f:
            f.write("The first\nint main() {\nDas ist\na b c d e f\nWater\n")
        sample = ["--prompts", path("many.txt"), "--tokens", "12", "--batch", "3", "--temperature", "1", "--dtype", "bf16"]
        alone = run("generate", model, *sample)
        for ranks, *options in GRIDS:
            self.assertEqual(run("generate", model, *sample, *options, ranks=ranks), alone, options)
        dense = path("dense-for-tp")
        train(dense, *SHORT, "--set", "model.moe_interval=0", "--set", "model.num_heads=3")
        alone = run("generate", dense, *sample)
        for ranks, *options in ((2,), (3, "--tp", "3")):
            self.assertEqual(run("generate", dense, *sample, *options, ranks=ranks), alone, options)

    def test_grids_that_cannot_be_are_refused(self):
        for ranks, options, expected in (
                (2, ["--ep", "2", "--tp", "2"], "2 ranks as --ep 2 --tp 2: their product must be the number of ranks"),
                (3, ["--ep", "3"], "ep divide the 4 experts"),
                (2, ["--ep", "1", "--tp", "1"], "allowed: --ep 1 --tp 2, or --ep 2 --tp 1"),
                (4, ["--tp", "4"], "tp be at most 2 (2 heads"),
                (1, ["--tp", "2"], "1 rank as --ep 1 --tp 2")):
            done = call("generate", model, "--prompt", "x", *options, ranks=ranks)
            self.assertEqual(done.returncode, 2, (options, done.stderr))
            self.assertEqual(done.stderr.decode().count(expected), 1, (options, done.stderr))

    def test_sampling_is_repeatable_and_the_seed_matters(self):
        sample = ["generate", model, "--prompt", "The first", "--tokens", "16", "--temperature", "1", "--top-k", "200",
                  "--top-p", "0.95", "--repetition-penalty", "1.2"]
        self.assertEqual(run(*sample), run(*sample))
        self.assertNotEqual(run(*sample), run(*sample, "--seed", "2"))

    def test_stops(self):
        text = run("generate", model, "--prompt", "The first", "--tokens", "16")[:-1]
        stop = text[len(text) // 2:len(text) // 2 + 2]
        self.assertEqual(run("generate", model, "--prompt", "The first", "--tokens", "16", "--stop", stop)[:-1],
                         text[:text.index(stop)])
        with open(path("one.jsonl"), "w") as f:
            f.write('{"prompt": "The first"}\n')
        tokens = json.loads(run("generate", model, "--prompts", path("one.jsonl"), "--tokens", "16"))["tokens"]
        stopped = json.loads(run("generate", model, "--prompts", path("one.jsonl"), "--tokens", "16", "--stop-tokens",
                                 f"{tokens[3]},{tokens[4]}"))
        self.assertEqual(stopped["finish"], "stop")
        self.assertEqual(stopped["tokens"], tokens[:len(stopped["tokens"])])
        self.assertLessEqual(len(stopped["tokens"]), 3)

    def test_chat_and_ul2(self):
        self.assertTrue(run("generate", model, "--chat", "--system", "Be brief.", "--prompt", "Hello", "--tokens", "5"))
        self.assertEqual(run("generate", model, "--chat", "--tokens", "3", stdin="one\ntwo\n").count("\n"), 2)
        nlu = run("generate", model, "--ul2", "nlu", "--prompt", "The <extra_id_0> one", "--tokens", "8")
        self.assertNotEqual(nlu, run("generate", model, "--prompt", "The <extra_id_0> one", "--tokens", "8"))
        refused = call("generate", model, "--prompt", "a <extra_id_500> b")
        self.assertEqual(refused.returncode, 2)
        self.assertIn(b"<extra_id_99>", refused.stderr)

    def test_wrong_input_is_refused(self):
        for arguments, expected in ((["generate", path("nowhere")], b"holds no checkpoint"),
                                    (["generate", model, "--prompt", "word " * 200], b"positions"),
                                    (["generate", model, "--prompt", "x", "--tokenizer", path("no.model")], b"no.model"),
                                    (["generate", model, "--prompt", "x", "--top-p", "0"], b"--top-p"),
                                    (["evaluate", model], b"--tasks"),
                                    (["evaluate", model, "--tasks", path("none.json")], b"none.json")):
            done = call(*arguments)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertIn(expected, done.stderr)


class Serve(unittest.TestCase):
    def test_ranks_that_share_matrices_answer_as_one(self):
        text = run("generate", model, "--prompt", "The first", "--tokens", "12")[:-1]
        ranks = subprocess.Popen([os.path.join(source, "scripts/mpirun.sh"), "-np", "2", openmoe, "serve", model, "--tp", "2",
                                  "--port", "0"], stdout=subprocess.PIPE, env=dict(os.environ, OMP_NUM_THREADS="1"))
        try:
            url = ranks.stdout.readline().decode().split()[-1]
            body = json.dumps({"prompt": "The first", "max_tokens": 12, "temperature": 0}).encode()
            request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=60) as answer:
                self.assertEqual(json.load(answer)["choices"][0]["text"], text)
        finally:
            ranks.terminate()
            ranks.communicate(timeout=60)


EXAMPLES = {
    "anli_r1": {"premise": "It rains.", "hypothesis": "It is wet.", "label": 0},
    "hellaswag": {"activity_label": "Cooking", "ctx_a": "A man [header] cooks.", "ctx_b": "he", "label": "1",
                  "endings": ["sleeps [title] Then", "stirs.", "flies.", "rains."]},
    "winogrande": {"sentence": "The cup fell off the table because _ was wet.", "option1": "the cup", "option2": "the table",
                   "answer": "2"},
    "piqa": {"goal": "boil water", "sol1": "use a kettle", "sol2": "use a fork", "label": 0},
    "arc_easy": {"question": "What is wet?", "choices": {"text": ["water", "sand"], "label": ["A", "B"]}, "answerKey": "A"},
    "boolq": {"passage": "Water is wet.", "question": "is water wet", "label": True},
    "truthfulqa": {"question": "Is it?", "mc1_targets": {"choices": ["Yes.", "No."], "labels": [1, 0]},
                   "mc2_targets": {"choices": ["Yes.", "No.", "Indeed."], "labels": [1, 0, 1]}},
    "openbookqa": {"question_stem": "The sun is", "choices": {"text": ["hot", "cold"], "label": ["A", "B"]}, "answerKey": "B"},
    "rte": {"sentence1": "It rains.", "sentence2": "It is wet.", "label": 1},
    "wic": {"word": "run", "sentence1": "He runs.", "sentence2": "A run.", "start1": 3, "end1": 7, "label": 0},
    "triviaqa": {"question": "Who wrote Hamlet?", "answer": {"aliases": ["Shakespeare", "William Shakespeare"]}},
    "humaneval": {"prompt": "def one():\n    return 1\n#", "test": "def check(f):\n    assert f() == 1\n", "entry_point": "one"},
    "wmt16_ro_en": {"translation": {"en": "Good day.", "ro": "Buna ziua."}}}
EXAMPLES["anli_r2"] = EXAMPLES["anli_r3"] = EXAMPLES["anli_r1"]
EXAMPLES["arc_challenge"] = EXAMPLES["arc_easy"]


class Evaluate(unittest.TestCase):
    def test_every_template_takes_its_data(self):
        data = path("tasks")
        os.makedirs(data + "/bigbench_lite")
        for name, example in EXAMPLES.items():
            with open(f"{data}/{name}.jsonl", "w") as f:
                f.write(json.dumps(example) + "\n")
        files = sorted(glob.glob(os.path.join(source, "recipes/tasks/*.json")))
        self.assertEqual(len(files), 19)
        with open(os.path.join(source, "recipes/tasks/bigbench_lite.json")) as f:
            subtasks = json.load(f)["subtasks"]
        for i, name in enumerate(subtasks):
            ranked = {"inputs": "2 + 2 =", "targets": ["4"], "multiple_choice_targets": ["3", "4"], "multiple_choice_scores": [0, 1]}
            free = {"inputs": "2 + 2 =", "targets": ["4"], "multiple_choice_targets": [], "multiple_choice_scores": []}
            with open(f"{data}/bigbench_lite/{name}.jsonl", "w") as f:
                for _ in range(4):
                    f.write(json.dumps(free if i % 2 else ranked) + "\n")
        run("evaluate", model, "--tasks", *files, "--task-data", data, "--max-length", "512", "--run-checkers", "--limit", "1",
            "--samples", path("samples.jsonl"), "--out", path("report.json"))
        with open(path("report.json")) as f:
            rows = {row["task"]: row for row in json.load(f)["tasks"]}
        self.assertEqual(len(rows), 18 + 24)
        self.assertIn("probability_of_true", rows["truthfulqa_mc2"])
        self.assertEqual({"exact_match", "f1"} & set(rows["triviaqa"]), {"exact_match", "f1"})
        self.assertIn("pass_at_1", rows["humaneval"])
        self.assertIn("exact_match", rows["bigbench_lite/" + subtasks[1]])
        self.assertIn("accuracy", rows["bigbench_lite/" + subtasks[0]])
        with open(path("samples.jsonl")) as f:
            samples = {s["task"]: s for s in map(json.loads, f)}
        self.assertEqual(samples["hellaswag"]["prompt"], "Cooking: A man cooks. He")
        self.assertEqual(samples["hellaswag"]["choices"][0], "sleeps. Then")
        self.assertEqual(samples["winogrande"]["choices"], [" was wet."] * 2)
        self.assertIn("'runs'", samples["wic"]["prompt"])
        self.assertEqual(samples["bigbench_lite/" + subtasks[0]]["prompt"].count("2 + 2 = 4\n"), 3)

    def test_log_likelihoods_are_the_same_on_any_grid(self):
        with open(path("grid.jsonl"), "w") as f:
            for question, choices in (("Water is", ["wet", "made of pure gold"]), ("int main() {", ["return 0; }", "once"])):
                f.write(json.dumps({"question": question, "choices": choices, "answer": 0}) + "\n")
        with open(path("grid.json"), "w") as f:
            json.dump({"name": "grid", "data": "grid.jsonl", "prompt": "{{question}}", "choices_from": "choices",
                       "answer": "answer"}, f)
        def samples(*options, ranks=1):
            run("evaluate", model, "--tasks", path("grid.json"), "--task-data", scratch.name, "--samples", path("grid.out"),
                *options, ranks=ranks)
            with open(path("grid.out")) as f:
                return f.read()
        alone = samples()
        self.assertEqual(alone.count("log_likelihoods"), 2)
        for ranks, *options in GRIDS:
            self.assertEqual(samples(*options, ranks=ranks), alone, options)

    def test_the_checker_of_humaneval(self):
        checker = [sys.executable, os.path.join(source, "scripts/tasks/check_humaneval.py")]
        example = {"prompt": "def one():\n", "test": "def check(f):\n    assert f() == 1\n", "entry_point": "one"}
        for completion, code in (("    return 1\n", 0), ("    return 2\n", 1), ("    while True: pass\n", 1), ("  !", 1)):
            if "while" in completion:
                continue  # ten seconds
            done = subprocess.run(checker, input=json.dumps({"example": example, "completion": completion}).encode())
            self.assertEqual(done.returncode, code, completion)

    def test_losses_are_those_of_validation_on_any_grid(self):
        def losses(*options, ranks=1):
            run("evaluate", model, "--data", shards, "--sources", "arxiv", "the_stack", "--rows", "6", "--out",
                path("losses.json"), *options, ranks=ranks)
            with open(path("losses.json")) as f:
                return json.load(f)["losses"]
        alone = losses()
        self.assertEqual([row["source"] for row in alone], ["arxiv", "the_stack"])
        for row in alone:
            self.assertAlmostEqual(row["bits_per_byte"], row["loss"] * row["loss_tokens"] / 0.6931471805599453 / row["bytes"],
                                   places=6)
            self.assertGreater(row["bytes"], 2 * row["loss_tokens"])
        for ranks, *options in ((2, "--ep", "2"), (2, "--tp", "2"), (4, "--ep", "2", "--tp", "2")):
            for x, y in zip(losses(*options, ranks=ranks), alone):
                self.assertAlmostEqual(x["loss"], y["loss"], places=5)
                self.assertEqual((x["loss_tokens"], x["bytes"]), (y["loss_tokens"], y["bytes"]))


class Start(unittest.TestCase):
    def test_sft_from_a_run_fresh_and_continued(self):
        run("prepare", "--chat", "--tokenizer", os.path.join(source, "data/sample/unigram-8000.model"), "--input",
            os.path.join(source, "data/sample/conversations.jsonl"), "--validation-fraction", "0.1", "--out", path("chat"))
        with open(os.path.join(source, MIXED)) as f:
            tiny = json.load(f)
        tiny.update(name="tiny-chat", optimizer={"peak_learning_rate": 0.001, "warmup_steps": 10**9, "min_dim_to_factor": 16})
        tiny["data"]["phases"] = [{"objective": "sft", "packing": "packed", "mixture": "quickstart-chat"}]
        os.makedirs(path("recipes"), exist_ok=True)
        os.symlink(os.path.join(source, "recipes/mixtures"), path("recipes/mixtures"))
        recipe = path("recipes/chat.json")
        for kind, steps, expected in (("fresh", 3, [0, 1, 2]), ("continued", 6, [4, 5])):
            tiny.update(start={"optimizer": kind}, run={"num_steps": steps})
            with open(recipe, "w") as f:
                json.dump(tiny, f)
            run("train", recipe, "--data", path("chat"), "--out", path(kind), "--from", model)
            with open(path(kind, "metrics.jsonl")) as f:
                rows = [json.loads(line) for line in f]
            self.assertEqual([row["step"] for row in rows], expected)
            # The first checkpoint holds the weights that were taken: a run that dies before any other goes on from them.
            shutil.rmtree(path(kind, "checkpoints", f"step-{steps:08}"))
            run("train", recipe, "--data", path("chat"), "--out", path(kind), "--resume")
            with open(path(kind, "metrics.jsonl")) as f:
                self.assertEqual([json.loads(line)["loss"] for line in f], [row["loss"] for row in rows])
            self.assertTrue(all(row["learning_rate"] == 0.001 and 0 < row["loss_tokens"] < row["real_tokens"] for row in rows))
        run("convert", model, path("hf"))
        run("convert", path("hf"), path("imported"))
        refused = call("train", recipe, "--data", path("chat"), "--out", path("no"), "--from", path("imported"))
        self.assertEqual(refused.returncode, 2)
        self.assertIn(b"start.optimizer=fresh", refused.stderr)

    def test_upcycling_and_frozen_routers(self):
        dense, moe = path("dense"), path("moe")
        train(dense, *SHORT, "--set", "model.moe_interval=0")
        up = ["--from", dense, "--set", "start.upcycle=true", *SHORT, "--set",
              "optimizer.peak_learning_rate=1e-30", "--set", "optimizer.router_frozen_steps=100"]
        train(moe, *up)
        before, after = weights(dense), weights(moe)
        gate = floats(before["model.layers.1.mlp.gate_proj.weight"][1])
        (fg, d), (e, d2, fg2) = before["model.layers.1.mlp.gate_proj.weight"][0], after["model.layers.1.mlp.experts.wi_gate"][0]
        self.assertEqual((e, d2, fg2), (4, d, fg))
        experts = floats(after["model.layers.1.mlp.experts.wi_gate"][1])
        transposed = [gate[j * d + i] for i in range(d) for j in range(fg)]
        for index in range(e):
            part = experts[index * d * fg:(index + 1) * d * fg]
            self.assertLess(max(abs(a - b) for a, b in zip(part, transposed)), 1e-6)
        self.assertEqual(before["model.layers.1.mlp.down_proj.weight"], after["model.layers.1.extra_mlp.down_proj.weight"])
        self.assertEqual(before["model.layers.0.mlp.up_proj.weight"][1][:400], after["model.layers.0.mlp.up_proj.weight"][1][:400])
        train(path("noisy"), *up, "--set", "start.expert_noise=0.1")
        noisy = floats(weights(path("noisy"))["model.layers.1.mlp.experts.wi_gate"][1])
        rms = (sum(v * v for v in gate) / len(gate)) ** 0.5
        spread = (sum((a - b) ** 2 for a, b in zip(noisy, experts)) / len(experts)) ** 0.5
        self.assertAlmostEqual(spread / rms, 0.1, delta=0.01)
        self.assertNotEqual(noisy[:d * fg], noisy[d * fg:2 * d * fg])

        # The router stays while it is frozen and moves afterwards.
        name = "model.layers.1.mlp.gate_weight"
        moved, kept = path("moved"), path("kept")
        for out, steps in ((moved, "2"), (kept, "100")):
            train(out, *SHORT, "--from", model, "--set", f"optimizer.router_frozen_steps={steps}")
        start = weights(model)[name]
        self.assertEqual(weights(kept)[name], start)
        self.assertNotEqual(weights(moved)[name], start)
        refused = call("train", os.path.join(source, MIXED), "--data", shards, "--out", path("x"), "--from", dense)
        self.assertEqual(refused.returncode, 2)
        self.assertIn(b"moe_interval", refused.stderr)


scratch = tempfile.TemporaryDirectory(prefix="openmoe-commands-")
path = lambda *parts: os.path.join(scratch.name, *parts)  # noqa: E731
model = path("model")
train(model, *SHORT)
names = sys.argv[4:]
loader = unittest.defaultTestLoader
suite = loader.loadTestsFromNames(names, sys.modules[__name__]) if names else loader.loadTestsFromModule(sys.modules[__name__])
result = unittest.TextTestRunner(verbosity=2).run(suite)
sys.exit(0 if result.wasSuccessful() else 1)
