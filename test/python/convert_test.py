"""openmoe convert against the real torch and safetensors libraries, and logits against the reference implementation.

Usage: convert_test.py OPENMOE LOGITS_TOOL      exit code 77: nothing could be tested, and why
"""
import json
import math
import os
import pickle
import subprocess
import sys
import tempfile
import unittest
import zipfile

SKIPPED = 77
try:
    import h5py
    import numpy as np
    import torch
except ImportError as error:
    print(f"skipped: {error}; Debian and Ubuntu package python3-torch, python3-h5py and python3-numpy")
    sys.exit(SKIPPED)
try:
    import safetensors.torch as safetensors
except ImportError:
    safetensors = None

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "golden"))
import openmoe_reference as reference  # noqa: E402  (sets the default dtype to float64)

ROWS, LENGTH = 4, 32
NEEDS_SAFETENSORS = unittest.skipUnless(safetensors, "the safetensors package is not installed (pip install safetensors)")


def hf_config(cfg, **changes):
    """config.json with every key of the released files, at the sizes of `cfg`."""
    config = dict(
        architectures=["OpenMoeForCausalLM"], model_type="llama", attention_bias=False,
        auto_map={"AutoModelForCausalLM": "modeling_openmoe.OpenMoeForCausalLM"},
        hidden_size=cfg.d_model, intermediate_size=cfg.ffn_dim, num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads, num_key_value_heads=cfg.heads, head_dim=cfg.head_dim,
        num_experts=cfg.experts, moe_layer_interval=cfg.moe_every, vocab_size=cfg.vocab,
        hidden_act="swiglu" if cfg.ffn == "gated_swiglu" else "silu", mlp_gated=True,
        rms_norm_eps=cfg.norm_eps, layer_norm_epsilon=cfg.norm_eps, rope_theta=cfg.rope_base, rope_scaling=None,
        max_position_embeddings=LENGTH, tie_word_embeddings=cfg.tied_embedding, dropout_rate=0.0,
        initializer_range=0.02, bos_token_id=0, pad_token_id=0, eos_token_id=1, router_topk=2,
        router_capacity_factor_train=1.25, router_capacity_factor_eval=2.0, router_min_capacity=4,
        router_noisy_policy=None, router_drop_tks=True, router_aux_loss_factor=0.01, router_z_loss_factor=1e-4,
        z_loss_factor=0.01, label_smoothing=0.001, pretraining_tp=1, expert_parallel=None, enable_kernel=False,
        enable_comm_overlap=False, enable_hierarchical_alltoall=False, enable_load_balance=False,
        load_balance_tolerance=0.1, load_balance_beam_width=8, load_balance_group_swap_factor=0.4,
        torch_dtype="float32", use_cache=True, transformers_version="4.34.0")
    config.update(changes)
    return config


def split(params):
    """The layout with a linear weight (out, in) per expert."""
    out, names = {}, {"wi_gate": "gate_proj", "wi_up": "up_proj", "wo": "down_proj"}
    for name, value in params.items():
        prefix, _, last = name.rpartition(".")
        if prefix.endswith("mlp.experts"):
            for e in range(value.shape[0]):
                out[f"{prefix}.{e}.{names[last]}.weight"] = value[e].T
        elif name.endswith("mlp.gate_weight"):
            out[name.replace("gate_weight", "gate.weight")] = value
        else:
            out[name] = value
    return out


def make_params(cfg, seed, dtype=torch.float32):
    params = reference.initial_parameters(cfg, np.random.default_rng(seed))
    return {name: value.to(dtype) for name, value in params.items()}


