"""Encoder files: strict, safe, and every change named."""

import copy
import json
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from splitmask_backbones import VisionTransformer, load_encoder, save_encoder
from splitmask_backbones.adapters import resolve_encoder
from splitmask_backbones.checkpoints import read_encoder_file

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return VisionTransformer(**TINY, use_class_token=True, num_registers=1, drop_path_rate=0.3)


@pytest.fixture
def path(encoder, tmp_path):
    path = tmp_path / "encoder.safetensors"
    save_encoder(encoder, path)
    return path


def test_round_trip(encoder, path):
    loaded = load_encoder(path)
    assert loaded.config == encoder.config
    for (name, a), (other, b) in zip(encoder.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)
    assert len(loaded.load_report.loaded) == len(encoder.state_dict())


def test_metadata_is_one_json_value_with_every_argument(path):
    from safetensors import safe_open

    from splitmask_backbones.vit import ARGUMENTS

    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    assert list(metadata) == ["config"]
    assert set(json.loads(metadata["config"])) == set(ARGUMENTS)


def test_same_encoder_same_bytes(encoder, path, tmp_path):
    save_encoder(encoder, tmp_path / "again.safetensors")
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_sincos_replaces_learned_positions_and_says_so(encoder, path):
    loaded = load_encoder(path, positions="sincos")
    assert loaded.pos_embed is None
    assert "positions='sincos'" in loaded.load_report.summary()
    assert torch.equal(loaded.blocks[0].attn.qkv.weight, encoder.blocks[0].attn.qkv.weight)


def test_another_img_size_resizes_as_at_run_time(encoder, path):
    loaded = load_encoder(path, img_size=(80, 48)).eval()
    assert loaded.pos_embed.shape == (1, 2 + 15, 32)
    x = torch.randn(1, 3, 80, 48)
    torch.testing.assert_close(loaded(x), encoder.eval()(x), atol=1e-5, rtol=1e-4)
    assert "grid (4, 4) to (5, 3)" in loaded.load_report.summary()


def test_tokens_norm_and_relative_positions_by_override(encoder, path):
    loaded = load_encoder(path, use_class_token=False, num_registers=0, final_norm=False, use_rel_pos=True)
    assert torch.equal(loaded.pos_embed, encoder.pos_embed[:, 2:])
    report = loaded.load_report
    assert set(report.dropped) == {"cls_token", "reg_token", "norm.weight", "norm.bias"}
    assert len(report.expected_missing) == 4
    assert all(loaded.get_parameter(name).abs().sum() == 0 for name in report.expected_missing)
    loaded.eval()
    x = torch.randn(1, 3, 64, 64)
    want, _ = encoder.eval().embed(x)
    want = want[:, 2:]
    for block in encoder.blocks:
        want = block(want)
    torch.testing.assert_close(loaded(x), want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "match"),
    [
        ({"embed_dim": 64}, "does not fit"),
        ({"depth": 3}, "does not fit"),
        ({"depth": 1}, "does not fit"),
        ({"patch_size": 8}, "does not fit"),
        ({"num_heads": 4}, "trained with 2"),
        ({"patchsize": 8}, "did you mean 'patch_size'"),
    ],
)
def test_overrides_that_contradict_the_weights(path, overrides, match):
    with pytest.raises(ValueError, match=match):
        load_encoder(path, **overrides)


def test_missing_and_unexpected_keys(path, encoder, tmp_path):
    metadata = {"config": json.dumps(encoder.config)}
    state = encoder.state_dict()
    for name, change in (
        ("missing", lambda s: s.pop("blocks.0.attn.proj.bias")),
        ("extra", lambda s: s.update({"head.weight": torch.zeros(2)})),
    ):
        tensors = dict(state)
        change(tensors)
        save_file(tensors, str(tmp_path / f"{name}.safetensors"), metadata=metadata)
        with pytest.raises(ValueError, match="does not fit"):
            load_encoder(tmp_path / f"{name}.safetensors")


def test_foreign_damaged_and_missing_files(path, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_encoder(tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match="not a file"):
        load_encoder(tmp_path)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        load_encoder(damaged)
    damaged.write_bytes(b"")
    with pytest.raises(ValueError, match="damaged"):
        load_encoder(damaged)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, str(foreign))
    with pytest.raises(ValueError, match="tools/convert"):
        load_encoder(foreign)
    save_file({"x": torch.zeros(1)}, str(foreign), metadata={"config": "__import__('os').abort()"})
    with pytest.raises(ValueError, match="unusable"):
        load_encoder(foreign)
    for config in ("[]", '["depth"]', '{"depth": "2"}', '{"img_size": null}', '{"depth": 0}'):
        save_file({"x": torch.zeros(1)}, str(foreign), metadata={"config": config})
        with pytest.raises(ValueError, match="unusable encoder config"):
            load_encoder(foreign)
    pickled = tmp_path / "model.pth"
    torch.save({"model": {}}, pickled)
    with pytest.raises(ValueError, match="tools/convert"):
        load_encoder(pickled)


