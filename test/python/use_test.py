"""What comes out of a model, against the real libraries: openmoe evaluate beside sacrebleu and lm-evaluation-harness,
openmoe serve beside the openai client.

Usage: use_test.py OPENMOE SHARDS SOURCE CASE...      CASE: bleu, client, harness
exit code 77: nothing could be tested, and why
"""
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import unittest

SKIPPED = 77
NEEDS = {"bleu": ["sacrebleu"], "client": ["openai"], "harness": ["lm_eval", "datasets", "requests"]}
LENGTH = 64


def environment():
    return dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")


class Model:
    """A tiny model with the sample's tokenizer, trained for a few steps once for all cases."""
    folder = None

    @classmethod
    def make(cls, openmoe, shards, source):
        cls.openmoe, cls.source = openmoe, source
        cls.scratch = tempfile.TemporaryDirectory(prefix="openmoe-use-")
        cls.folder = os.path.join(cls.scratch.name, "run")
        cls.run("train", os.path.join(source, "test/recipes/tiny-released.json"), "--data", shards, "--out", cls.folder,
                "--set", "run.num_steps=6", "--set", "run.validate_every=0", "--set", "data.phases.0.until_step=3")

    @classmethod
    def run(cls, *arguments):
        done = subprocess.run([cls.openmoe, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              universal_newlines=True, env=environment())
        if done.returncode != 0:
            raise AssertionError(f"openmoe {' '.join(arguments)}\n{done.stdout}")
        return done.stdout

    @classmethod
    def path(cls, name):
        return os.path.join(cls.scratch.name, name)

    @classmethod
    def write_lines(cls, name, rows):
        with open(cls.path(name), "w") as f:
            for row in rows:
                f.write(json.dumps(row) + "\n")

    @classmethod
    def write_json(cls, name, value):
        with open(cls.path(name), "w") as f:
            json.dump(value, f)
        return cls.path(name)


class Served:
    """openmoe serve on a free port, for the time of a with block."""

    def __enter__(self):
        self.process = subprocess.Popen([Model.openmoe, "serve", Model.folder, "--port", "0", "--max-length", str(LENGTH)],
                                        stdout=subprocess.PIPE, universal_newlines=True, env=environment())
        line = self.process.stdout.readline()
        self.url = re.search(r"http://127\.0\.0\.1:\d+", line).group(0)
        return self

    def __exit__(self, *ignored):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0
        self.process.stdout.close()


QUESTIONS = [("The capital of France is", ["Paris", "a large blue whale", "seven"], 0),
             ("Two and two make", ["five hundred", "four", "nothing at all"], 1),
             ("int main() {", ["return 0; }", "once upon a time"], 0),
             ("Water is", ["wet", "made of pure gold and silver"], 0),
             ("The sun rises in the", ["east", "evening of the day"], 0)]


class bleu(unittest.TestCase):
    def evaluate(self, targets):
        Model.write_lines("text.jsonl", [{"question": q, "target": t} for (q, _, _), t in zip(QUESTIONS, targets)])
        task = Model.write_json("text.json", {
            "name": "text", "kind": "generate", "data": "text.jsonl", "prompt": "{{question}}", "targets": ["{{target}}"],
            "max_tokens": 24, "metrics": ["bleu", "exact_match", "f1"]})
        Model.run("evaluate", Model.folder, "--tasks", task, "--task-data", Model.scratch.name, "--samples",
                  Model.path("samples.jsonl"), "--out", Model.path("report.json"))
        with open(Model.path("report.json")) as f:
            report = json.load(f)["tasks"][0]
        with open(Model.path("samples.jsonl")) as f:
            return report, [json.loads(line)["answer"] for line in f]

    def test_bleu_is_that_of_sacrebleu(self):
        import sacrebleu
        _, answers = self.evaluate(["x"] * len(QUESTIONS))
        # Texts that share much with the answers, with what the tokenizer takes apart: punctuation, numbers, entities.
        targets = [" ".join(w for i, w in enumerate(a.split()) if i % 5 != 3) + ' cost 1,234.56 &amp; "more"-5.' for a in answers]
        targets[0] = answers[0]
        report, again = self.evaluate(targets)
        self.assertEqual(again, answers)
        expected = sacrebleu.corpus_bleu(answers, [targets]).score
        self.assertGreater(expected, 1.0)
        self.assertAlmostEqual(report["bleu"], expected, places=6)
        self.assertGreaterEqual(report["exact_match"], 1 / len(QUESTIONS))

    def test_bleu_of_the_tokenizer_alone(self):
        import sacrebleu
        report, answers = self.evaluate(["Prices rose 3.5-4.0% (e.g. bread, milk); it's 10,000."] * len(QUESTIONS))
        expected = sacrebleu.corpus_bleu(answers, [["Prices rose 3.5-4.0% (e.g. bread, milk); it's 10,000."] * len(QUESTIONS)]).score
        self.assertAlmostEqual(report["bleu"], expected, places=6)


class client(unittest.TestCase):
    def test_completions(self):
        import openai
        greedy = Model.run("generate", Model.folder, "--prompt", "The first", "--tokens", "12", "--max-length", str(LENGTH))
        with Served() as server:
            api = openai.OpenAI(base_url=server.url + "/v1", api_key="none")
            one = api.completions.create(model="m", prompt="The first", max_tokens=12, temperature=0, logprobs=3)
            self.assertEqual(one.choices[0].text, greedy[:-1])
            self.assertEqual(one.usage.completion_tokens, len(one.choices[0].logprobs.tokens))
            for own, top in zip(one.choices[0].logprobs.token_logprobs, one.choices[0].logprobs.top_logprobs):
                self.assertLessEqual(len(top), 3)
                self.assertAlmostEqual(own, max(top.values()), places=4)  # greedy
            streamed = api.completions.create(model="m", prompt="The first", max_tokens=12, temperature=0, stream=True)
            self.assertEqual("".join(piece.choices[0].text for piece in streamed), one.choices[0].text)
            # Of a batch, each as alone; sampled with one seed, the same again.
            batch = api.completions.create(model="m", prompt=["The first", "A second one"], max_tokens=12, temperature=0)
            self.assertEqual(batch.choices[0].text, one.choices[0].text)
            sampled = [api.completions.create(model="m", prompt="The first", max_tokens=12, temperature=1, top_p=0.9, seed=7)
                       for _ in range(2)]
            self.assertEqual(sampled[0].choices[0].text, sampled[1].choices[0].text)
            # echo: the chances of the prompt's own tokens, which do not depend on what follows
            echo = api.completions.create(model="m", prompt="The first", max_tokens=0, echo=True, logprobs=1)
            self.assertEqual(echo.choices[0].text, "The first")
            self.assertTrue(all(p <= 0 for p in echo.choices[0].logprobs.token_logprobs))
            half = api.completions.create(model="m", prompt=one.choices[0].text, max_tokens=20, temperature=0,
                                          stop=[one.choices[0].text[3:6]])
            self.assertNotIn(one.choices[0].text[3:6], half.choices[0].text)
            with self.assertRaises(openai.BadRequestError) as refused:
                api.completions.create(model="m", prompt="x", max_tokens=4, temperature=-1)
            self.assertIn("temperature", str(refused.exception))
            with self.assertRaises(openai.BadRequestError):
                api.completions.create(model="m", prompt="word " * 500, max_tokens=4)


class harness(unittest.TestCase):
    def test_lm_eval_and_our_own_evaluation_agree(self):
        rows = [{"question": q, "choices": c, "answer": a} for q, c, a in QUESTIONS]
        Model.write_lines("choice.jsonl", rows)
        task = Model.write_json("choice.json", {
            "name": "choice", "data": "choice.jsonl", "prompt": "{{question}}", "choices_from": "choices", "answer": "answer"})
        Model.run("evaluate", Model.folder, "--tasks", task, "--task-data", Model.scratch.name, "--max-length", str(LENGTH),
                  "--samples", Model.path("ours.jsonl"), "--out", Model.path("ours.json"))
        os.makedirs(Model.path("tasks"), exist_ok=True)
        with open(Model.path("tasks/openmoe_choice.yaml"), "w") as f:
            f.write(f"""task: openmoe_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {Model.path('choice.jsonl')}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
""")
        with Served() as server:
            done = subprocess.run(
                [sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args",
                 f"model=openmoe,base_url={server.url}/v1/completions,tokenizer_backend=remote,max_length={LENGTH}",
                 "--include_path", Model.path("tasks"), "--tasks", "openmoe_choice", "--log_samples", "--output_path",
                 Model.path("theirs")],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, env=environment())
        self.assertEqual(done.returncode, 0, done.stdout[-3000:])
        found = [os.path.join(d, f) for d, _, files in os.walk(Model.path("theirs")) for f in files]
        with open(next(f for f in found if os.path.basename(f).startswith("results"))) as f:
            theirs = json.load(f)["results"]["openmoe_choice"]
        with open(Model.path("ours.json")) as f:
            ours = json.load(f)["tasks"][0]
        self.assertAlmostEqual(theirs["acc,none"], ours["accuracy"])
        self.assertAlmostEqual(theirs["acc_norm,none"], ours["accuracy_per_character"])
        with open(next(f for f in found if os.path.basename(f).startswith("samples"))) as f:
            samples = sorted((json.loads(line) for line in f), key=lambda s: s["doc_id"])
        with open(Model.path("ours.jsonl")) as f:
            mine = [json.loads(line) for line in f]
        for sample, own in zip(samples, mine):
            chances = [float(r[0][0]) if isinstance(r[0], (list, tuple)) else float(r[0]) for r in sample["filtered_resps"]] \
                if isinstance(sample["filtered_resps"][0][0], (list, tuple)) else [float(r[0]) for r in sample["filtered_resps"]]
            for a, b in zip(chances, own["log_likelihoods"]):
                self.assertAlmostEqual(a, b, places=3)


if __name__ == "__main__":
    openmoe, shards, source, *cases = sys.argv[1:]
    missing = sorted({name for case in cases for name in NEEDS[case] if importlib.util.find_spec(name) is None})
    if missing:
        print(f"skipped: {', '.join(missing)} not installed; test/python/setup.sh makes an environment that has them")
        sys.exit(SKIPPED)
    Model.make(openmoe, shards, source)
    suite = unittest.TestSuite(unittest.defaultTestLoader.loadTestsFromTestCase(globals()[case]) for case in cases)
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    sys.exit(0 if result.wasSuccessful() else 1)
