"""MMSegmentation adapter: `custom_imports = dict(imports=['splitmask_backbones.mmseg'])` registers its classes.

`SplitMaskViT` is a backbone with four maps for UPerHead and the like; `SplitMaskLayerDecay` builds the optimizer with
layer-wise learning rates. They only translate: encoder, pyramid and groups are those of every other framework.
`SlidingEncoderDecoder` (in mmseg_slide.py) and `SegResize` (in mmseg_resize.py) are registered along with them.
"""

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from splitmask_backbones import _mmcv_stub
from splitmask_backbones._yapf_cache import import_yapf
from splitmask_backbones.adapters import check_whole, parameters_of, resolve_encoder
from splitmask_backbones.errors import UserError, check_choice
from splitmask_backbones.param_groups import param_groups
from splitmask_backbones.pyramid import build_pyramid
from splitmask_backbones.vit import VisionTransformer

try:
    _mmcv_stub.install()  # before mmseg, which cannot be imported with mmcv-lite alone
    import_yapf()
    import mmseg.models  # noqa: F401 (registers UPerHead and the others)
    from mmengine.logging import print_log
    from mmengine.model import BaseModule, is_model_wrapper
    from mmengine.optim import OptimWrapper
    from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
    from mmseg.registry import MODELS

    from splitmask_backbones.mmseg_resize import SegResize
    from splitmask_backbones.mmseg_slide import COARSEST, SlidingEncoderDecoder
except ImportError as error:
    raise ImportError(
        f"splitmask_backbones.mmseg needs mmsegmentation, mmengine and mmcv-lite (or mmcv), and {error}: "
        "install the extra 'segmentation'"
    ) from error

__all__ = ["SegResize", "SlidingEncoderDecoder", "SplitMaskLayerDecay", "SplitMaskViT"]


@MODELS.register_module()
class SplitMaskViT(BaseModule):
    """The encoder under a feature pyramid: four maps at strides 4, 8, 16, 32.

    The weights are loaded when the module is built, strictly, and mmengine's log has the report; the framework's
    `init_weights` neither repeats nor undoes that. Levels that no head reads (a single-scale head has one `in_index`)
    get no gradient: several processes then need `find_unused_parameters=True`.

    Args:
        encoder: a name such as "vit_small", or a ready `VisionTransformer`; None lets the weights file decide.
        pyramid: "simple", "tapped" or "taps".
        out_channels: channels of each map; with "taps" they have the encoder's width, whatever is given.
        init_cfg: `dict(type='Pretrained', checkpoint=FILE)` with an encoder file, as for any mmseg backbone.
        weights: the same file, as in the other adapters.
        norm: of the pyramid: "LN", "BN", "SyncBN" or "none".
        **overrides: keyword arguments of `VisionTransformer`.

    Attributes:
        encoder: the `VisionTransformer`.
        pyramid: the pyramid module.

    Raises:
        ValueError: unknown names or keys, or a file that does not fit.
    """

    def __init__(
        self,
        encoder: str | VisionTransformer | None = None,
        pyramid: str = "simple",
        out_channels: int = 256,
        init_cfg: Mapping[str, Any] | None = None,
        weights: str | Path | None = None,
        norm: str = "LN",
        **overrides: Any,
    ) -> None:
        super().__init__(init_cfg=None)  # with an init_cfg, mmengine would load it again, non-strictly
        checkpoint = _checkpoint_of(init_cfg)
        if checkpoint is not None and weights is not None:
            raise UserError(f"init_cfg names {checkpoint} and weights names {weights}: give one of them")
        self.encoder = resolve_encoder(
            encoder, weights or checkpoint, pyramid=pyramid, own=parameters_of(type(self)), **overrides
        )
        self.pyramid = build_pyramid(pyramid, self.encoder, out_channels, norm=norm)
        if self.encoder.load_report is not None:
            print_log(self.encoder.load_report.summary(), "current")
        self.register_load_state_dict_pre_hook(_require_whole)
        self._told = False

    def init_weights(self) -> None:
        """Does nothing: encoder and pyramid are initialised, or loaded, when they are built."""
        self._is_init = True

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Returns four maps `(B, C, ceil(H / stride), ceil(W / stride))` of images `(B, 3, H, W)`."""
        if (x.shape[-2] % COARSEST or x.shape[-1] % COARSEST) and not self._told:
            self._told = True
            print_log(
                f"SplitMaskViT: images of {x.shape[-2]} x {x.shape[-1]} pixels are no multiples of {COARSEST}: mmseg's "
                "heads take maps that reach out of the image for maps of the image: train on crops of such multiples, "
                "and test with model type SlidingEncoderDecoder, or data_preprocessor.test_cfg=dict(size_divisor=32)",
                "current",
                logging.WARNING,
            )
        return tuple(self.pyramid(self.encoder.forward_maps(x), image_size=(x.shape[-2], x.shape[-1])))


def _require_whole(backbone: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Raises ValueError for a checkpoint of another backbone, which mmengine would load as far as it fits.

    One that holds none at all (of a head, say) is not about the backbone.
    """
    own = {f"{prefix}{name}": value for name, value in backbone.state_dict().items()}
    given = [name for name in state if name.startswith(prefix)]
    if prefix and not given:
        return
    check_whole(
        [name for name in own if name not in state],
        [name for name in given if name not in own],
        [name for name, value in own.items() if name in state and state[name].shape != value.shape],
        "build it as it was trained, with the same encoder file (weights=FILE) or the same encoder, pyramid, img_size "
        "and further arguments",
    )


