"""An exported folder in the real transformers library: it loads with scripts/transformers/modeling_openmoe.py, and its
log-probabilities are those of openmoe serve with the port's capacity.

Usage: transformers_test.py OPENMOE SHARDS SOURCE      exit code 77: a library is missing, and which
"""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request

try:
    import safetensors  # noqa: F401
    import torch
    import transformers
    transformers.AutoModelForCausalLM.from_pretrained  # needs a torch that this version takes
except (ImportError, AttributeError, RuntimeError) as error:
    print(f"skipped: {error}")
    sys.exit(77)

openmoe, shards, source = sys.argv[1:]
scratch = tempfile.mkdtemp(prefix="openmoe-transformers-")
environment = dict(os.environ, OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", HF_MODULES_CACHE=os.path.join(scratch, "modules"))
os.environ.update(environment)
try:
    run, exported = os.path.join(scratch, "run"), os.path.join(scratch, "exported")
    subprocess.run([openmoe, "train", os.path.join(source, "test/recipes/tiny-released.json"), "--data", shards, "--out", run,
                    "--set", "run.num_steps=4", "--set", "run.validate_every=0", "--set", "data.phases.0.until_step=2",
                    "--set", "routing.eval_capacity_factor=0.7"], check=True, env=environment, stdout=subprocess.DEVNULL)
    subprocess.run([openmoe, "convert", run, exported, "--max-file-size", "500KB"], check=True, env=environment)
    assert os.path.exists(os.path.join(exported, "tokenizer.model")), "the tokenizer travels along"
    shutil.copy(os.path.join(source, "scripts/transformers/modeling_openmoe.py"), exported)
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"], loading
    model.eval()

    ids = [int(i) for i in torch.randint(2, 8000, (40,), generator=torch.Generator().manual_seed(3))]
    with torch.no_grad():
        logits = model(torch.tensor([[0] + ids[:-1]])).logits[0].double()
    expected = torch.log_softmax(logits, -1)[torch.arange(len(ids)), ids]
    with subprocess.Popen([openmoe, "serve", run, "--port", "0", "--capacity", "port"], stdout=subprocess.PIPE,
                          universal_newlines=True, env=environment) as server:
        url = re.search(r"http://\S+", server.stdout.readline()).group(0)
        body = json.dumps({"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 1}).encode()
        with urllib.request.urlopen(urllib.request.Request(url, body, {"Content-Type": "application/json"})) as reply:
            found = json.load(reply)["choices"][0]["logprobs"]["token_logprobs"]
        server.send_signal(signal.SIGTERM)
    worst = max(abs(a - b) for a, b in zip(expected.tolist(), found))
    print(f"transformers {transformers.__version__}: {len(found)} log-probabilities, largest difference {worst:.2g}")
    assert len(found) == len(ids) and worst < 1e-4, worst
finally:
    shutil.rmtree(scratch)
