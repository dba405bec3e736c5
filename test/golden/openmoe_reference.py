"""Executable specification of one OpenMoE training step, in float64 PyTorch.

It is an oracle, not a product: every formula of OpenMoE that decides a number is written here once, in the
plainest form that autograd can differentiate. It is slow on purpose. `--write DIR` regenerates the golden HDF5 files.

Notation: B rows, T positions per row, N = B*T tokens, D model width, F FFN width, H heads, Dh head width, E experts,
K = 2 choices per token, G tokens per routing group, V vocabulary rows.

Parameter names and shapes are those of the Hugging Face port (linear weights are (out, in), expert stacks (E, in, out)).
"""
import argparse, json, math, os
from dataclasses import dataclass, asdict, replace

import h5py
import numpy as np
import torch

torch.set_default_dtype(torch.float64)


@dataclass(frozen=True)
class Config:
    """Everything that changes a number. Defaults are the released (as-trained) semantics."""
    vocab: int = 64
    layers: int = 4
    d_model: int = 24
    heads: int = 4
    head_dim: int = 8
    ffn_dim: int = 40
    experts: int = 4
    moe_every: int = 2              # layer i is MoE when (i + 1) % moe_every == 0; 0 = dense model
    ffn: str = "gated_swiglu"       # "gated_swiglu": four D*F blocks as released; "swiglu": three, as in the paper
    residual_ffn: str = "sequential"  # "sequential": own norm, after the MoE; "parallel": Eq. 4 of the paper
    parallel_block: bool = False    # attention, experts and FFN read one normalised input and add to x
    attention_scale: str = "folded"   # "folded": logits are q.k ; "rsqrt": q.k / sqrt(Dh)
    tied_embedding: bool = False
    group_tokens: int = 32          # G
    capacity_factor: float = 1.25
    capacity_counts: str = "tokens"   # "tokens": round(cf*G/E); "assignments": round(K*cf*G/E); "dropless": G
    min_capacity: int = 4
    normalize_gates: bool = False
    route_padding: bool = False     # True: padding enters the router as zero vectors, as it did in the original run
    load_balance_weight: float = 0.01
    router_z_weight: float = 1e-4
    logits_z_weight: float = 1e-4
    norm_eps: float = 1e-6
    rope_base: float = 10000.0
    # Adafactor and schedule
    peak_lr: float = 0.01
    warmup_steps: int = 2
    decay_rate: float = 0.8
    clip_threshold: float = 1.0
    eps_square: float = 1e-30
    eps_scale: float = 1e-3
    min_dim_to_factor: int = 8


def is_moe(cfg, layer):
    return cfg.moe_every > 0 and (layer + 1) % cfg.moe_every == 0


def parameter_shapes(cfg):
    """Ordered {name: shape} of every trainable tensor."""
    D, F, A, E, V = cfg.d_model, cfg.ffn_dim, cfg.heads * cfg.head_dim, cfg.experts, cfg.vocab
    gate = 2 * F if cfg.ffn == "gated_swiglu" else F
    shapes = {"model.embed_tokens.weight": (V, D)}
    for i in range(cfg.layers):
        p = f"model.layers.{i}."
        shapes[p + "input_layernorm.weight"] = (D,)
        for name in ("q_proj", "k_proj", "v_proj"):
            shapes[p + f"self_attn.{name}.weight"] = (A, D)
        shapes[p + "self_attn.o_proj.weight"] = (D, A)
        if not cfg.parallel_block:
            shapes[p + "post_attention_layernorm.weight"] = (D,)
        if is_moe(cfg, i):
            shapes[p + "mlp.gate_weight"] = (E, D)
            shapes[p + "mlp.experts.wi_gate"] = (E, D, gate)
            shapes[p + "mlp.experts.wi_up"] = (E, D, F)
            shapes[p + "mlp.experts.wo"] = (E, F, D)
            if cfg.residual_ffn == "sequential" and not cfg.parallel_block:
                shapes[p + "pre_extra_mlp_layernorm.weight"] = (D,)
        ffn = "extra_mlp" if is_moe(cfg, i) else "mlp"
        shapes[p + ffn + ".gate_proj.weight"] = (gate, D)
        shapes[p + ffn + ".up_proj.weight"] = (F, D)
        shapes[p + ffn + ".down_proj.weight"] = (D, F)
    shapes["model.norm.weight"] = (D,)
    if not cfg.tied_embedding:
        shapes["lm_head.weight"] = (V, D)
    return shapes


