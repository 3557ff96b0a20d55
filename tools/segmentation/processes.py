"""mmengine in the processes of one run: they are set up as in every trainer of the project, with Fabric."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from torch import nn


def unwrapped(model: nn.Module) -> Any:
    """Returns the segmentor itself."""
    return model.module if is_model_wrapper(model) else model


def distributed_on_cpu(model: nn.Module, find_unused_parameters: bool) -> nn.Module:
    """Returns the model for several processes on CPUs, where mmengine names a GPU; batch statistics stay each one's."""
    assert not torch.cuda.is_available()
    return MMDistributedDataParallel(
        module=model, broadcast_buffers=False, find_unused_parameters=find_unused_parameters
    )
