"""The README's way from the released weights to one's own run, every command of it, on a tiny stand-in in the released layout.

Usage: walkthrough_test.py OPENMOE SHARDS SOURCE
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile

openmoe, shards, source = sys.argv[1:]
scratch = tempfile.mkdtemp(prefix="openmoe-walkthrough-")
path = lambda *parts: os.path.join(scratch, *parts)  # noqa: E731


def run(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, stdin=subprocess.DEVNULL,
                          cwd=scratch, env=dict(os.environ, OMP_NUM_THREADS="1"))
    print("$", " ".join(command), "\n" + done.stdout[-1500:])
    assert done.returncode == 0, done.returncode
    return done.stdout


def serve(*command):
    with subprocess.Popen([*command[:-1], "0"], stdout=subprocess.PIPE, universal_newlines=True, cwd=scratch) as process:
        assert "/v1/completions" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def words(line):
    import shlex
    return shlex.split(line)


try:
    # A stand-in for what was released: the same files and keys, the sample's tokenizer.
    run(openmoe, "train", os.path.join(source, "test/recipes/tiny-released.json"), "--data", shards, "--out", "runs/made",
        "--set", "run.num_steps=4", "--set", "run.validate_every=0", "--set", "data.phases.0.until_step=2")
    run(openmoe, "convert", "runs/made", "runs/openmoe-8b-hf")
    os.rename(path("runs/openmoe-8b-hf/tokenizer.model"), path("runs/openmoe-8b-hf/spiece.model"))
    shutil.copy(os.path.join(source, "data/sample/conversations.jsonl"), path("runs/wildchat.jsonl"))
    os.makedirs(path("runs/tasks"))
    with open(path("runs/tasks/piqa.jsonl"), "w") as f:
        f.write(json.dumps({"goal": "boil water", "sol1": "use a kettle", "sol2": "use a fork", "label": 0}) + "\n")
    shutil.copytree(os.path.join(source, "recipes"), path("recipes"))
    with open(path("recipes/openmoe-8b-chat.json")) as f:
        chat = json.load(f)
    with open(os.path.join(source, "test/recipes/tiny-released.json")) as f:
        tiny = json.load(f)
    del chat["extends"]
    chat.update(model=tiny["model"], routing=tiny["routing"], run={"num_steps": 3})
    chat["data"].update(batch_rows=8, sequence_length=64)
    with open(path("recipes/openmoe-8b-chat.json"), "w") as f:
        json.dump(chat, f)

    with open(os.path.join(source, "README.md")) as f:
        section = f.read().split("## From the released weights to your own run")[1]
    commands = section.split("```sh\n")[1].split("```")[0].splitlines()
    assert len(commands) >= 9, commands
    outputs = {}
    for line in commands:
        command = words(line.replace("build/release/openmoe", openmoe).replace("--sentinels 300", "--sentinels 100"))
        kind = command[1]
        if kind == "serve":
            serve(*command)
        else:
            outputs[line] = run(*command)

    # The weights that went through tuning are others than those that came in, in the same layout.
    with open(path("runs/my-chat-hf/config.json")) as f:
        config = json.load(f)
    assert config["architectures"] == ["OpenMoeForCausalLM"] and config["torch_dtype"] == "bfloat16", config
    assert os.path.exists(path("runs/my-chat-hf/model.safetensors"))
    assert any(name.endswith(".model") for name in os.listdir(path("runs/my-chat-hf"))), os.listdir(path("runs/my-chat-hf"))
    steps = [json.loads(line) for line in open(path("runs/my-chat/metrics.jsonl"))]
    assert [s["step"] for s in steps] == [0, 1, 2] and all(0 < s["loss_tokens"] < s["real_tokens"] for s in steps), steps
    assert all(abs(s["learning_rate"] - 0.001) < 1e-12 for s in steps), steps
    print("ok")
finally:
    shutil.rmtree(scratch)
