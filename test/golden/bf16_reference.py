"""The training step of openmoe_reference.py with values rounded to bfloat16 exactly where run.compute_type = bf16 stores them.

All sums stay in float64, so what is left between these files and the program is f32 summation: an element may round the
other way only where its exact value lies that close to the middle of two bf16 numbers.

Rounded when stored, forward and backward: q, k, v before and after rotation, o, gate, up, h, expert rows and their
gradients; the normalised input (its gradient is an f32 sum); weights as products read them; the gradient of the residual
stream and of the logits as products read them. Never rounded: residual stream, gradients of parameters, router product,
softmax, losses, optimizer. `--write DIR` regenerates the golden HDF5 files.
"""
import argparse, json, math, os
from dataclasses import asdict

import h5py
import torch

import openmoe_reference as exact


def rounded(x):
    """Nearest bf16, ties to even; a step through float32 first, as the program's sums are."""
    return x.float().bfloat16().double()


class Stored(torch.autograd.Function):
    """A tensor and its gradient, both kept as bf16."""
    @staticmethod
    def forward(ctx, x):
        return rounded(x)

    @staticmethod
    def backward(ctx, dx):
        return rounded(dx)


class StoredForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return rounded(x)

    @staticmethod
    def backward(ctx, dx):
        return dx


class Product(torch.autograd.Function):
    """x w^T of a stored x (n, in) and a weight (out, in): the weight and the incoming gradient are rounded as operands."""
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, rounded(w))
        return x @ rounded(w).T

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        dy = rounded(dy)
        return dy @ w, dy.T @ x


class ExpertInputs(torch.autograd.Function):
    """x w0 and x w1 of expert rows: the gradient of x is stored after the first product and again after the second."""
    @staticmethod
    def forward(ctx, x, w0, w1):
        w0, w1 = rounded(w0), rounded(w1)
        ctx.save_for_backward(x, w0, w1)
        return x @ w0, x @ w1

    @staticmethod
    def backward(ctx, d0, d1):
        x, w0, w1 = ctx.saved_tensors
        return rounded(rounded(d0 @ w0.T) + d1 @ w1.T), x.T @ d0, x.T @ d1


class Attention(torch.autograd.Function):
    """softmax(scale q k^T) v of (B, T, H, Dh); the backward's row sums of d_o o use the stored o, as FlashAttention's do."""
    @staticmethod
    def forward(ctx, q, k, v, allowed, real, scale):
        logits = (scale * torch.einsum("bqhd,bkhd->bhqk", q, k)).masked_fill(~allowed[:, None], -1e30)
        p = torch.softmax(logits, dim=-1) * real[:, None, :, None]
        o = rounded(torch.einsum("bhqk,bkhd->bqhd", p, v))
        ctx.save_for_backward(q, k, v, p, o)
        ctx.scale = scale
        return o

    @staticmethod
    def backward(ctx, d_o):
        q, k, v, p, o = ctx.saved_tensors
        d_o = rounded(d_o)
        dp = torch.einsum("bqhd,bkhd->bhqk", d_o, v)
        row_sum = (d_o * o).sum(-1).permute(0, 2, 1)[..., None]
        ds = ctx.scale * p * (dp - row_sum)
        dq, dk = torch.einsum("bhqk,bkhd->bqhd", ds, k), torch.einsum("bhqk,bqhd->bkhd", ds, q)
        dv = torch.einsum("bhqk,bqhd->bkhd", p, d_o)
        return rounded(dq), rounded(dk), rounded(dv), None, None, None


stored, product = Stored.apply, Product.apply


def linear(x, w):
    return product(x.reshape(-1, x.shape[-1]), w).view(*x.shape[:-1], w.shape[0])


def attention(cfg, params, prefix, x, segment_ids):
    B, T, _ = x.shape
    q, k, v = (stored(linear(x, params[prefix + n + "_proj.weight"])).view(B, T, cfg.heads, cfg.head_dim) for n in "qkv")
    q, k = stored(exact.rotate(q, cfg.rope_base)), stored(exact.rotate(k, cfg.rope_base))
    real = segment_ids > 0
    allowed = (segment_ids[:, :, None] == segment_ids[:, None, :]) & real[:, :, None] & real[:, None, :]
    allowed &= torch.tril(torch.ones(T, T, dtype=torch.bool))
    scale = 1 / math.sqrt(cfg.head_dim) if cfg.attention_scale == "rsqrt" else 1.0
    o = Attention.apply(q, k, v, allowed, real, scale)
    return linear(o.reshape(B, T, -1), params[prefix + "o_proj.weight"])


def ffn(cfg, params, prefix, x):
    gate, up = (stored(linear(x, params[f"{prefix}{n}_proj.weight"])) for n in ("gate", "up"))
    return linear(stored(exact.ffn_hidden(cfg, gate, up)), params[prefix + "down_proj.weight"])


def expert(cfg, params, prefix, e, rows):
    gate, up = ExpertInputs.apply(rows, params[prefix + "experts.wi_gate"][e], params[prefix + "experts.wi_up"][e])
    h = stored(exact.ffn_hidden(cfg, stored(gate), stored(up)))
    return stored(product(h, params[prefix + "experts.wo"][e].T))


REFERENCE = dict(attention=attention, ffn=ffn, expert=expert, linear=linear,
                 rms_norm=lambda x, weight, eps: StoredForward.apply(exact.rms_norm(x, weight, eps)))
CASES = {
    "released": (exact.Config(), 21),
    "paper": (exact.Config(ffn="swiglu", residual_ffn="parallel", attention_scale="rsqrt", tied_embedding=True,
                           capacity_counts="assignments", logits_z_weight=1e-3), 22),
    "dense": (exact.Config(ffn="swiglu", moe_every=0, attention_scale="rsqrt"), 23),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", metavar="DIR", required=True, help="folder for the golden files")
    args = parser.parse_args()
    os.makedirs(args.write, exist_ok=True)
    for name, (cfg, seed) in CASES.items():
        path = os.path.join(args.write, name + ".h5")
        out = exact.write_case(path, cfg, seed, rows=4, length=32, steps=1, pieces=exact.Pieces(**REFERENCE))
        with h5py.File(path, "a") as f:
            f.attrs["config"] = json.dumps({**asdict(cfg), "compute_type": "bf16"})
        print(f"{name:12s} total {float(out['total_loss']):.6f}")


if __name__ == "__main__":
    main()