def rms_norm(x, weight, eps):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def rotate(x, base):
    """RoPE, rotate-half: (B, T, H, Dh); position is the index in the row."""
    T, Dh = x.shape[1], x.shape[3]
    freq = base ** (-torch.arange(0, Dh, 2, dtype=torch.float64) / Dh)
    angle = torch.arange(T, dtype=torch.float64)[:, None] * freq[None, :]
    cos, sin = (f(angle).repeat(1, 2)[None, :, None, :] for f in (torch.cos, torch.sin))
    half = Dh // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


def attention(cfg, params, prefix, x, segment_ids):
    """Causal attention within a segment; rows of padding return 0. x: (B, T, D)."""
    B, T, _ = x.shape
    q, k, v = ((x @ params[prefix + n + "_proj.weight"].T).view(B, T, cfg.heads, cfg.head_dim) for n in "qkv")
    q, k = rotate(q, cfg.rope_base), rotate(k, cfg.rope_base)
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k)
    if cfg.attention_scale == "rsqrt":
        logits = logits / math.sqrt(cfg.head_dim)
    real = segment_ids > 0
    allowed = (segment_ids[:, :, None] == segment_ids[:, None, :]) & real[:, :, None] & real[:, None, :]
    allowed &= torch.tril(torch.ones(T, T, dtype=torch.bool))
    logits = logits.masked_fill(~allowed[:, None], -1e30)
    weights = torch.softmax(logits, dim=-1) * real[:, None, :, None]
    out = torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(B, T, -1)
    return out @ params[prefix + "o_proj.weight"].T


def swish(x):
    return x * torch.sigmoid(x)


def ffn_hidden(cfg, gate, up):
    """gate: x W0, up: x W1. Released form: W0 has a linear half and a swish half."""
    if cfg.ffn == "gated_swiglu":
        linear, gated = gate.split(cfg.ffn_dim, dim=-1)
        return linear * swish(gated) * up
    return swish(gate) * up


def ffn(cfg, params, prefix, x):
    hidden = ffn_hidden(cfg, x @ params[prefix + "gate_proj.weight"].T, x @ params[prefix + "up_proj.weight"].T)
    return hidden @ params[prefix + "down_proj.weight"].T


def capacity(cfg):
    if cfg.capacity_counts == "dropless":
        return cfg.group_tokens
    slots = cfg.capacity_factor * cfg.group_tokens / cfg.experts
    if cfg.capacity_counts == "assignments":
        slots *= 2
    return max(cfg.min_capacity, round(slots))   # Python's round: half to even


def expert(cfg, params, prefix, e, rows):
    h = ffn_hidden(cfg, rows @ params[prefix + "experts.wi_gate"][e], rows @ params[prefix + "experts.wi_up"][e])
    return h @ params[prefix + "experts.wo"][e]


def linear(x, w):
    return x @ w.T


@dataclass(frozen=True)
class Pieces:
    """The parts of the network that a variant may replace: bf16_reference.py rounds inside them."""
    attention: object = attention
    ffn: object = ffn
    expert: object = expert
    linear: object = linear
    rms_norm: object = rms_norm