class ConvertTest(unittest.TestCase):
    openmoe = logits_tool = None

    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory(prefix="openmoe-convert-")
        self.addCleanup(self.scratch.cleanup)

    def path(self, *parts):
        return os.path.join(self.scratch.name, *parts)

    def run_tool(self, *command):
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
        self.assertEqual(result.returncode, 0, f"{' '.join(command)}\n{result.stdout}")
        return result.stdout

    def convert(self, *arguments):
        return self.run_tool(self.openmoe, "convert", *arguments)

    def refuse(self, *arguments):
        """The message of a conversion that must be refused and leave nothing behind."""
        result = subprocess.run([self.openmoe, "convert", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                universal_newlines=True)
        self.assertEqual(result.returncode, 2, result.stdout)
        self.assertEqual(result.stdout.count("error:"), 1, result.stdout)
        self.assertFalse(os.path.exists(arguments[1]), result.stdout)
        self.assertEqual([n for n in os.listdir(os.path.dirname(arguments[1])) if n.endswith(".partial")], [])
        return result.stdout

    def folder(self, name, config, files=()):
        os.makedirs(self.path(name))
        with open(self.path(name, "config.json"), "w") as f:
            json.dump(config, f)
        for file in files:
            with open(self.path(name, file), "w") as f:
                f.write(f"content of {file}")
        return self.path(name)

    def save(self, folder, tensors, kind, shards=1):
        """Writes tensors as the real libraries do, in as many files as asked, with an index if more than one."""
        names = list(tensors)
        single = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
        stem, ending = os.path.splitext(single)
        weight_map = {}
        for i in range(shards):
            part = {n: tensors[n] for n in names[i::shards]}
            file = single if shards == 1 else f"{stem}-{i + 1:05d}-of-{shards:05d}{ending}"
            weight_map.update({n: file for n in part})
            if kind == "safetensors":
                safetensors.save_file({n: t.contiguous() for n, t in part.items()}, os.path.join(folder, file),
                                      metadata={"format": "pt"})
            else:
                torch.save(part, os.path.join(folder, file))
        if shards > 1:
            with open(os.path.join(folder, single + ".index.json"), "w") as f:
                json.dump({"metadata": {"total_size": 0}, "weight_map": weight_map}, f)

    def load_exported(self, folder):
        index = os.path.join(folder, "model.safetensors.index.json")
        if not os.path.exists(index):
            return safetensors.load_file(os.path.join(folder, "model.safetensors"))
        with open(index) as f:
            weight_map = json.load(f)["weight_map"]
        tensors = {}
        for file in sorted(set(weight_map.values())):
            part = safetensors.load_file(os.path.join(folder, file))
            self.assertEqual(set(part), {n for n, where in weight_map.items() if where == file})
            tensors.update(part)
        return tensors

    def check_equal(self, found, expected):
        self.assertEqual(set(found), set(expected))
        for name, tensor in expected.items():
            self.assertEqual(found[name].dtype, tensor.dtype, name)
            self.assertTrue(torch.equal(found[name], tensor), name)

    def check_logits(self, run, cfg, params, seed):
        """Returns the reference's output."""
        batch = reference.make_batch(cfg, np.random.default_rng(seed), ROWS, LENGTH)
        with h5py.File(self.path("batch.h5"), "w") as f:
            f["inputs"], f["segment_ids"] = (batch[i].numpy().astype(np.int32) for i in (0, 3))
        self.run_tool(self.logits_tool, run, self.path("batch.h5"), self.path("logits.h5"))
        with h5py.File(self.path("logits.h5")) as f:
            found = torch.tensor(f["logits"][...].astype(np.float64))
        expected = reference.forward(cfg, {n: p.double() for n, p in params.items()}, *batch)
        real = batch[3] > 0
        error = (found - expected["logits"])[real].abs().max() / expected["logits"][real].abs().max()
        self.assertLess(float(error), 1e-4)
        return expected

    def eval_config(self, **changes):
        return reference.Config(group_tokens=2 * LENGTH, capacity_factor=2.0, **changes)

    def import_and_check(self, kind, shards=1, layout=lambda p: p, dtype=torch.float32, seed=1, **changes):
        cfg = self.eval_config(**changes)
        params = make_params(cfg, seed, dtype)
        folder = self.folder("hf", hf_config(cfg))
        self.save(folder, layout(params), kind, shards)
        self.convert(folder, self.path("run"))
        self.check_logits(self.path("run"), cfg, params, seed + 1)
        return params

    @NEEDS_SAFETENSORS
    def test_import_stacked_safetensors(self):
        self.import_and_check("safetensors")

    @NEEDS_SAFETENSORS
    def test_import_sharded_safetensors(self):
        self.import_and_check("safetensors", shards=3, seed=2)

    @NEEDS_SAFETENSORS
    def test_import_split_safetensors(self):
        self.import_and_check("safetensors", shards=2, layout=split, seed=3)

    def test_import_stacked_bin(self):
        self.import_and_check("bin", seed=4)

    def test_import_sharded_bin_f16(self):
        self.import_and_check("bin", shards=4, dtype=torch.float16, seed=5)

    def test_import_split_bin_bf16(self):
        # Transposed views, not copies: each expert's record holds the whole stack.
        self.import_and_check("bin", layout=split, dtype=torch.bfloat16, seed=6)

    def test_import_three_matrices_and_tied(self):
        self.import_and_check("bin", seed=7, ffn="swiglu", tied_embedding=True)

    def test_import_dense(self):
        cfg = self.eval_config(moe_every=0)
        params = make_params(cfg, 8)
        folder = self.folder("hf", hf_config(cfg, moe_layer_interval=cfg.layers + 1))
        self.save(folder, params, "bin")
        self.convert(folder, self.path("run"))
        self.check_logits(self.path("run"), cfg, params, 9)

    def test_capacity_of_the_port(self):
        factor = 0.55
        cfg = reference.Config(group_tokens=ROWS * LENGTH, capacity_factor=factor)
        slots = math.floor(2 * factor * ROWS * LENGTH / cfg.experts)
        self.assertEqual(slots % 2, 1)
        params = make_params(cfg, 10)
        folder = self.folder("hf", hf_config(cfg, router_capacity_factor_eval=factor))
        self.save(folder, params, "bin")
        self.convert(folder, self.path("run"), "--set", "routing.capacity_counts=port")
        original, reference.capacity = reference.capacity, lambda _: slots + 1
        try:
            records = self.check_logits(self.path("run"), cfg, params, 11)["records"]
        finally:
            reference.capacity = original
        # The rule decides something here: assignments were dropped.
        self.assertTrue(any(bool(((r["slot"] < 0).sum(0) > 0).any()) for r in records))
        self.assertEqual(max(int(r["slot"].max()) for r in records), slots)

    @NEEDS_SAFETENSORS
    def test_export_then_import_is_the_identity(self):
        cfg = self.eval_config()
        params = make_params(cfg, 12)
        config = hf_config(cfg)
        files = ["tokenizer.json", "spiece.model", "tokenizer_config.json", "modeling_openmoe.py"]
        folder = self.folder("hf", config, files + ["README.md"])
        self.save(folder, params, "bin", shards=2)
        self.convert(folder, self.path("run"))

        self.convert(self.path("run"), self.path("again"))
        self.check_equal(self.load_exported(self.path("again")), params)
        with open(self.path("again", "config.json")) as f:
            self.assertEqual(json.load(f), config)
        for file in files:
            with open(self.path("again", file)) as f:
                self.assertEqual(f.read(), f"content of {file}")
        self.assertFalse(os.path.exists(self.path("again", "README.md")))

        self.convert(self.path("run"), self.path("split"), "--layout", "split", "--max-file-size", "20KB")
        self.assertGreater(len([n for n in os.listdir(self.path("split")) if n.endswith(".safetensors")]), 3)
        self.check_equal(self.load_exported(self.path("split")), {n: t.contiguous() for n, t in split(params).items()})

        self.convert(self.path("split"), self.path("run2"))
        self.convert(self.path("run2"), self.path("third"))
        with open(self.path("again", "model.safetensors"), "rb") as a, open(self.path("third", "model.safetensors"), "rb") as b:
            self.assertEqual(a.read(), b.read())

    @NEEDS_SAFETENSORS
    def test_export_dtypes(self):
        cfg = self.eval_config()
        params = make_params(cfg, 13)
        folder = self.folder("hf", hf_config(cfg))
        self.save(folder, params, "bin")
        self.convert(folder, self.path("run"))
        for name, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16)):
            self.convert(self.path("run"), self.path(name), "--dtype", name)
            self.check_equal(self.load_exported(self.path(name)), {n: t.to(dtype) for n, t in params.items()})
            with open(self.path(name, "config.json")) as f:
                self.assertEqual(json.load(f)["torch_dtype"], str(dtype).replace("torch.", ""))

    def refuse_bin(self, state, phrases, config=None):
        folder = self.folder("bad", config or hf_config(self.eval_config()))
        if state is not None:
            torch.save(state, os.path.join(folder, "pytorch_model.bin"))
        text = self.refuse(folder, self.path("never"))
        for phrase in phrases:
            self.assertIn(phrase, text)
        return text

    def test_refuses_missing_extra_and_misshapen_tensors(self):
        params = make_params(self.eval_config(), 14)
        del params["model.norm.weight"]
        params["model.surprise"] = torch.ones(3)
        params["lm_head.weight"] = torch.ones(2, 2)
        self.refuse_bin(params, ["3 problems", '"model.norm.weight" (24) is missing', '"model.surprise" (3)',
                                 '"lm_head.weight" is (2, 2), expected (64, 24)', "pytorch_model.bin"])

    def test_refuses_integers(self):
        params = make_params(self.eval_config(), 15)
        params["model.norm.weight"] = torch.ones(24, dtype=torch.int64)
        self.refuse_bin(params, ["model.norm.weight", "LongStorage"])

    def test_refuses_another_architecture(self):
        config = hf_config(self.eval_config(), router_topk=1, num_key_value_heads=2, hidden_act="gelu", num_experts="4")
        del config["head_dim"]
        self.refuse_bin(None, ["5 errors", "router_topk", "num_key_value_heads", "gelu", "num_experts", "head_dim"], config)

    def test_executes_nothing(self):
        marker = self.path("owned")

        class Attack:
            def __reduce__(self):
                return (os.system, (f"touch {marker}",))

        self.refuse_bin({"model.norm.weight": Attack()}, ["pytorch_model.bin", "system", "executes nothing"])
        self.assertFalse(os.path.exists(marker))

    def test_refuses_a_hand_made_archive(self):
        folder = self.folder("bad", hf_config(self.eval_config()))
        with zipfile.ZipFile(os.path.join(folder, "pytorch_model.bin"), "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({"model.norm.weight": 1}, protocol=2))
        self.assertIn('"model.norm.weight" is a number', self.refuse(folder, self.path("never")))

    def test_refuses_truncated_files(self):
        folder = self.folder("bad", hf_config(self.eval_config()))
        params = make_params(self.eval_config(), 16)
        for kind in ["bin"] + (["safetensors"] if safetensors else []):
            self.save(folder, params, kind)
            name = os.path.join(folder, "pytorch_model.bin" if kind == "bin" else "model.safetensors")
            os.truncate(name, os.path.getsize(name) - 100)
            self.assertIn("truncated", self.refuse(folder, self.path("never")))

    def test_refuses_an_index_that_leaves_its_folder(self):
        folder = self.folder("bad", hf_config(self.eval_config()))
        with open(os.path.join(folder, "model.safetensors.index.json"), "w") as f:
            json.dump({"weight_map": {"lm_head.weight": "../secret.safetensors"}}, f)
        self.assertIn("same folder", self.refuse(folder, self.path("never")))

    def test_refuses_a_folder_that_exists(self):
        folder = self.folder("hf", hf_config(self.eval_config()))
        result = subprocess.run([self.openmoe, "convert", folder, folder], stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, universal_newlines=True)
        self.assertEqual(result.returncode, 2)
        self.assertIn("exists already", result.stdout)


if __name__ == "__main__":
    ConvertTest.openmoe, ConvertTest.logits_tool = (os.path.abspath(p) for p in sys.argv[1:3])
    torch.manual_seed(0)
    unittest.main(argv=sys.argv[:1] + sys.argv[3:], verbosity=2)