def test_old_file_survives_a_failed_write(encoder, path, monkeypatch):
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space"):
        save_encoder(encoder, path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_an_encoder_in_a_wrapper_is_saved_as_itself(encoder, tmp_path):
    save_encoder(encoder, tmp_path / "plain.safetensors")
    for name, wrapper in (("compiled", torch.compile), ("parallel", nn.DataParallel)):
        save_encoder(wrapper(encoder), tmp_path / f"{name}.safetensors")
        assert (tmp_path / f"{name}.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()
        with pytest.raises(ValueError, match="is no VisionTransformer: give the one in it"):
            resolve_encoder(wrapper(encoder))
    with pytest.raises(ValueError, match="a Linear is no VisionTransformer"):
        save_encoder(nn.Linear(2, 2), tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (lambda e: setattr(e, "head", nn.Linear(32, 2)), "head.weight"),
        (lambda e: setattr(e, "norm", nn.Identity()), "norm.weight"),
        (lambda e: setattr(e, "blocks", e.blocks[:1]), "blocks.1."),
        (lambda e: prune.l1_unstructured(e.blocks[0].mlp.fc1, "weight", 0.5), "blocks.0.mlp.fc1.weight"),
    ],
)
def test_what_could_not_be_loaded_again_is_not_saved(encoder, tmp_path, change, first):
    changed = copy.deepcopy(encoder)
    change(changed)
    with pytest.raises(ValueError, match=f"than its constructor makes .*the first is {first}"):
        save_encoder(changed, tmp_path / "encoder.safetensors")
    assert not list(tmp_path.iterdir())


def test_adapters_let_the_file_decide(path):
    encoder = resolve_encoder(weights=path, use_class_token=False, num_registers=0)
    assert (encoder.depth, encoder.config["final_norm"]) == (2, False)
    with pytest.raises(ValueError, match="embed_dim 32, encoder 'vit_small' has 384"):
        resolve_encoder("vit_small", path)
    with pytest.raises(ValueError, match="did you mean 'pyramid'"):
        resolve_encoder("vit_tiny", pyramd="simple")
    with pytest.raises(ValueError, match="name an encoder"):
        resolve_encoder()
    with pytest.raises(ValueError, match="a ready encoder takes no weights"):
        resolve_encoder(encoder, path)
    tapped = resolve_encoder("vit_tiny", pyramid="tapped")
    assert tapped.out_indices == (3, 5, 7, 11)
    assert resolve_encoder("vit_tiny", norm_maps=True).config["final_norm"] is True
    for named in ({"encoder": "vit_tiny"}, {"weights": path}, {"encoder": encoder}):
        with pytest.raises(ValueError, match="final_norm=True: no map passes through the final norm"):
            resolve_encoder(**named, final_norm=True)
    assert resolve_encoder("vit_tiny", final_norm=True, norm_maps=True).config["final_norm"] is True


def test_a_ready_encoder_shares_its_parameters_with_the_adapters(encoder):
    encoder.blocks[0].requires_grad_(False)
    encoder.eval()
    made = resolve_encoder(encoder)  # maps need no norm: no parameter may stay without a gradient
    assert not [name for name, _ in made.named_parameters() if name.startswith("norm.")]
    assert encoder.config["final_norm"] and isinstance(encoder.norm, torch.nn.LayerNorm)
    own = dict(encoder.named_parameters())
    assert made.blocks is encoder.blocks and made.config == encoder.config | {"final_norm": False}
    assert all(parameter is own[name] for name, parameter in made.named_parameters())
    assert [parameter.requires_grad for parameter in made.blocks[0].parameters()] == [False] * 12
    assert made.blocks[1].attn.qkv.weight.requires_grad and not made.training
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(made.forward_maps(x), encoder.forward_maps(x), rtol=0, atol=0)
    assert resolve_encoder(made) is made
    assert resolve_encoder(encoder, norm_maps=True).norm.weight is encoder.norm.weight
    flags = [parameter.requires_grad for parameter in encoder.parameters()]
    changed = resolve_encoder(encoder, drop_path_rate=0.5, use_class_token=False, num_registers=0)
    assert changed.config["drop_path_rate"] == 0.5 and changed.cls_token is None and encoder.cls_token is not None
    assert changed.pos_embed.shape[1] == 16 and changed.blocks[0].norm1.weight is own["blocks.0.norm1.weight"]
    with pytest.raises(ValueError, match="the ready encoder does not fit an encoder with embed_dim=64"):
        resolve_encoder(encoder, embed_dim=64)
    assert [parameter.requires_grad for parameter in encoder.parameters()] == flags
    four = VisionTransformer(**{**TINY, "depth": 5}, out_indices=(0, 1, 2, 4), final_norm=False)
    assert resolve_encoder(four, pyramid="taps") is four
    deep = VisionTransformer(**{**TINY, "depth": 5})
    tapped = resolve_encoder(deep, pyramid="tapped")
    assert tapped.out_indices == (0, 1, 2, 4) and deep.out_indices == (4,)
    assert len(tapped.forward_maps(x)) == 4 and tapped.config["out_indices"] == [0, 1, 2, 4]
    deep.out_indices, deep.grad_checkpointing = (0, 1, 3, 4), True  # attributes that were set later count
    again = resolve_encoder(deep, pyramid="tapped", drop_path_rate=0.1)
    assert again.out_indices == (0, 1, 3, 4) and again.grad_checkpointing
    wide = resolve_encoder(VisionTransformer(**TINY, positions="none").bfloat16(), use_rel_pos=True)
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.bfloat16}


