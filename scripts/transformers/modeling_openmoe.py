"""OpenMoE for the transformers library, as far as running a checkpoint needs it: put this file into a folder that
`openmoe convert` wrote, and AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True) loads it.

Evaluation only, no cache of keys and values, both layouts of experts. config.json names this module in auto_map.
"""
import math

import torch
from torch import nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.eps)
        return (x.float() * scale).to(x.dtype) * self.weight


def activation(gate, up, gated):
    """[a | b] * up with b through swish, or swish(gate) * up."""
    if not gated:
        return nn.functional.silu(gate) * up
    a, b = gate.chunk(2, dim=-1)
    return a * nn.functional.silu(b) * up


class Ffn(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gated = config.hidden_act == "swiglu"
        d, f = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(d, 2 * f if self.gated else f, bias=False)
        self.up_proj = nn.Linear(d, f, bias=False)
        self.down_proj = nn.Linear(f, d, bias=False)

    def forward(self, x):
        return self.down_proj(activation(self.gate_proj(x), self.up_proj(x), self.gated))


class Experts(nn.Module):
    """Stacked as released: (experts, in, out)."""

    def __init__(self, config):
        super().__init__()
        self.gated = config.hidden_act == "swiglu"
        e, d, f = config.num_experts, config.hidden_size, config.intermediate_size
        self.wi_gate = nn.Parameter(torch.empty(e, d, 2 * f if self.gated else f))
        self.wi_up = nn.Parameter(torch.empty(e, d, f))
        self.wo = nn.Parameter(torch.empty(e, f, d))

    def forward(self, x, e):
        return activation(x @ self.wi_gate[e], x @ self.wi_up[e], self.gated) @ self.wo[e]


class MoE(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.gate_weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.experts = Experts(config)

    def capacity(self, tokens):
        slots = math.floor(2 * self.config.router_capacity_factor_eval * tokens / self.config.num_experts)
        return max(self.config.router_min_capacity, slots + slots % 2)

    def forward(self, x):
        shape, x = x.shape, x.reshape(-1, x.shape[-1])
        chances = torch.softmax(x.float() @ self.gate_weight.float().T, dim=-1)
        chosen = torch.topk(chances, 2, dim=-1).indices
        capacity, used = self.capacity(x.shape[0]), [0] * self.config.num_experts
        y = torch.zeros_like(x)
        for choice in range(2):  # all first choices are served before any second one, in the order of tokens
            for e in range(self.config.num_experts):
                rows = (chosen[:, choice] == e).nonzero().squeeze(-1)
                kept = rows[:max(0, capacity - used[e])]
                used[e] += len(rows)
                if len(kept):
                    y[kept] += chances[kept, e].unsqueeze(-1).to(x.dtype) * self.experts(x[kept], e)
        return y.reshape(shape)


class Attention(nn.Module):
    """Plain q.k: the factor 1 / sqrt(head_dim) is in the query's weights."""

    def __init__(self, config):
        super().__init__()
        self.heads, self.width, self.base = config.num_attention_heads, config.head_dim, config.rope_theta
        inner = self.heads * self.width
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(config.hidden_size, inner, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=False)

    def rotate(self, x):
        half, t = self.width // 2, torch.arange(x.shape[2], device=x.device)
        angle = t[:, None] * self.base ** (-torch.arange(half, device=x.device) / half)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    def forward(self, x):
        B, T, _ = x.shape
        q, k, v = (p(x).view(B, T, self.heads, self.width).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = self.rotate(q) @ self.rotate(k).transpose(-1, -2)
        later = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
        weights = torch.softmax(scores.masked_fill(later, float("-inf")).float(), dim=-1).to(x.dtype)
        return self.o_proj((weights @ v).transpose(1, 2).reshape(B, T, -1))


class Layer(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        norm = lambda: RMSNorm(config.hidden_size, config.rms_norm_eps)  # noqa: E731
        self.is_moe = (index + 1) % config.moe_layer_interval == 0
        self.input_layernorm, self.self_attn = norm(), Attention(config)
        self.post_attention_layernorm = norm()
        self.mlp = MoE(config) if self.is_moe else Ffn(config)
        if self.is_moe:
            self.pre_extra_mlp_layernorm, self.extra_mlp = norm(), Ffn(config)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x + self.extra_mlp(self.pre_extra_mlp_layernorm(x)) if self.is_moe else x


class Body(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, ids):
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class OpenMoeForCausalLM(PreTrainedModel):
    config_class = LlamaConfig  # model_type of the released files
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = Body(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.post_init()

    def _init_weights(self, module):
        """Weights come from a checkpoint."""

    def forward(self, input_ids, **unused):
        return CausalLMOutput(logits=self.lm_head(self.model(input_ids)).float())
