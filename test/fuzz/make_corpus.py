"""Writes the seed files of the fuzzers, which are also the fixtures of the reader tests, with the real libraries.

Usage: python3 make_corpus.py   (needs torch and safetensors; overwrites corpus/)
"""
import os
from collections import OrderedDict

import safetensors.torch
import torch

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus")


def tensors():
    ramp = torch.arange(24, dtype=torch.float32)
    return OrderedDict(
        full=ramp[:6].reshape(2, 3) - 2.5,
        half=(ramp[:6] / 4).reshape(2, 3).half(),
        brain=(ramp[:4] * 3).bfloat16(),
        scalar=torch.tensor(7.0),
        empty=torch.zeros(0, 5),
        stack=ramp.reshape(2, 3, 4).clone())


def main():
    plain = tensors()
    folder = os.path.join(HERE, "safetensors")
    safetensors.torch.save_file(plain, os.path.join(folder, "mixed.safetensors"), metadata={"format": "pt"})
    safetensors.torch.save_file({"ids": torch.arange(3)}, os.path.join(folder, "integers.safetensors"))

    folder = os.path.join(HERE, "torch")
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    views = OrderedDict(
        transposed=base.half().T,                                          # columns side by side
        stacked_transposed=torch.arange(24, dtype=torch.float32).reshape(2, 3, 4).transpose(1, 2),
        columns=base[:, 1:4],                                              # rows apart from each other
        shared=base[2],                                                    # one storage, two tensors
        every_other=base[0, ::2])                                          # neither
    torch.save(plain, os.path.join(folder, "plain.bin"))
    torch.save(views, os.path.join(folder, "views.bin"))
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.fill_(i)
    torch.save(module.state_dict(), os.path.join(folder, "module.bin"))     # carries _metadata
    torch.save({"weight": torch.nn.Parameter(torch.ones(2))}, os.path.join(folder, "parameter.bin"))
    torch.save({"ids": torch.arange(3)}, os.path.join(folder, "integers.bin"))
    torch.save({"weight": torch.ones(2), "step": 3}, os.path.join(folder, "not_only_tensors.bin"))
    torch.save({"weight": torch.ones(2)}, os.path.join(folder, "legacy.bin"), _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