def test_equal_encoders_give_equal_bytes(encoder, tmp_path):
    lineage = [{"file": "a.pth", "sha256": "0" * 64, "family": "dé it"}]
    files = [tmp_path / f"{number}.safetensors" for number in range(20)]
    for file in files:  # the library's own order is another one every few times
        save_encoder(encoder, file, partial="two keys", lineage=lineage)
    assert len({file.read_bytes() for file in files}) == 1
    found = read_encoder_file(files[0])
    assert (found.partial, found.lineage, found.config) == ("two keys", lineage, encoder.config)
    assert all(torch.equal(found.tensors[name], value) for name, value in encoder.state_dict().items())


def test_relative_positions_take_images_of_another_size(tmp_path):
    source = VisionTransformer(**TINY, positions="none", use_rel_pos=True)
    save_encoder(source, tmp_path / "e.safetensors")
    loaded = load_encoder(tmp_path / "e.safetensors", img_size=128)
    assert loaded.config["rel_pos_grid"] == [4, 4] and loaded.grid_size == (8, 8)
    x = torch.randn(1, 3, 128, 128)
    torch.testing.assert_close(loaded.eval()(x), source.eval()(x))


def test_a_file_holds_encoder_pyramid_and_what_is_missing(encoder, tmp_path):
    weight = torch.randn(2, 3)
    save_encoder(encoder, tmp_path / "a.safetensors", {"levels.0.lateral.weight": weight}, "two keys are missing")
    file = read_encoder_file(tmp_path / "a.safetensors")
    assert file.config == encoder.config and file.tensors.keys() == encoder.state_dict().keys()
    assert list(file.pyramid) == ["levels.0.lateral.weight"] and torch.equal(*file.pyramid.values(), weight)
    assert file.partial == "two keys are missing"
    loaded = load_encoder(tmp_path / "a.safetensors")
    assert loaded.load_report.warning.endswith("two keys are missing") and loaded.pyramid_state.keys() == {
        *file.pyramid
    }


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"depth": 10**7}, "depth 10000000, but the file holds 2 blocks"),  # building it first would take all memory
        ({"depth": None}, "depth None, but the file holds 2 blocks"),
        ({"img_size": []}, "an unusable encoder config"),
        ({"img_size": {}}, "an unusable encoder config"),
        ({"num_heads": "two"}, "an unusable encoder config"),
        ({"out_indices": [{}]}, "an unusable encoder config"),
    ],
)
def test_a_config_that_is_not_an_encoders(encoder, tmp_path, changes, match):
    metadata = {"config": json.dumps({**encoder.config, **changes})}
    save_file(encoder.state_dict(), tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(ValueError, match=rf"a\.safetensors holds .*{match}"):
        load_encoder(tmp_path / "a.safetensors")


def test_a_missing_folder_is_named(encoder, tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"there is no folder {tmp_path / 'no'}")):
        save_encoder(encoder, tmp_path / "no" / "encoder.safetensors")
    assert not (tmp_path / "no").exists()