def moe(cfg, params, prefix, x, real, pieces=Pieces()):
    """x: (N, D) normalised input, real: (N,) bool. Returns output (N, D) and a routing record."""
    N, E, G, C = x.shape[0], cfg.experts, cfg.group_tokens, capacity(cfg)
    logits = x @ params[prefix + "gate_weight"].T
    prob = torch.softmax(logits, dim=-1)
    choice = torch.argsort(prob.detach(), dim=-1, descending=True, stable=True)[:, :2]   # ties: lower index
    routed = torch.ones_like(real) if cfg.route_padding else real
    slot = torch.full((N, 2), -1, dtype=torch.int64)             # place in the expert's queue, -1 = not kept
    for start in range(0, N, G):
        filled = [0] * E
        for k in range(2):                                       # all first choices before any second choice
            for n in range(start, start + G):
                if not routed[n]:
                    continue
                e = int(choice[n, k])
                if filled[e] < C:
                    slot[n, k] = filled[e]
                filled[e] += 1                                   # a dropped assignment still advances the count
    gate = prob.gather(1, choice)
    if cfg.normalize_gates:
        gate = gate / gate.sum(-1, keepdim=True)
    out = torch.zeros_like(x)
    for e in range(E):
        for k in range(2):
            rows = ((choice[:, k] == e) & (slot[:, k] >= 0)).nonzero()[:, 0]
            if len(rows):
                out = out.index_add(0, rows, gate[rows, k, None] * pieces.expert(cfg, params, prefix, e, x[rows]))
    balance, groups = 0.0, 0
    for start in range(0, N, G):
        sel = routed[start:start + G]
        count = int(sel.sum())
        if count == 0:
            continue
        picks = torch.nn.functional.one_hot(choice[start:start + G][sel], E).sum(1).double()
        balance = balance + E * (picks.mean(0) * prob[start:start + G][sel].mean(0)).sum()
        groups += 1
    z = (torch.logsumexp(logits, dim=-1)[routed] ** 2).sum() / max(1, int(routed.sum()))
    record = dict(choice=choice, slot=slot, prob=prob.detach(), load_balance=balance / max(1, groups), router_z=z)
    return out, record


def forward(cfg, params, inputs, targets, loss_weights, segment_ids, pieces=Pieces()):
    """inputs, targets, segment_ids: (B, T) int; loss_weights: (B, T). Returns a dict of everything worth comparing."""
    real = (segment_ids > 0).double()[..., None]
    norm = lambda name, x: pieces.rms_norm(x, params[name], cfg.norm_eps) * real
    B, T = inputs.shape
    x = params["model.embed_tokens.weight"][inputs]
    records = []
    for i in range(cfg.layers):
        p = f"model.layers.{i}."
        y = norm(p + "input_layernorm.weight", x)
        x = x + pieces.attention(cfg, params, p + "self_attn.", y, segment_ids)
        if not cfg.parallel_block:
            y = norm(p + "post_attention_layernorm.weight", x)
        if not is_moe(cfg, i):
            x = x + pieces.ffn(cfg, params, p + "mlp.", y)
            continue
        mixed, record = moe(cfg, params, p + "mlp.", y.reshape(B * T, -1), segment_ids.reshape(-1) > 0,
                            pieces)
        records.append(record)
        x = x + mixed.view_as(x)
        if cfg.residual_ffn == "sequential" and not cfg.parallel_block:
            y = norm(p + "pre_extra_mlp_layernorm.weight", x)
        x = x + pieces.ffn(cfg, params, p + "extra_mlp.", y)
    head = params["model.embed_tokens.weight" if cfg.tied_embedding else "lm_head.weight"]
    logits = pieces.linear(norm("model.norm.weight", x), head)
    log_z = torch.logsumexp(logits, dim=-1)
    picked = logits.gather(-1, targets[..., None])[..., 0]
    total_weight = loss_weights.sum()
    ce = ((log_z - picked) * loss_weights).sum() / total_weight
    z_loss = cfg.logits_z_weight * (log_z ** 2 * loss_weights).sum() / total_weight
    mean = lambda key: sum(r[key] for r in records) / len(records) if records else torch.zeros(())
    balance, router_z = cfg.load_balance_weight * mean("load_balance"), cfg.router_z_weight * mean("router_z")
    accuracy = ((logits.argmax(-1) == targets) * loss_weights).sum() / total_weight
    return dict(logits=logits, cross_entropy=ce, logits_z_loss=z_loss, load_balance_loss=balance,
                router_z_loss=router_z, total_loss=ce + z_loss + balance + router_z, accuracy=accuracy, records=records)


