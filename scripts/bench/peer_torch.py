#!/usr/bin/env python3
"""The same model as `openmoe bench RECIPE`, trained by PyTorch on this CPU: random tokens, whole steps, one JSON object.

Idiomatic PyTorch: fused qkv, F.scaled_dot_product_attention where it exists, experts by index_select / index_add, SGD in
place (lighter than our Adafactor). Needs torch only: Debian's python3-torch or a wheel. Reads model, routing and data of a
recipe without "extends"; swiglu, no tied embedding. bf16 is torch.autocast over f32 weights.
"""
import argparse, json, math, resource, statistics, time

import torch
import torch.nn.functional as F
from torch import nn


def rms_norm(x, weight, eps=1e-6):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


class Ffn(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Attention(nn.Module):
    def __init__(self, m, length):
        super().__init__()
        self.heads, self.head_dim = m["num_heads"], m["head_dim"]
        self.qkv = nn.Linear(m["d_model"], 3 * self.heads * self.head_dim, bias=False)
        self.out = nn.Linear(self.heads * self.head_dim, m["d_model"], bias=False)
        angle = torch.outer(torch.arange(length).float(), 10000.0 ** (-torch.arange(0, self.head_dim, 2) / self.head_dim))
        self.register_buffer("cos", torch.cat([angle, angle], -1).cos(), False)
        self.register_buffer("sin", torch.cat([angle, angle], -1).sin(), False)
        self.register_buffer("mask", torch.full((length, length), -math.inf).triu(1), False)

    def rotate(self, x):
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin

    def forward(self, x):
        rows, length, _ = x.shape
        q, k, v = self.qkv(x).view(rows, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = self.rotate(q), self.rotate(k)
        if hasattr(F, "scaled_dot_product_attention"):
            o = F.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True)
        else:
            o = torch.softmax(q * self.head_dim ** -0.5 @ k.transpose(-1, -2) + self.mask, -1) @ v
        return self.out(o.transpose(1, 2).reshape(rows, length, -1))


class Experts(nn.Module):
    def __init__(self, m, routing):
        super().__init__()
        self.router = nn.Linear(m["d_model"], m["num_experts"], bias=False)
        self.experts = nn.ModuleList(Ffn(m["d_model"], m["ffn_dim"]) for _ in range(m["num_experts"]))
        self.capacity_factor, self.kept = routing["capacity_factor"], 0

    def forward(self, x):
        tokens = x.flatten(0, -2)
        count, experts = tokens.shape[0], len(self.experts)
        logits = self.router(tokens).float()
        prob = logits.softmax(-1)
        gate, choice = prob.topk(2, -1)
        capacity = round(2 * self.capacity_factor * count / experts)
        gate, flat = gate.t().reshape(-1), choice.t().reshape(-1)       # first choices before second ones
        out, self.kept = torch.zeros_like(tokens), 0
        for e, expert in enumerate(self.experts):
            slot = (flat == e).nonzero().squeeze(1)[:capacity]
            rows = slot % count
            y = expert(tokens.index_select(0, rows)) * gate.index_select(0, slot).unsqueeze(1)
            out = out.index_add(0, rows, y.to(out.dtype))
            self.kept += slot.numel()
        picked = F.one_hot(choice, experts).float().sum(1).mean(0)
        loss = 0.01 * experts * (picked * prob.mean(0)).sum() + 1e-4 * logits.logsumexp(-1).pow(2).mean()
        return out.view_as(x), loss


class Block(nn.Module):
    def __init__(self, m, routing, length, is_moe):
        super().__init__()
        self.norms = nn.ParameterList(nn.Parameter(torch.ones(m["d_model"])) for _ in range(3 if is_moe else 2))
        self.attention, self.ffn = Attention(m, length), Ffn(m["d_model"], m["ffn_dim"])
        self.experts = Experts(m, routing) if is_moe else None

    def forward(self, x):
        x, loss = x + self.attention(rms_norm(x, self.norms[0])), 0.0
        if self.experts is not None:
            y, loss = self.experts(rms_norm(x, self.norms[2]))
            x = x + y
        return x + self.ffn(rms_norm(x, self.norms[1])), loss


class Model(nn.Module):
    def __init__(self, recipe):
        super().__init__()
        m, length = recipe["model"], recipe["data"]["sequence_length"]
        self.embedding = nn.Embedding(m["vocab_size"], m["d_model"])
        self.blocks = nn.ModuleList(Block(m, recipe["routing"], length, (i + 1) % m["moe_interval"] == 0)
                                    for i in range(m["num_layers"]))
        self.norm = nn.Parameter(torch.ones(m["d_model"]))
        self.head = nn.Linear(m["d_model"], m["vocab_size"], bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, inputs, targets):
        x, extra = self.embedding(inputs), 0.0
        for block in self.blocks:
            x, loss = block(x)
            extra = extra + loss
        return F.cross_entropy(self.head(rms_norm(x, self.norm)).flatten(0, 1).float(), targets.flatten()) + extra


def step_flops(recipe, kept):
    """Useful arithmetic of a step as `openmoe bench` counts it: causal attention by half, experts by kept slots."""
    m, rows, length = recipe["model"], recipe["data"]["batch_rows"], recipe["data"]["sequence_length"]
    width, ffn = m["num_heads"] * m["head_dim"], 6 * m["d_model"] * m["ffn_dim"]
    per_token = m["num_layers"] * (8 * m["d_model"] * width + 2 * width * (length + 1) + ffn)
    per_token += m["num_layers"] // m["moe_interval"] * 2 * m["d_model"] * m["num_experts"] + 2 * m["d_model"] * m["vocab_size"]
    return 3 * (rows * length * per_token + kept * ffn)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=2)
    args = parser.parse_args()
    with open(args.recipe) as file:
        recipe = json.load(file)
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    model = Model(recipe)
    shape = recipe["data"]["batch_rows"], recipe["data"]["sequence_length"]
    inputs, targets = (torch.randint(0, recipe["model"]["vocab_size"], shape) for _ in range(2))
    seconds, flops = [], []
    for step in range(args.warmup + args.steps):
        begin = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype == "bf16"):
            loss = model(inputs, targets)
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(p.grad, alpha=0.01)
                p.grad = None
        if step >= args.warmup:
            seconds.append(time.perf_counter() - begin)
            flops.append(step_flops(recipe, sum(b.experts.kept for b in model.blocks if b.experts is not None)))
    middle = statistics.median(seconds)
    print(json.dumps({"tokens_per_s": shape[0] * shape[1] / middle, "step_ms": 1e3 * middle,
                      "gflops": statistics.median(f / s for f, s in zip(flops, seconds)) / 1e9,
                      "gflop_per_step": statistics.median(flops) / 1e9, "loss": loss.item(),
                      "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                      "parameters": sum(p.numel() for p in model.parameters()),
                      "torch": torch.__version__, "threads": args.threads, "dtype": args.dtype}))


if __name__ == "__main__":
    main()
