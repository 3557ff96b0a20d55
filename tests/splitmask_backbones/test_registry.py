"""splitmask_backbones.registry: names to encoders and back."""

from __future__ import annotations

import pytest

from splitmask_backbones.registry import (
    ENCODERS,
    create_encoder,
    encoder_name,
    encoder_sizes,
    list_encoders,
    named_sizes,
)


def test_the_names_of_the_contract_from_small_to_large() -> None:
    assert list_encoders() == ["vit_tiny", "vit_small", "vit_base", "vit_large"]
    assert all(sizes["embed_dim"] == 64 * sizes["num_heads"] for sizes in ENCODERS.values())


@pytest.mark.parametrize("name", ["vit_tiny", "vit_small"])
def test_an_encoder_has_the_sizes_of_its_name_and_the_other_way_round(name: str) -> None:
    encoder = create_encoder(name, img_size=32, use_class_token=True)
    assert {key: encoder.config[key] for key in ENCODERS[name]} == ENCODERS[name]
    assert encoder_name(encoder.config) == name


@pytest.mark.parametrize("change", [{"patch_size": 8}, {"depth": 11}, {"num_heads": 12}, {"embed_dim": 512}])
def test_other_sizes_have_no_name(change: dict[str, int]) -> None:
    assert encoder_name({**ENCODERS["vit_small"], **change}) is None


def test_a_config_that_lacks_a_size_has_no_name() -> None:
    assert encoder_name({"embed_dim": 384, "depth": 12}) is None


def test_overrides_win_and_unknown_names_come_with_the_nearest() -> None:
    assert create_encoder("vit_tiny", img_size=32, depth=1).depth == 1
    with pytest.raises(ValueError, match="unknown encoder 'vit_smal': did you mean 'vit_small'"):
        create_encoder("vit_smal")
    with pytest.raises(ValueError, match="unknown encoder argument 'dept': did you mean 'depth'"):
        create_encoder("vit_tiny", dept=3)


def test_a_width_and_a_depth_of_ones_own() -> None:
    assert encoder_sizes("vit_tiny") == ENCODERS["vit_tiny"]
    sizes = encoder_sizes("vit_tiny", 96, 6)
    assert sizes == {"patch_size": 16, "embed_dim": 96, "depth": 6, "num_heads": 3}
    with pytest.raises(ValueError, match="embed_dim 100 must be a multiple of 12: vit_tiny has 3 heads"):
        encoder_sizes("vit_tiny", 100)
    with pytest.raises(ValueError, match="unknown encoder 'vit'"):
        encoder_sizes("vit", 96)


@pytest.mark.parametrize("name", list(ENCODERS))
def test_sizes_are_named_as_they_are_given(name: str) -> None:
    assert named_sizes(ENCODERS[name]) == {"encoder": name}
    assert named_sizes(encoder_sizes(name, depth=5)) == {"encoder": name, "depth": 5}
    assert named_sizes({**ENCODERS[name], "patch_size": 8}) is None


def test_a_width_of_ones_own_is_named_after_the_encoder_with_its_heads() -> None:
    assert named_sizes(encoder_sizes("vit_small", 96, 6)) == {"encoder": "vit_small", "embed_dim": 96, "depth": 6}
