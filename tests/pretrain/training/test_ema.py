"""The moving average of weights, against a loop by hand."""

import torch
from torch import nn

from pretrain.training.ema import averaged, start_at


def test_average_is_the_recursion_with_a_short_memory_at_the_start():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = averaged(model, decay=0.6)
    expected = model[0].weight.detach().clone()
    for step in range(1, 8):
        with torch.no_grad():
            model[0].weight.add_(1.0)
            model[1].running_mean.add_(1.0)
            model[1].num_batches_tracked.add_(1)
        average.update_parameters(model)
        decay = min(0.6, (1 + step) / (10 + step))
        # As lerp computes it: the bytes of runs must not depend on who averages.
        expected = torch.lerp(expected, model[0].weight.detach(), 1 - decay)
    assert torch.equal(average.module[0].weight, expected)
    assert average.module[1].num_batches_tracked == 7
    assert 0 < average.module[1].running_mean[0] < 7


def test_the_model_keeps_its_own_weights():
    model = nn.Linear(2, 2)
    average = averaged(model, decay=0.9)
    own = model.weight.detach().clone() + 1
    with torch.no_grad():
        model.weight.copy_(own)
    average.update_parameters(model)
    assert torch.equal(model.weight, own) and not torch.equal(average.module.weight, own)


def test_a_resumed_average_goes_on_with_its_step():
    model, again = nn.Linear(2, 2), nn.Linear(2, 2)
    average = averaged(model, decay=0.9)
    for step in range(6):
        with torch.no_grad():
            model.weight.add_(1.0)
        average.update_parameters(model)
        if step == 2:
            resumed = averaged(again, decay=0.9)
            resumed.module.load_state_dict(average.module.state_dict())
            start_at(resumed, 3)
        elif step > 2:
            resumed.update_parameters(model)
    assert torch.equal(resumed.module.weight, average.module.weight)


def test_the_host_asks_the_device_for_nothing():
    """The meta device has no values to give: neither would a GPU before all its work is done."""
    model = nn.Linear(2, 2, device="meta")
    average = averaged(model, decay=0.9, device=torch.device("meta"))
    average.update_parameters(model)
    assert average.n_averaged == 2 and average.module.weight.is_meta
