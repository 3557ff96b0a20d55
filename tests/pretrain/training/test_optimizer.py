"""AdamW: fused on a GPU, torch's plain loop on a CPU, resumed with a state of either kind."""

import pytest
import torch

from pretrain.training.checkpoints import read_checkpoint, restore, save_checkpoint
from pretrain.training.optimizer import adamw
from splitmask_backbones.param_groups import param_groups
from tests.helpers.toy import Toy, batches

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "in_graph", "expected"),
    [
        (CPU, False, (False, False)),
        (CPU, True, (False, False)),
        (CUDA, False, (True, False)),
        (CUDA, True, (True, True)),
    ],
)
def test_what_is_chosen_for_a_device(device, in_graph, expected):
    groups = param_groups(Toy(), 0.1, 0.05)
    optimizer = adamw(groups, device, beta2=0.95, in_graph=in_graph)
    assert [(group["fused"], group["capturable"]) for group in optimizer.param_groups] == [expected] * len(groups)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.95)}
    assert optimizer._warned_capturable_if_run_uncaptured == in_graph


def trained(fused_steps, tmp_path):
    """Three steps, each with the optimizer that is fused or not, by way of a checkpoint."""
    method = Toy()
    for step, fused in enumerate(fused_steps):
        optimizer = adamw([{"params": list(method.parameters()), "lr": 0.1, "weight_decay": 0.05}], CPU)
        optimizer.param_groups[0]["fused"] = fused  # the CPU has the fused one as well
        if step:
            restore(*read_checkpoint(tmp_path / f"step_{step:08d}.safetensors"), method, optimizer)
        torch.manual_seed(step)
        method(next(batches(step)))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        save_checkpoint(tmp_path, step + 1, method, optimizer)
    return torch.cat([parameter.detach().flatten() for parameter in method.parameters()])


def test_a_run_begun_with_one_goes_on_with_the_other(tmp_path):
    loop = trained([False, False, False], tmp_path / "loop")
    torch.testing.assert_close(trained([False, True, True], tmp_path / "mixed"), loop, rtol=1e-5, atol=1e-6)
    assert (loop - torch.cat([p.detach().flatten() for p in Toy().parameters()])).abs().max() > 0.05


@pytest.mark.gpu
def test_fused_on_a_gpu_equals_the_loop_on_a_cpu():
    found = []
    for device in (CPU, CUDA):
        method = Toy().to(device)
        optimizer = adamw(param_groups(method, 0.1, 0.05), device)
        for step in range(3):
            batch = {name: value.to(device) for name, value in next(batches(step)).items()}
            (method.layer(batch["x"]) - batch["y"]).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(method.layer.weight.detach().cpu())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
