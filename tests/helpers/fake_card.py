"""One step of each method on a device that has no memory: run as a program, since it registers that device with torch.

torch then knows shapes and devices of tensors, and no values. What would mix devices is an error, and so is whatever
asks the device for a value: on a GPU the host would wait there for all the work before it.
"""

import sys
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils import backend_registration

from pretrain.data.device_crops import resample, tall_first
from pretrain.methods.base import Method
from pretrain.methods.beit import Beit
from pretrain.methods.dino import Dino
from pretrain.methods.splitmask import SplitMask
from pretrain.tokenizers.codebook import Tokenizer, random_projection
from pretrain.training.step import train_step
from splitmask_backbones import VisionTransformer
from splitmask_backbones.param_groups import param_groups

CARD = "card"


def encoder(**more: Any) -> VisionTransformer:
    return VisionTransformer(img_size=64, embed_dim=24, depth=2, num_heads=2, drop_path_rate=0.2, **more)


def method_of(name: str) -> Method:
    if name == "dino":
        values = {"num_outputs": 16, "momentum": 0.9, "temperature": 0.04, "total_steps": 10, "frozen_steps": 2}
        method = Dino(encoder(use_class_token=True), encoder(use_class_token=True), **values)
        assert method.steps == 0  # asked once, when a run begins or goes on
        return method
    tokenizer = Tokenizer(random_projection(32, 768, 0))
    if name == "beit":
        return Beit(encoder(use_rel_pos=True), tokenizer)
    return SplitMask(encoder(layer_scale=1e-5, grad_checkpointing=True), tokenizer, branch_jitter=0.3)


def batch_of(name: str) -> dict[str, torch.Tensor]:
    if name == "dino":
        sizes = {"large": (2, 3, 64, 64), "small": (4, 3, 32, 32)}
        return {view: torch.zeros(3, *size, dtype=torch.uint8) for view, size in sizes.items()}
    ids = torch.arange(16).expand(3, 16)
    image = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    return {"image": image, "ids_a": ids[:, :8], "ids_b": ids[:, 8:], "ids_masked": ids[:, :8]}


def moved(value: torch.Tensor, mode: FakeTensorMode) -> torch.Tensor:
    return mode.from_tensor(value).detach().to(CARD)


def move(module: nn.Module, mode: FakeTensorMode) -> None:
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(moved(parameter, mode), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = moved(buffer, mode)


def make_tensor(made: Any, data: Any, *, dtype: Any = None, device: Any = None) -> torch.Tensor:
    """Is `torch.tensor`, which copies to a card behind all that it has to do, and waits: not within a step."""
    assert device is None or torch.device(device).type != CARD, "torch.tensor(..., device=) within a step"
    return made(data, dtype=dtype, device=device)


def make_step(name: str, accumulate: int, mode: FakeTensorMode) -> None:
    method = method_of(name)
    batch = {key: moved(value, mode) for key, value in batch_of(name).items()}
    with mode:
        move(method, mode)
        fabric: Any = SimpleNamespace(
            no_backward_sync=lambda model, enabled: nullcontext(), autocast=nullcontext, backward=torch.Tensor.backward
        )
        optimizer = torch.optim.AdamW(param_groups(method, 1e-3, 0.05), foreach=True)
        grad_cache: Any = method if accumulate > 1 and method.compares_images else None
        batches = iter([batch] * accumulate)
        clip: Any = {"clip_grad": 3.0, "clip_per_parameter": name == "dino"}
        values = train_step(
            fabric, method.train(), optimizer, batches, accumulate=accumulate, grad_cache=grad_cache, **clip
        )
        method.before_step()
        method.after_step(1)
        assert {value.device.type for value in values.values()} == {CARD}, values
        assert all(p.device.type == CARD for p in method.parameters())


def make_crops(mode: FakeTensorMode) -> None:
    import numpy as np

    tall_first()  # measured once, on the host
    pixels = moved(torch.zeros(4000, 3, dtype=torch.uint8), mode)
    with mode:
        found = resample(pixels, np.array([[0, 50, 40, 50, 1], [2000, 50, 30, 20, 0]]), 32)
    assert found.device.type == CARD
    assert found.shape == (2, 3, 32, 32)


def must_fail(mode: FakeTensorMode) -> None:
    """A value that is asked for, and two devices in one sum."""
    with mode:
        x = torch.ones(3, device=CARD)
        for wrong in (lambda: x.sum().item(), lambda: x + torch.ones(3)):
            try:
                wrong()
            except (DataDependentOutputException, RuntimeError):
                continue
            raise AssertionError("the card gave an answer")


def main(what: list[str]) -> None:
    backend_registration._setup_privateuseone_for_python_backend(CARD)
    getattr(torch, CARD).get_amp_supported_dtype = lambda: [torch.bfloat16]  # `autocast(enabled=False)` asks
    made = torch.tensor
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        torch.tensor = partial(make_tensor, made)
        must_fail(mode)
        make_crops(mode)
        for name in what:
            for accumulate in (1, 2):
                make_step(name, accumulate, mode)
    torch.tensor = made


if __name__ == "__main__":
    main(sys.argv[1:])
