"""mmseg's segmentor as the training loop takes it: a batch in, named losses out."""

from __future__ import annotations

import importlib
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules
from torch import Tensor, nn
from torch.nn import functional

import splitmask_backbones.mmseg  # noqa: F401 (registers the backbone and the optimizer constructor)
from pretrain.training.distributed import is_distributed
from splitmask_backbones.errors import UserError, nearest
from splitmask_backbones.vit import VisionTransformer

OWN_IMPORTS = ("splitmask_backbones.mmseg", "tools.segmentation.mmengine_runner")
"""`custom_imports` of seg_configs/: the first is imported here, the second is for mmseg's own tools."""

REGISTRIES = {registry.name: registry for registry in (MODELS, OPTIMIZERS, OPTIM_WRAPPERS, OPTIM_WRAPPER_CONSTRUCTORS)}
"""What a config's types are looked up in, by the name in mmengine's errors."""


@MODELS.register_module()
class ClassWeightedCrossEntropy(nn.Module):
    """The mean over labelled pixels, each weighted by its class.

    Args:
        loss_weight: factor on the loss.
        loss_name: its name in the log; mmseg sums what starts with "loss".
    """

    _weights: Tensor

    def __init__(self, class_weight: Sequence[float], loss_weight: float = 1.0, loss_name: str = "loss_ce") -> None:
        super().__init__()
        self.class_weight, self.loss_weight, self.loss_name = list(class_weight), loss_weight, loss_name
        # On the device with the model: a copy in each step would wait for all that the device has yet to do.
        self.register_buffer("_weights", torch.tensor(self.class_weight), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None, ignore_index: int = 255) -> Tensor:
        """Returns the loss of float `(B, classes, H, W)` and int64 `(B, H, W)`; 0 where every pixel is ignored.

        `weight`, float `(B, H, W)`, comes from mmseg's pixel samplers.
        """
        class_weight = self._weights.to(logits.dtype)
        loss = functional.cross_entropy(logits, labels, class_weight, ignore_index=ignore_index, reduction="none")
        labelled = labels != ignore_index
        total = (class_weight[labels.where(labelled, 0)] * labelled).sum()
        if weight is not None:
            loss = loss * weight
        return self.loss_weight * loss.sum() / total.clamp(min=1e-12)


class Segmentor(nn.Module):
    """A segmentor of mmseg.

    Attributes:
        model: mmseg's own.
        metric_names: what the loop logs; `pixel_accuracy` in 0-1.
    """

    metric_names = ("loss", "pixel_accuracy")

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    @property
    def encoder(self) -> VisionTransformer:
        """The backbone's encoder."""
        return self.model.backbone.encoder

    def to(self, *args: Any, **kwargs: Any) -> Segmentor:
        """Moves it; mmengine's preprocessor learns its device only when the segmentor itself is moved."""
        self.model.to(*args, **kwargs)
        return super().to(*args, **kwargs)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Returns the sum of mmseg's losses, and the share of right pixels where the head reports it.

        Args:
            batch: `inputs` (images uint8 `(3, H, W)`, BGR) and `data_samples`, as mmseg's pipelines pack them.
        """
        data = self.model.data_preprocessor(batch, True)
        total, values = self.model.parse_losses(self.model(**data, mode="loss"))
        accuracy = values.get("decode.acc_seg")
        return {"loss": total, **({} if accuracy is None else {"pixel_accuracy": accuracy.mean() / 100})}

    def predict(self, batch: dict[str, Any]) -> list[Any]:
        """Returns mmseg's samples with `pred_sem_seg`, at the size of the original images."""
        return self.model.test_step(batch)


def quiet_warnings() -> None:
    """Hides the host frameworks' deprecation warnings and messages: the user can do nothing about them."""
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    for module in ("mmengine", "mmcv", "mmseg", "torch", "importlib"):
        warnings.filterwarnings("ignore", module=rf"{module}\b")
    warnings.filterwarnings("ignore", category=FutureWarning)


def _of_the_backbone(found: re.Match[str]) -> str:
    return "(" + ", ".join(f"model.backbone.{pair}" for pair in found[1].split(", ")) + ")"


@contextmanager
def config_errors() -> Iterator[None]:
    """Turns the registries' answers to a wrong name or argument in the config into the user's error."""
    try:
        yield
    except UserError as error:
        if "name the encoder of the file" in str(error):
            text = re.sub(r"\((encoder=[^)]*)\)", _of_the_backbone, str(error))
            raise UserError(text.replace("with encoder=none", "with model.backbone.encoder=none")) from None
        raise
    except (TypeError, KeyError, AssertionError, AttributeError) as error:
        text = " ".join(str(error).split())[:300]
        unknown = re.search(r"'?(\w+) is not in the \w+::([\w ]+) registry", " ".join(str(error).split()))
        if unknown is not None and unknown[2] in REGISTRIES:
            registry = REGISTRIES[unknown[2]]
            names = {*registry.module_dict, *(registry.parent.module_dict if registry.parent else ())}
            raise UserError(f"unknown type '{unknown[1]}' in the config: {nearest(unknown[1], names)}") from error
        raise UserError(f"the config does not build a segmentor ({text}): correct its values") from error


def import_modules(config: dict[str, Any]) -> None:
    """Imports a config's `custom_imports`, so that what they register is known; our own are there already.

    Raises:
        ValueError: one of them cannot be imported.
    """
    imports = (config.get("custom_imports") or {}).get("imports") or []
    for name in [imports] if isinstance(imports, str) else imports:
        if name in OWN_IMPORTS:
            continue
        try:
            importlib.import_module(name)
        except Exception as error:  # of the user's module: anything
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise UserError(
                f"custom_imports: {name} cannot be imported ({reason}): correct it, or let PYTHONPATH name its folder"
            ) from error


def build_segmentor(model: dict[str, Any]) -> Segmentor:
    """Returns the segmentor of a derived config's `model`, with mmseg's initialisation of the heads.

    Batch statistics are those of all GPUs where there are several (mmseg's habit); on CPUs each process has its own.

    Raises:
        ValueError: the config names something that does not exist.
    """
    quiet_warnings()
    register_all_modules(init_default_scope=True)
    with config_errors():
        built = MODELS.build(ConfigDict(model))
        torch.empty((), dtype=torch.int64).random_()  # mmengine's runner drew a seed here: heads start as under it
        built.init_weights()
    if is_distributed() and dist.get_backend() != dist.Backend.GLOO:
        built = nn.SyncBatchNorm.convert_sync_batchnorm(built)
    return Segmentor(built)


def build_optimizer(segmentor: Segmentor, optim_wrapper: dict[str, Any]) -> torch.optim.Optimizer:
    """Returns the optimizer of a config's `optim_wrapper`, made by the constructor that it names.

    Raises:
        ValueError: the config names something that does not exist.
    """
    config = dict(optim_wrapper)
    if "accumulative_counts" in config:
        raise UserError("optim_wrapper.accumulative_counts has no effect here: use accumulate=N")
    if config.get("type", "OptimWrapper") != "OptimWrapper":
        raise UserError(
            f"optim_wrapper.type={config['type']} has no effect here: use --precision bf16, or OptimWrapper"
        )
    constructor = {
        "type": config.pop("constructor", "DefaultOptimWrapperConstructor"),
        "paramwise_cfg": config.pop("paramwise_cfg", None),
        "optim_wrapper_cfg": {"type": "OptimWrapper", **config},
    }
    with config_errors():
        return OPTIM_WRAPPER_CONSTRUCTORS.build(constructor)(segmentor.model).optimizer
