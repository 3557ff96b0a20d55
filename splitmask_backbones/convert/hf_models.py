"""Hugging Face's own models: built from a file's config to compare with, and from an encoder to write."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from splitmask_backbones.convert.hf_config import MODELS, library_config
from splitmask_backbones.convert.libraries import need
from splitmask_backbones.errors import UserError
from splitmask_backbones.imagenet_stats import IMAGENET_MEAN, IMAGENET_STD

MAE = "vit_mae"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers from writing to the screen, and leaves its settings as they were."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def hf_reference(path: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """Returns a call from images to the last hidden state of the model that a folder of Hugging Face is of.

    Args:
        path: of the weights, for messages.
        config: of config.json, whole: the model is built from it and from nothing else.
        tensors: by the names in the file, without its heads.
    """
    need("transformers")
    own = library_config(path, config)
    own.return_dict = True  # how its outputs are packed
    if own.model_type == MAE:
        own.mask_ratio = 0.0  # of its training: all patches are encoded
    return hf_tokens(own, tensors)


def hf_tokens(config: Any, tensors: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """Returns a call from images to the last hidden state of Hugging Face's own model with these tensors.

    They go through a folder and `from_pretrained`, because the names in files are not those of all versions' modules.

    Args:
        config: of transformers, of one of MODELS.
        tensors: by the names in files.
    """
    import transformers

    model_class = getattr(transformers, MODELS[config.model_type][1])
    state = {name: value.contiguous() for name, value in tensors.items() if not name.endswith("position_index")}
    poolers = {"add_pooling_layer": False} if "add_pooling_layer" in model_class.__init__.__code__.co_varnames else {}
    with tempfile.TemporaryDirectory() as folder, _quiet():
        config.save_pretrained(folder)
        save_file(state, str(Path(folder) / "model.safetensors"), metadata={"format": "pt"})
        model, found = model_class.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True, **poolers
        )
    ignored = ("position_index", "mask_token")
    wrong = [key for key in (*found["missing_keys"], *found["unexpected_keys"]) if not key.endswith(ignored)]
    if wrong or found["mismatched_keys"]:
        first = (wrong or [str(found["mismatched_keys"])])[0]
        raise UserError(f"{type(model).__name__} does not take the tensors: {len(wrong)} names differ, such as {first}")
    model.eval()

    @torch.no_grad()
    def forward(images: Tensor) -> Tensor:
        if config.model_type != MAE:
            return model(images).last_hidden_state
        count = model.embeddings.patch_embeddings.num_patches
        order = torch.arange(count, dtype=torch.float32).expand(len(images), count)
        # It sorts the patches by this noise.
        return model(images, noise=order).last_hidden_state

    return forward


def config_for(encoder: dict[str, Any], mean_pooling: bool = False) -> Any:
    """Returns the config of the model of Hugging Face that an encoder is.

    That is ViTModel; BeitModel with BEiT's bias or LayerScale; IJepaModel, the same ViT, without a class token.

    Args:
        encoder: arguments of `VisionTransformer`.
        mean_pooling: of BeitModel, which then has no final norm.
    """
    need("transformers")
    from transformers import BeitConfig, IJepaConfig, ViTConfig

    height, width = encoder["img_size"]
    if height != width:
        raise UserError(f"Hugging Face's models are square, the encoder's img_size is {encoder['img_size']}")
    shared: dict[str, Any] = {
        "hidden_size": encoder["embed_dim"],
        "num_hidden_layers": encoder["depth"],
        "num_attention_heads": encoder["num_heads"],
        "intermediate_size": int(encoder["embed_dim"] * encoder["mlp_ratio"]),
        "image_size": height,
        "patch_size": encoder["patch_size"],
        "num_channels": encoder["in_chans"],
        "layer_norm_eps": encoder.get("layer_norm_eps", 1e-6),
    }
    if is_beit(encoder):
        kind = encoder.get("relative_position_bias", "none")
        config: Any = BeitConfig(
            **shared,
            use_absolute_position_embeddings=encoder["positions"] != "none",
            use_relative_position_bias=kind == "per_block",
            use_shared_relative_position_bias=kind == "shared",
            use_mean_pooling=mean_pooling,
            layer_scale_init_value=encoder.get("layer_scale") or 0.0,
        )
    else:
        kind_of = ViTConfig if encoder["use_class_token"] else IJepaConfig
        config = kind_of(**shared, qkv_bias=encoder["qkv_bias"])
    config.architectures = [MODELS[config.model_type][1]]
    return config


def is_beit(config: dict[str, Any]) -> bool:
    """Returns whether an encoder has what BEiT adds to a ViT."""
    return config.get("relative_position_bias", "none") != "none" or config.get("layer_scale") is not None


def processor_for(encoder: dict[str, Any], pixel_stats: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns preprocessor_config.json: images to the encoder's size, pixels normalised as in its training.

    None for other than three channels, of which the mean is not known.

    Args:
        encoder: arguments of `VisionTransformer`.
        pixel_stats: "image_mean" and "image_std" of the weights' own training; ImageNet's by default.
    """
    if encoder["in_chans"] != 3:
        return None
    height, width = encoder["img_size"]
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        **(pixel_stats or {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}),
    }
