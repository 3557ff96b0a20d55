"""What a monitor measures, against hand-computed values, and that it changes nothing of the method."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.data.sources import open_source, split_holdout
from pretrain.methods.build import build_method, build_views
from pretrain.methods.swaps import fixed_cycle
from pretrain.monitoring import monitor as monitor_module
from pretrain.monitoring.attention import attention_entropy
from pretrain.monitoring.labelled import open_labelled
from pretrain.monitoring.monitor import Monitor, color_rank1, effective_rank, fixed_batches, match_rank1, whole_image
from pretrain.recipes import get_recipe
from pretrain.training.distributed import make_fabric
from tests.helpers.labelled import COLOURS, labelled_folder

METHODS = ["splitmask", "beit", "dino"]


def test_effective_rank_by_hand():
    cross = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    assert effective_rank(cross + 5) == pytest.approx(2.0)  # a common offset does not count
    assert effective_rank(torch.tensor([[1.0, 2], [2, 4], [3, 6]])) == pytest.approx(1.0)
    assert effective_rank(torch.full((5, 4), 0.3)) == 0.0
    shares = np.array([3, 1]) / 4  # singular values 3 sqrt(2) and sqrt(2)
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert effective_rank(cross * torch.tensor([3.0, 1, 1])) == pytest.approx(expected)


def test_match_rank1_equals_a_loop():
    torch.manual_seed(0)
    a, b = torch.randn(12, 3), torch.randn(12, 3)
    b += 1.5 * a
    cosine = torch.nn.functional.cosine_similarity
    hits = 0
    for i in range(12):
        hits += int(max(range(12), key=lambda j: cosine(a[i], b[j], dim=0).item()) == i)
        hits += int(max(range(12), key=lambda j: cosine(a[j], b[i], dim=0).item()) == i)
    assert 0 < hits < 24
    assert match_rank1(a, b) == pytest.approx(hits / 24)
    assert match_rank1(a, a * torch.rand(12, 1)) == 1.0


def test_color_rank1_weighs_channels_alike():
    torch.manual_seed(0)
    color = torch.randn(12, 3)
    scale, offset = torch.tensor([1.0, 100, 0.01]), torch.tensor([5.0, 0, -3])
    assert color_rank1(color * scale + offset, color * scale + offset) == 1.0
    other = color + 0.3 * torch.randn(12, 3)
    expected = color_rank1(color, other)
    assert 0.3 < expected < 1
    assert color_rank1(color * scale + offset, other * scale + offset) == pytest.approx(expected)
    assert 0 <= color_rank1(torch.zeros(4, 3), torch.zeros(4, 3)) <= 1  # black images: no division by zero


def test_looks_are_at_the_same_crops(image_folder):
    recipe = get_recipe("tiny")
    views = build_views(recipe, open_source(image_folder), 16)
    one, two = fixed_batches(views, 5, 0), fixed_batches(views, 5, 0)
    assert sum(len(batch["image"]) for batch in one) == 5
    assert all(torch.equal(a[key], b[key]) for a, b in zip(one, two, strict=True) for key in a)
    tall = np.zeros((90, 60, 3), dtype=np.uint8)
    tall[15:75] = 200
    whole = whole_image(64, Image.fromarray(tall), np.random.default_rng(0))["image"]
    assert whole.shape == (3, 64, 64) and (whole[:, 3:-3] == 200).all()  # the central square


def build(method, images, tmp_path, **kwargs):
    if method == "dino":
        pytest.importorskip("lightly", reason="the extra 'dino' is not installed")
    recipe = get_recipe("tiny").override({"method": method})
    views = build_views(recipe, images, 16)
    built = build_method(recipe, views, tmp_path, 0, total_steps=20, steps_per_epoch=5)
    values = {"holdout": None, "labelled": None, "num_images": 7, "fabric": make_fabric("32"), "workers": 0}
    return built, Monitor(built, recipe, images, **{**values, **kwargs}), recipe


@pytest.mark.parametrize("method", METHODS)
def test_a_look_changes_nothing_and_is_repeatable(method, image_folder, tmp_path):
    images, kept = split_holdout(open_source(image_folder), 0.4)
    labelled = open_labelled(labelled_folder(tmp_path / "l", COLOURS), 50)
    built, monitor, _ = build(method, images, tmp_path, holdout=kept, labelled=labelled)
    built.train()
    before, modes = copy.deepcopy(built.state_dict()), [module.training for module in built.modules()]
    seen, again = monitor(), monitor()
    assert {k: v for k, v in seen.items() if k != "seconds"} == {k: v for k, v in again.items() if k != "seconds"}
    assert all(torch.equal(value, before[name]) for name, value in built.state_dict().items())
    assert modes == [module.training for module in built.modules()] and any(modes)
    assert all(p.grad is None for p in built.parameters())
    loss = "loss_large" if method == "dino" else "loss_inpaint"
    assert seen[f"train_{loss}"] != seen[f"holdout_{loss}"]
    assert ("holdout_match_rank1" in seen) == ("train_color_rank1" in seen) == (method == "splitmask")
    assert seen["predictions_words_used"] >= 1 and 0 <= seen["train_token_accuracy"] <= 1
    assert 1 < seen["effective_rank"] <= 6  # 7 images at most
    assert 0.9 < seen["attention_entropy"] <= 1  # not trained
    assert seen["knn_accuracy"] == 1.0  # of three colours
    assert all(isinstance(value, float | int) for value in seen.values())


def test_under_bf16_only_the_model_is_rounded(image_folder, tmp_path, monkeypatch):
    """Cosines between nearly equal descriptors and features are compared in float32, whatever made these."""
    images, labelled = open_source(image_folder), open_labelled(labelled_folder(tmp_path / "l", COLOURS), 50)
    built, monitor, _ = build("splitmask", images, tmp_path, labelled=labelled, fabric=make_fabric("bf16"))
    rounded = {}

    def watch(owner, name):
        original = getattr(owner, name)

        def watched(*args):
            rounded[name] = torch.is_autocast_enabled("cpu")
            return original(*args)

        monkeypatch.setattr(owner, name, watched)

    for owner, names in (
        (built, ["observe"]),
        (built.encoder, ["forward_maps"]),
        (monitor_module, ["match_rank1", "color_rank1", "effective_rank", "knn_votes"]),
    ):
        for name in names:
            watch(owner, name)
    monitor()
    assert {name for name, low in rounded.items() if low} == {"observe", "forward_maps"} and len(rounded) == 6


@pytest.mark.parametrize("method", ["splitmask", "beit"])
def test_numbers_equal_those_of_the_losses(method, image_folder, tmp_path):
    images = open_source(image_folder)
    built, monitor, recipe = build(method, images, tmp_path)
    seen = monitor()
    (batch,) = fixed_batches(build_views(recipe, images, 16), 7, 0)
    with torch.no_grad():
        values = built.eval()(batch)
    assert seen["train_loss_inpaint"] == pytest.approx(values["loss_inpaint"].item(), rel=1e-5)
    assert seen["train_token_accuracy"] == pytest.approx(values["token_accuracy"].item())
    with torch.no_grad():
        targets = built.observe(batch)["targets"]
        shares = targets.bincount()[targets] / len(targets)  # of each patch's own word
    constant = -shares.double().log().mean().item()
    assert seen["train_inpaint_gain"] == pytest.approx(constant - values["loss_inpaint"].item(), rel=1e-4)
    assert seen["train_inpaint_gain"] < 0  # not trained
    gains = {"train_query_gain", "train_neighbour_gain"}
    assert (gains & set(seen)) == (gains if method == "splitmask" else set())
    assert not any("swapped" in name for name in seen)
    whole = torch.stack([whole_image(64, images.read(i * 12 // 7), None)["image"] for i in range(7)])
    with torch.no_grad():
        built.encoder.norm = torch.nn.Identity()
        features = built.encoder(built.normalize(whole)).mean(1)
    assert seen["effective_rank"] == pytest.approx(effective_rank(features), rel=1e-4)


@pytest.mark.parametrize("method", ["splitmask", "beit"])
def test_batches_count_by_their_images(method, image_folder, tmp_path, monkeypatch):
    """Seven images as four and three: the loss is that of all in one pass."""
    images = open_source(image_folder)
    built, monitor, recipe = build(method, images, tmp_path)
    (batch,) = fixed_batches(build_views(recipe, images, 16), 7, 0)
    with torch.no_grad():
        built.head.weight.mul_(100)  # images differ

        def loss(part):
            return built.eval()({name: value[part] for name, value in batch.items()})["loss_inpaint"].item()

        expected, halves = loss(slice(7)), (loss(slice(4)) + loss(slice(4, 7))) / 2
    monkeypatch.setattr(monitor_module, "BATCH", 4)
    assert monitor()["train_loss_inpaint"] == pytest.approx(expected, rel=1e-5)
    assert halves != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("narrow", [0, 5])
def test_attention_entropy_is_that_of_the_block_with_the_least(narrow, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(monitor_module, "BATCH", 4)  # 4 and 3 images, which count as such
    images = open_source(image_folder)
    built, monitor, _ = build("beit", images, tmp_path)
    encoder = built.encoder.eval()
    of_blocks = []
    with torch.no_grad():
        encoder.blocks[narrow].attn.qkv.weight.mul_(30)
        whole = torch.stack([whole_image(64, images.read(i * 12 // 7), None)["image"] for i in range(7)])
        tokens, _ = encoder.embed(built.normalize(whole))
        for block in encoder.blocks:
            of_blocks.append(attention_entropy(block.attn, block.norm1(tokens)).item())
            tokens = block(tokens)
    assert monitor()["attention_entropy"] == pytest.approx(of_blocks[narrow], rel=1e-4)
    assert min(of_blocks[:narrow] + of_blocks[narrow + 1 :]) > of_blocks[narrow] + 0.1


def test_no_run_trains_on_the_fixed_crops(image_folder):
    views = build_views(get_recipe("tiny"), open_source(image_folder), 16)
    (batch,) = fixed_batches(views, 7, 0)
    for image, index in zip(batch["image"], (i * 12 // 7 for i in range(7)), strict=True):
        assert not any(torch.equal(image, views[epoch, index, 0]["image"]) for epoch in range(21))


def test_dino_is_seen_as_its_loss_states_it(image_folder, tmp_path):
    images = open_source(image_folder)
    built, monitor, recipe = build("dino", images, tmp_path)
    built.loss.center.copy_(torch.linspace(-0.1, 0.1, 256))
    seen = monitor()
    (batch,) = fixed_batches(build_views(recipe.override({"local_crops": 0}), images, 16), 7, 0)
    with torch.no_grad():
        assert seen["train_loss_large"] == pytest.approx(built.eval()(batch)["loss"].item(), rel=1e-5)


def test_gains_of_places_equal_a_loop_over_crops(image_folder, tmp_path):
    """One crop and branch at a time: answers in each other's place, and pixels in each other's place."""
    built, monitor, recipe = build("splitmask", open_source(image_folder), tmp_path)
    built.eval()
    with torch.no_grad():
        built.decoder.pos_embed.normal_()
        built.encoder.pos_embed.normal_()
        built.head.weight.mul_(10)
        for block in (*built.encoder.blocks, *built.decoder.blocks):
            block.attn.proj.weight.mul_(20)
    (batch,) = fixed_batches(build_views(recipe, open_source(image_folder), 16), 7, 0)
    order, total = fixed_cycle(8).tolist(), {"plain": 0.0, "answers": 0.0, "contents": 0.0}
    for i in range(7):
        image = built.normalize(batch["image"][i : i + 1])
        words = built.tokenizer.tokens_of(image, 16)[0]
        for side in "ab":
            ids = batch[f"ids_{side}"][i].tolist()
            hidden = [n for n in range(16) if n not in ids]
            mixed = image.clone()
            for k, place in enumerate(ids):
                (y, x), (v, u) = divmod(place, 4), divmod(ids[order[k]], 4)
                block = image[..., 16 * v : 16 * v + 16, 16 * u : 16 * u + 16]
                mixed[..., 16 * y : 16 * y + 16, 16 * x : 16 * x + 16] = block
            with torch.no_grad():
                plain, other = (built.head(built.decode(x, torch.tensor([ids])))[0] for x in (image, mixed))
            answers = [hidden[order[k]] for k in range(8)]
            for name, logits in (("plain", plain[hidden]), ("answers", plain[answers]), ("contents", other[hidden])):
                total[name] += torch.nn.functional.cross_entropy(logits, words[hidden]).item() / 14
    seen = monitor()
    for name, swapped in (("query", "answers"), ("neighbour", "contents")):
        gain = seen[f"train_{name}_gain"]
        assert gain == pytest.approx(total[swapped] - total["plain"], abs=1e-4) and abs(gain) > 1e-3


def test_without_positions_places_are_worth_nothing(image_folder, tmp_path):
    """What a place is worth comes from the decoder's table for the answers, from either for the observed patches."""
    built, monitor, _ = build("splitmask", open_source(image_folder), tmp_path)

    def gains():
        seen = monitor()
        return seen["train_query_gain"], seen["train_neighbour_gain"]

    with torch.no_grad():
        built.head.weight.mul_(20)
        for block in (*built.encoder.blocks, *built.decoder.blocks):
            block.attn.proj.weight.mul_(20)
        built.decoder.pos_embed.zero_()
        built.encoder.pos_embed.zero_()
        assert gains() == pytest.approx((0, 0), abs=1e-4)
        built.encoder.pos_embed.normal_()
        query, neighbour = gains()
        assert query == pytest.approx(0, abs=1e-4) and abs(neighbour) > 3e-4
        built.encoder.pos_embed.zero_()
        built.decoder.pos_embed.normal_()
        assert min(abs(gain) for gain in gains()) > 3e-4