def _checkpoint_of(init_cfg: Mapping[str, Any] | None) -> str | None:
    if init_cfg is None:
        return None
    if init_cfg.get("type") != "Pretrained" or set(init_cfg) != {"type", "checkpoint"}:
        raise UserError(
            f"SplitMaskViT: init_cfg {dict(init_cfg)} is not understood: "
            "use dict(type='Pretrained', checkpoint='encoder.safetensors') or None"
        )
    return init_cfg["checkpoint"]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class SplitMaskLayerDecay:
    """Builds the optimizer with `splitmask_backbones.param_groups`: the depth is read from the encoder.

    mmseg's own constructor picks its rule by class name and gives this encoder's blocks the head's learning rate.

    Args:
        optim_wrapper_cfg: the config's `optim_wrapper`, with `optimizer`.
        paramwise_cfg: `dict(decay_rate=0.65)`; 1.0 (the default) is one lr for all.

    Raises:
        ValueError: an unknown key in `paramwise_cfg`, or no lr.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        self.wrapper_cfg = copy.deepcopy(dict(optim_wrapper_cfg))
        self.optimizer_cfg = dict(self.wrapper_cfg.pop("optimizer"))
        for key in paramwise_cfg or {}:
            check_choice("paramwise_cfg key of SplitMaskLayerDecay", key, ["decay_rate"])
        self.decay_rate = float((paramwise_cfg or {}).get("decay_rate", 1.0))
        if "lr" not in self.optimizer_cfg:
            raise UserError("SplitMaskLayerDecay needs optim_wrapper.optimizer.lr: the lr of the last layer")

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Returns the optim wrapper for a segmentor (or any module) that holds the encoder."""
        if is_model_wrapper(model):
            model = model.module  # type: ignore[assignment]
        has_own = "weight_decay" not in self.optimizer_cfg  # the optimizer's, in the groups that have one
        weight_decay = 1.0 if has_own else self.optimizer_cfg["weight_decay"]
        groups = param_groups(model, self.optimizer_cfg["lr"], weight_decay, self.decay_rate)
        if has_own:
            groups = [{k: v for k, v in group.items() if k != "weight_decay" or v == 0} for group in groups]
        optimizer = OPTIMIZERS.build({**self.optimizer_cfg, "params": groups})
        return OPTIM_WRAPPERS.build({"type": "OptimWrapper", **self.wrapper_cfg, "optimizer": optimizer})