class Adafactor:
    """t5x variant: parameter-scaled, factored over the last two axes, per expert for stacks, no momentum."""

    def __init__(self, cfg, params):
        self.cfg, self.step, self.state = cfg, 0, {n: {} for n in params}

    def learning_rate(self):
        return self.cfg.peak_lr * math.sqrt(self.cfg.warmup_steps) / math.sqrt(max(self.step, self.cfg.warmup_steps))

    def update_one(self, name, w, g, decay, lr):
        cfg, state = self.cfg, self.state[name]
        square = g * g + cfg.eps_square
        stacked = w.dim() == 3
        axes = (-2, -1) if w.dim() > 1 else (-1,)
        if stacked or (w.dim() == 2 and min(w.shape) >= cfg.min_dim_to_factor):
            row = state["row"] = decay * state.get("row", 0.0) + (1 - decay) * square.mean(-1)
            col = state["col"] = decay * state.get("col", 0.0) + (1 - decay) * square.mean(-2)
            u = g * ((row / row.mean(-1, keepdim=True)) ** -0.5)[..., :, None] * (col ** -0.5)[..., None, :]
        else:
            v = state["v"] = decay * state.get("v", 0.0) + (1 - decay) * square
            u = g / torch.sqrt(v)
        rms = lambda t: torch.sqrt((t * t).mean(axes, keepdim=True))
        u = u / torch.clamp(rms(u) / cfg.clip_threshold, min=1.0)
        return w - lr * torch.clamp(rms(w), min=cfg.eps_scale) * u

    def apply(self, params, grads):
        decay, lr = 1 - (self.step + 1) ** -self.cfg.decay_rate, self.learning_rate()
        updated = {n: self.update_one(n, params[n], grads[n], decay, lr) for n in params}
        self.step += 1
        return updated


def initial_parameters(cfg, rng):
    """Not the training initialiser: values are scaled so that routing is uneven and every path carries gradient."""
    params = {}
    for name, shape in parameter_shapes(cfg).items():
        if len(shape) == 1:
            value = 1 + 0.1 * rng.standard_normal(shape)
        else:
            fan_in = shape[-2] if len(shape) == 3 else shape[-1]
            scale = 1.0 if "embed" in name else 2.0 / math.sqrt(fan_in) if "gate_weight" in name else 0.7 / math.sqrt(fan_in)
            value = scale * rng.standard_normal(shape)
        params[name] = torch.tensor(value.astype(np.float32).astype(np.float64))   # exactly representable in float32
    return params


