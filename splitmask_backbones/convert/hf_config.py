"""config.json of Hugging Face, field by field: used, without effect on the tokens, or refused by name."""

from pathlib import Path
from typing import Any

from splitmask_backbones.errors import UserError

MODELS: dict[str, tuple[str, str]] = {
    "vit": ("ViTConfig", "ViTModel"),
    "deit": ("DeiTConfig", "DeiTModel"),
    "beit": ("BeitConfig", "BeitModel"),
    "data2vec-vision": ("Data2VecVisionConfig", "Data2VecVisionModel"),
    "dinov2": ("Dinov2Config", "Dinov2Model"),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel"),
    "vit_mae": ("ViTMAEConfig", "ViTMAEModel"),
    "vit_msn": ("ViTMSNConfig", "ViTMSNModel"),
    "ijepa": ("IJepaConfig", "IJepaModel"),
}
"""model_type -> transformers' classes. Their models are the reference, built from the file's own config."""

_USED = (
    "model_type hidden_size num_hidden_layers num_attention_heads intermediate_size mlp_ratio layer_norm_eps "
    "image_size patch_size num_channels qkv_bias num_register_tokens use_absolute_position_embeddings use_mean_pooling "
    "use_relative_position_bias use_shared_relative_position_bias layer_scale_init_value"
)
USED = frozenset(_USED.split())
"""Fields that the reference is built from and the encoder is compared with."""

ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu", "gelu_python"),  # the two are one function
    "use_swiglu_ffn": (False,),
    "pruned_heads": ({},),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "use_mask_token": (False, True),
}
"""Fields that change what the model computes: the values that the encoder can be."""

_TRAINING = (
    "hidden_dropout_prob attention_probs_dropout_prob drop_path_rate initializer_range layerscale_value mask_ratio"
)
_HEADS = (
    "encoder_stride pooler_output_size pooler_act vocab_size pool_scales use_auxiliary_head auxiliary_loss_weight "
    "auxiliary_channels auxiliary_num_convs auxiliary_concat_input semantic_loss_ignore_index norm_pix_loss "
    "decoder_num_attention_heads decoder_hidden_size decoder_num_hidden_layers decoder_intermediate_size "
    "num_labels id2label label2id problem_type classifier_dropout"
)
_BACKBONE_CLASS = (
    "out_features out_indices stage_names segmentation_indices add_fpn reshape_hidden_states apply_layernorm"
)
_ABOUT = (
    "_name_or_path name_or_path architectures transformers_version dtype torch_dtype finetuning_task "
    "attn_implementation _attn_implementation license tags"
)
_OF_EVERY_MODEL = (
    "return_dict output_hidden_states output_attentions use_cache torchscript use_bfloat16 tf_legacy_loss "
    "tie_word_embeddings tie_encoder_decoder chunk_size_feed_forward cross_attention_hidden_size tokenizer_class "
    "prefix task_specific_params gradient_checkpointing bos_token_id pad_token_id eos_token_id "
    "sep_token_id decoder_start_token_id max_length min_length do_sample early_stopping num_beams num_beam_groups "
    "diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size "
    "encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores return_dict_in_generate "
    "forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens "
    "begin_suppress_tokens"
)
HARMLESS = frozenset(" ".join((_TRAINING, _HEADS, _BACKBONE_CLASS, _ABOUT, _OF_EVERY_MODEL)).split())
"""Fields without effect on the tokens of a trained model: of training, heads, text generation, and about the file."""


def check_fields(path: Path, config: dict[str, Any]) -> None:
    """Refuses, by name, what the encoder cannot be.

    Args:
        path: of the weights, for the message.
        config: of config.json.

    Raises:
        ValueError: another model_type, an unknown field, or a value that changes what the model computes.
    """
    where = f"{path.parent / 'config.json'}"
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in MODELS:
        said = f"says model_type {kind!r}" if kind is not None else "names no model_type"
        raise UserError(f"{where} {said}: it is not converted; {', '.join(MODELS)} are")
    for name, value in config.items():
        if name in ONLY:
            if value is not None and value not in ONLY[name]:
                raise UserError(
                    f"{where} says {name} {value!r}, which the encoder does not have: only "
                    f"{' or '.join(repr(allowed) for allowed in ONLY[name])} is converted"
                )
        elif name not in USED and name not in HARMLESS and value is not None:
            raise UserError(
                f"{where} has the field {name} ({str(value)[:40]!r}), whose effect on a '{kind}' is not known here: "
                "remove it where it is without effect on the model"
            )


def encoder_arguments(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `VisionTransformer` that the config tells and the tensors do not.

    Args:
        path: of the weights, for the message.
        config: as `check_fields` allows it.

    Raises:
        ValueError: values of a wrong type, or patches that are not square.
    """
    own = library_config(path, config)
    height, width = _pair(path, "image_size", own.image_size)
    patch_height, patch_width = _pair(path, "patch_size", own.patch_size)
    if patch_height != patch_width:
        raise UserError(f"{path.parent / 'config.json'} says patch_size {own.patch_size}: patches have to be square")
    return {
        "num_heads": own.num_attention_heads,
        "layer_norm_eps": own.layer_norm_eps,
        "img_size": [height, width],
        # As Hugging Face's models resize positions: all but this one without antialiasing.
        "position_resize": "antialias" if own.model_type == "dinov2_with_registers" else "plain",
    }


def check_sizes(path: Path, config: dict[str, Any], encoder: dict[str, Any]) -> None:
    """Refuses a config that is not of these weights, before a model of its sizes is built.

    Args:
        encoder: arguments of `VisionTransformer`, from the tensors.

    Raises:
        ValueError: they differ.
    """
    own = library_config(path, config)
    width = "mlp_ratio" if "mlp_ratio" in type(own).__annotations__ else "intermediate_size"  # DINOv2's, or all others'
    ratio = encoder["mlp_ratio"]
    expected = {
        "hidden_size": (own.hidden_size, encoder["embed_dim"]),
        "num_hidden_layers": (own.num_hidden_layers, encoder["depth"]),
        "num_channels": (own.num_channels, encoder["in_chans"]),
        "patch_size": (_pair(path, "patch_size", own.patch_size)[0], encoder["patch_size"]),
        width: (getattr(own, width), ratio if width == "mlp_ratio" else round(encoder["embed_dim"] * ratio)),
        "num_register_tokens": (getattr(own, "num_register_tokens", None), encoder["num_registers"]),
        "image_size": (list(_pair(path, "image_size", own.image_size)), list(encoder["img_size"])),
    }
    for name, (said, found) in expected.items():
        if said is not None and said != found:
            raise UserError(
                f"{path.parent / 'config.json'} says {name} {said}, but the weights have {found}: the two are not of "
                "one model"
            )


def library_config(path: Path, config: dict[str, Any]) -> Any:
    """Returns the config as the library's own class reads it, defaults included.

    Raises:
        ValueError: values that the library does not take.
    """
    import transformers

    try:
        return getattr(transformers, MODELS[config["model_type"]][0]).from_dict(dict(config))
    except Exception as error:  # of its validation: several classes, none of them a ValueError of ours
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{path.parent / 'config.json'} is not one that transformers takes ({reason})") from None


def _pair(path: Path, name: str, size: Any) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise UserError(f"{path.parent / 'config.json'} says {name} {size}: one number or two are needed")
    return sides[0], sides[1]
