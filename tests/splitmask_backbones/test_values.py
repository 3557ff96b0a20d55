"""splitmask_backbones.values: the words of key=value."""

import pytest

from splitmask_backbones import create_encoder
from splitmask_backbones.values import WITH_NONE, parse_value


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("window_size", "14", 14),
        ("model.backbone.window_block_indexes", "0,2", (0, 2)),
        ("use_class_token", "False", False),
        ("grad_checkpointing", "true", True),
        ("layer_scale", "none", None),
        ("a.b", "NULL", None),
        ("encoder", "vit_small", "vit_small"),
        ("model.backbone.positions", "none", "none"),
        ("norm", "None", "none"),
    ],
)
def test_a_value_is_what_a_user_means(key, text, value):
    found = parse_value(key, text)
    assert (found, type(found)) == (value, type(value))


def test_an_encoder_without_positions_can_be_asked_for():
    given = {key: parse_value(key, "none") for key in ("positions", "layer_scale", "relative_position_bias")}
    assert set(given) - set(WITH_NONE) == {"layer_scale"}
    assert create_encoder("vit_tiny", depth=1, **given).pos_embed is None