def make_batch(cfg, rng, rows, length):
    """Packed rows: two segments then a padded tail on odd rows, full rows otherwise; loss on part of each segment."""
    tokens = rng.integers(2, cfg.vocab, (rows, length + 1))
    tokens[:, :] = np.where(rng.random(tokens.shape) < 0.3, 7, tokens)          # a frequent token makes routing uneven
    segments = np.ones((rows, length), dtype=np.int64)
    weights = np.ones((rows, length))
    for b in range(rows):
        cut = int(rng.integers(length // 4, length // 2))
        segments[b, cut:] = 2
        weights[b, : cut // 2] = 0
        if b % 2:
            tail = length - int(rng.integers(length // 8, length // 4))
            segments[b, tail:], weights[b, tail:] = 0, 0
    inputs, targets = tokens[:, :-1].copy(), tokens[:, 1:].copy()
    inputs[:, 1:][segments[:, 1:] != segments[:, :-1]] = 0                       # each segment starts from id 0
    inputs[segments == 0], targets[segments == 0] = 0, 0
    inputs[:, 0] = 0
    as_t = lambda a: torch.tensor(a)
    return as_t(inputs), as_t(targets), as_t(weights), as_t(segments)


CASES = {
    "released": (Config(), 11),
    "released_route_padding": (Config(route_padding=True, capacity_factor=1.0), 12),
    "paper": (Config(ffn="swiglu", residual_ffn="parallel", attention_scale="rsqrt", tied_embedding=True,
                     capacity_counts="assignments", logits_z_weight=1e-3), 13),
    "paper_normalized_gates": (Config(ffn="swiglu", residual_ffn="parallel", attention_scale="rsqrt",
                                      normalize_gates=True, experts=8, group_tokens=64), 14),
    "parallel_block": (Config(residual_ffn="parallel", parallel_block=True, capacity_counts="dropless"), 16),
    "dense": (Config(ffn="swiglu", moe_every=0, attention_scale="rsqrt"), 15),
}


def write_case(path, cfg, seed, rows=4, length=32, steps=4, pieces=Pieces()):
    """One golden file: weights, `steps` batches, and what must come out of each step."""
    rng = np.random.default_rng(seed)
    params = initial_parameters(cfg, rng)
    optimizer = Adafactor(cfg, params)

    def put(group, name, value, dtype=np.float32):
        group.create_dataset(name, data=np.asarray(value).astype(dtype), compression="gzip", shuffle=True)

    with h5py.File(path, "w") as f:
        f.attrs["config"] = json.dumps(asdict(cfg))
        f.attrs["expert_capacity"] = capacity(cfg)
        for name, w in params.items():
            put(f, f"initial/{name}", w)
        for step in range(steps):
            batch = make_batch(cfg, rng, rows, length)
            leaves = {n: w.clone().requires_grad_() for n, w in params.items()}
            out = forward(cfg, leaves, *batch, pieces=pieces)
            names = list(leaves)
            grads = dict(zip(names, torch.autograd.grad(out["total_loss"], [leaves[n] for n in names])))
            g = f.create_group(f"step_{step}")
            for key, value in zip(("inputs", "targets", "loss_weights", "segment_ids"), batch):
                put(g, key, value, np.float32 if key == "loss_weights" else np.int32)
            for key in ("cross_entropy", "logits_z_loss", "load_balance_loss", "router_z_loss", "total_loss", "accuracy"):
                g.attrs[key] = float(out[key])
            g.attrs["learning_rate"] = optimizer.learning_rate()
            if step == 0:
                put(g, "logits", out["logits"].detach())
                for i, r in enumerate(out["records"]):
                    put(g, f"routing_{i}/choice", r["choice"], np.int32)
                    put(g, f"routing_{i}/slot", r["slot"], np.int32)
                    put(g, f"routing_{i}/prob", r["prob"])
                for name in names:
                    put(g, f"grad/{name}", grads[name])
            params = optimizer.apply(params, grads)
            if step in (0, steps - 1):
                for name, w in params.items():
                    put(g, f"updated/{name}", w)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="DIR", required=True, help="folder for the golden files")
    parser.add_argument("--seed-offset", type=int, default=0, help="other weights and batches for the same cases")
    args = parser.parse_args()
    os.makedirs(args.write, exist_ok=True)
    for name, (cfg, seed) in CASES.items():
        out = write_case(os.path.join(args.write, name + ".h5"), cfg, seed + args.seed_offset)
        kept = [float((r["slot"] >= 0).double().mean()) for r in out["records"]]
        print(f"{name:26s} total {float(out['total_loss']):.6f}  kept assignments {kept}")


if __name__ == "__main__":
    main()
