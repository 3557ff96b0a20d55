"""A tiny DINO; needs lightly."""

import torch

from pretrain.methods.dino import Dino
from splitmask_backbones import VisionTransformer

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "use_class_token": True}


def build(**kwargs):
    torch.manual_seed(0)
    values = {"num_outputs": 16, "momentum": 0.9, "temperature": 0.04, "total_steps": 10, "frozen_steps": 2}
    method = Dino(VisionTransformer(**SIZES, drop_path_rate=0.3), VisionTransformer(**SIZES), **{**values, **kwargs})
    for parameter in method.student.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return method
