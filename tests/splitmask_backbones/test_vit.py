"""The encoder against timm and a naive statement of windows, and its rules for sizes, subsets and arguments."""

import re

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F

from splitmask_backbones import VisionTransformer, create_encoder, list_encoders, load_encoder, save_encoder
from splitmask_backbones.position import sincos_pos_embed

TINY = {"embed_dim": 48, "depth": 3, "num_heads": 3, "img_size": 64}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randomize(module):
    """Random biases and norms as well, so that a forgotten one shows."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return module.eval()


@pytest.mark.parametrize("use_class_token", [False, True])
@pytest.mark.parametrize("size", [(224, 224), (160, 256), (96, 64)])
def test_tokens_equal_timm(use_class_token, size):
    ours = create_encoder("vit_tiny", use_class_token=use_class_token).eval()
    theirs = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, class_token=use_class_token, global_pool="", dynamic_img_size=True
    ).eval()
    assert theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs.forward_features(x), atol=1e-4, rtol=0)


def test_gradients_equal_timm():
    ours = create_encoder("vit_tiny", depth=2)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, class_token=False, global_pool="", depth=2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 224, 224)
    ours(x).square().mean().backward()
    theirs.forward_features(x).square().mean().backward()
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-3, msg=name)


def test_registers_follow_the_class_token():
    encoder = randomize(VisionTransformer(**TINY, use_class_token=True, num_registers=2))
    x = torch.randn(1, 3, 64, 64)
    tokens, grid = encoder.embed(x)
    assert grid == (4, 4)
    assert tokens.shape == (1, 3 + 16, 48)
    expected = torch.cat([encoder.cls_token, encoder.reg_token], 1) + encoder.pos_embed[:, :3]
    torch.testing.assert_close(tokens[:, :3], expected)


@pytest.mark.parametrize("size", [(64, 64), (50, 90), (1, 1), (17, 16), (64, 129)])
def test_any_size_is_padded_with_zeros_at_the_bottom_and_right(size):
    encoder = randomize(VisionTransformer(**TINY))
    x = torch.randn(2, 3, *size)
    rows, cols = -(-size[0] // 16), -(-size[1] // 16)
    padded = torch.zeros(2, 3, rows * 16, cols * 16)
    padded[:, :, : size[0], : size[1]] = x
    assert encoder(x).shape == (2, rows * cols, 48)
    torch.testing.assert_close(encoder(x), encoder(padded))
    assert encoder.forward_maps(x)[0].shape == (2, 48, rows, cols)


@pytest.mark.parametrize("patch_size", [8, 14, 16])
def test_patch_sizes(patch_size):
    encoder = VisionTransformer(**{**TINY, "img_size": 56}, patch_size=patch_size)
    side = -(-56 // patch_size)
    assert encoder(torch.randn(1, 3, 56, 56)).shape == (1, side * side, 48)


def test_ids_keep_equals_attention_over_the_subset_alone():
    encoder = randomize(VisionTransformer(**TINY, use_class_token=True))
    x = torch.randn(2, 3, 64, 80)
    ids = torch.stack([torch.randperm(20)[:7] for _ in range(2)])
    every, _ = encoder.embed(x)
    for i in range(2):
        tokens = torch.cat([every[i : i + 1, :1], every[i : i + 1, 1:][:, ids[i]]], 1)
        for block in encoder.blocks:
            tokens = block(tokens)
        torch.testing.assert_close(encoder(x, ids)[i], encoder.norm(tokens)[0], atol=1e-5, rtol=1e-4)


def test_hidden_pixels_have_no_gradient():
    encoder = VisionTransformer(**TINY)
    x = torch.randn(1, 3, 64, 64, requires_grad=True)
    (encoder(x, torch.tensor([[0, 5]])) * torch.randn(1, 2, 48)).sum().backward()
    by_patch = x.grad.abs().reshape(1, 3, 4, 16, 4, 16).sum((0, 1, 3, 5)).flatten()
    assert by_patch.nonzero().flatten().tolist() == [0, 5] and by_patch.max() > 1e-3
    assert encoder.pos_embed.grad.abs().sum(-1).nonzero()[:, 1].tolist() == [0, 5]


@pytest.mark.parametrize(
    ("ids", "extra", "match"),
    [
        (torch.zeros(1, 2, dtype=torch.int32), {}, "int64"),
        (torch.zeros(3, 2, dtype=torch.int64), {}, "B = 1"),
        (torch.zeros(2, dtype=torch.int64), {}, "shape"),
        (torch.zeros(1, 2, dtype=torch.int64), {"window_size": 2, "window_block_indexes": (0,)}, "windows"),
        (torch.zeros(1, 2, dtype=torch.int64), {"use_rel_pos": True}, "relative"),
        (torch.tensor([[0, 16]]), {}, r"in 0\.\.15, the patches of the grid, got 16"),
        (torch.tensor([[-1, 16]]), {}, "got -1"),
    ],
)
def test_wrong_ids_keep(ids, extra, match):
    with pytest.raises(ValueError, match=match):
        VisionTransformer(**TINY, **extra)(torch.zeros(1, 3, 64, 64), ids)


def test_ids_keep_under_a_torch_that_does_not_say_whether_it_compiles(monkeypatch):
    """2.1 and 2.2, which the core supports."""
    monkeypatch.delattr(torch.compiler, "is_compiling")
    encoder = VisionTransformer(**TINY)
    assert encoder(torch.zeros(1, 3, 64, 64), torch.tensor([[0, 15]])).shape == (1, 2, TINY["embed_dim"])


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (3, 64, 64)])
def test_images_of_another_shape(shape):
    with pytest.raises(ValueError, match=re.escape(f"images must be (B, 3, H, W), got {shape}")):
        VisionTransformer(**TINY).forward_maps(torch.zeros(shape))


@pytest.mark.parametrize("grid", [(4, 4), (5, 3), (2, 7), (1, 1)])
def test_windows_equal_a_naive_loop(grid):
    """Each window on its own, padded with zeros after the first norm; the padding takes part in attention."""
    encoder = randomize(VisionTransformer(**TINY, window_size=3, window_block_indexes=(1,)))
    block = encoder.blocks[1]
    height, width = grid
    x = torch.randn(2, height * width, 48)
    normed = block.norm1(x).reshape(2, height, width, 48)
    padded = F.pad(normed, (0, 0, 0, -width % 3, 0, -height % 3))
    attended = torch.zeros_like(padded)
    for top in range(0, padded.shape[1], 3):
        for left in range(0, padded.shape[2], 3):
            window = padded[:, top : top + 3, left : left + 3].reshape(2, 9, 48)
            attended[:, top : top + 3, left : left + 3] = block.attn(window, (3, 3)).reshape(2, 3, 3, 48)
    expected = x + attended[:, :height, :width].reshape(2, -1, 48)
    expected = expected + block.mlp(block.norm2(expected))
    torch.testing.assert_close(block(x, grid), expected, atol=1e-5, rtol=1e-4)


def test_relative_positions_equal_a_naive_loop():
    encoder = randomize(VisionTransformer(**TINY, use_rel_pos=True, positions="none"))
    attention = encoder.blocks[0].attn
    height, width = 4, 4
    x = torch.randn(1, 16, 48)
    q, k, v = attention.qkv(x).reshape(16, 3, 3, 16).permute(1, 2, 0, 3)
    logits = q @ k.transpose(1, 2) / 4.0
    for i in range(16):
        for j in range(16):
            row, col = i // width - j // width, i % width - j % width
            logits[:, i, j] += q[:, i] @ attention.rel_pos_h[row + height - 1]
            logits[:, i, j] += q[:, i] @ attention.rel_pos_w[col + width - 1]
    expected = attention.proj((logits.softmax(-1) @ v).transpose(0, 1).reshape(1, 16, 48))
    torch.testing.assert_close(attention(x, (height, width)), expected, atol=1e-5, rtol=1e-4)


def test_sincos_positions_by_hand():
    table = sincos_pos_embed((2, 3), 8, num_prefix_tokens=1)
    assert table.shape == (1, 7, 8)
    assert table[0, 0].abs().sum() == 0
    row, col = 1, 2  # token 1 + 1 * 3 + 2
    expected = []
    for value in (col, row):
        for function in (torch.sin, torch.cos):
            expected += [function(torch.tensor(value / 10000 ** (k / 2), dtype=torch.float64)) for k in range(2)]
    torch.testing.assert_close(table[0, 6].double(), torch.stack(expected), atol=1e-6, rtol=0)


def test_maps_are_block_outputs_before_the_norm():
    encoder = randomize(VisionTransformer(**TINY, use_class_token=True, out_indices=(0, 2)))
    x = torch.randn(2, 3, 48, 64)
    first, last = encoder.forward_maps(x)
    assert first.shape == last.shape == (2, 48, 3, 4)
    tokens = encoder(x)[:, 1:]  # after the norm
    torch.testing.assert_close(encoder.norm(last.flatten(2).transpose(1, 2)), tokens, atol=1e-5, rtol=1e-4)
    normed = encoder.forward_maps(x, norm_maps=True)[1]
    torch.testing.assert_close(normed.flatten(2).transpose(1, 2), tokens, atol=1e-5, rtol=1e-4)


def test_maps_leave_no_parameter_without_gradient():
    encoder = VisionTransformer(**TINY, final_norm=False, out_indices=(0, 1, 2))
    sum(m.sum() for m in encoder.forward_maps(torch.randn(1, 3, 64, 64))).backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_grad_checkpointing_changes_nothing():
    gradients = []
    for flag in (False, True):
        torch.manual_seed(1)
        encoder = VisionTransformer(**TINY, grad_checkpointing=flag, drop_path_rate=0.5)
        x = torch.randn(4, 3, 64, 64)
        torch.manual_seed(2)
        encoder(x).square().sum().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_grad_checkpointing_computes_blocks_again_for_the_backward_pass():
    for flag, calls in ((False, 1), (True, 2)):
        encoder, seen = VisionTransformer(**TINY, grad_checkpointing=flag).train(), []
        for number, block in enumerate(encoder.blocks):
            block.norm1.register_forward_hook(lambda *_, number=number, seen=seen: seen.append(number))
        encoder(torch.randn(1, 3, 64, 64)).sum().backward()
        assert [seen.count(number) for number in range(len(encoder.blocks))] == [calls] * len(encoder.blocks)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    from splitmask_backbones.vit import DropPath

    x = torch.ones(4000, 3, 2)
    out = DropPath(0.25).train()(x)
    assert set(out.flatten(1).std(1).tolist()) == {0.0}
    assert sorted(set(out[:, 0, 0].tolist())) == pytest.approx([0.0, 4 / 3])
    assert out.mean() == pytest.approx(1.0, abs=0.05)
    assert DropPath(0.25).eval()(x) is x
    rates = [block.drop_path.rate for block in VisionTransformer(**TINY, drop_path_rate=0.2).blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_rate_counts_as_the_number_that_it_is(dtype):
    """It is a tensor for the compiler's sake; the bytes are those of a number, and no state is added."""
    from splitmask_backbones.vit import DropPath

    x = torch.randn(64, 7, 5, dtype=dtype)
    for rate in (0.1, 0.2 / 3, 0.37):
        torch.manual_seed(1)
        found = DropPath(rate).train()(x)
        torch.manual_seed(1)
        keep = torch.rand(64, 1, 1) >= rate
        assert torch.equal(found, x * keep.to(dtype) / (1.0 - rate))
        assert found.dtype == dtype and not DropPath(rate).state_dict()


@pytest.mark.parametrize("with_bias", [False, True])
def test_attention_in_bf16_on_a_cpu_is_as_near_to_float32_as_sdpa(with_bias):
    """Values and gradients: by its products one by one it may round more often, but within twice the error."""
    from splitmask_backbones.vit import _attend

    tensors = [torch.randn(2, 3, 50, 16) for _ in range(3)] + [torch.randn(1, 3, 50, 50)] * with_bias
    weights = torch.randn(2, 3, 50, 16)

    def outcome(attend, dtype):
        given = [tensor.detach().clone().to(dtype).requires_grad_() for tensor in tensors]
        out = attend(*given[:3], given[3] if with_bias else None)
        (out.float() * weights).sum().backward()
        assert out.dtype == dtype
        return [out.detach().float(), *(tensor.grad.float() for tensor in given)]

    exact = outcome(F.scaled_dot_product_attention, torch.float32)
    ours, fused = outcome(_attend, torch.bfloat16), outcome(F.scaled_dot_product_attention, torch.bfloat16)
    for truth, found, expected in zip(exact, ours, fused, strict=True):
        assert (found - truth).norm() < 2 * (expected - truth).norm()


def test_attention_never_holds_the_scores_of_many_tokens():
    """On a CPU in bf16 neither: the gradient of 1,025 tokens keeps no tensor of 1,025 x 1,025."""
    from splitmask_backbones.vit import _attend

    for count, held in ((1024, True), (1025, False)):
        kept = []
        query, key, value = (torch.randn(1, 1, count, 8).bfloat16().requires_grad_() for _ in range(3))
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.shape) or t, lambda t: t):
            _attend(query, key, value, None)
        assert ((1, 1, count, count) in kept or (1, count, count) in kept) == held, kept


def test_the_gradient_of_query_key_and_value_is_written_once():
    """As one tensor (B, N, 3C), in the order in which the projection's own gradient reads it."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from splitmask_backbones.vit import Attention

    class Written(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            if function.overloadpacket.__name__ in ("clone", "copy_", "cat", "stack") and found.numel() == size:
                written.append(function.overloadpacket.__name__)
            return found

    x = torch.randn(2, 10, 24, requires_grad=True)
    out = Attention(24, 3, True, None)(x, (0, 0)).sum()
    written, size = [], 2 * 10 * 3 * 24
    with Written():
        out.backward()
    assert len(written) == 1, written


def test_init_is_beits():
    encoder = create_encoder("vit_small", depth=1)
    for parameter in (encoder.blocks[0].attn.qkv.weight, encoder.pos_embed, encoder.patch_embed.proj.weight):
        assert parameter.std().item() == pytest.approx(0.02, rel=0.03)
    assert encoder.blocks[0].mlp.fc1.bias.abs().sum() == 0
    with_tokens = create_encoder("vit_small", depth=1, use_class_token=True, num_registers=4)
    for tokens in (with_tokens.cls_token[0], with_tokens.reg_token[0]):
        assert tokens.std(dim=1).tolist() == pytest.approx([0.02] * len(tokens), rel=0.15)  # 384 numbers each


def test_sizes_of_the_named_encoders():
    assert list_encoders() == ["vit_tiny", "vit_small", "vit_base", "vit_large"]
    with torch.device("meta"):
        millions = [sum(p.numel() for p in create_encoder(n).parameters()) / 1e6 for n in list_encoders()]
    assert millions == pytest.approx([5.5, 21.6, 85.8, 303.3], abs=0.1)  # timm's without head and class token


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"embed_dims": 3}, "did you mean 'embed_dim'"),
        ({"positions": "learnt"}, "did you mean 'learned'"),
        ({"num_heads": 5}, "multiple of num_heads"),
        ({"num_heads": 0}, "num_heads must be above 0"),
        ({"patch_size": 0}, "patch_size must be above 0"),
        ({"img_size": 0}, "img_size must be at least 1"),
        ({"drop_path_rate": 2.0}, "drop_path_rate must be in"),
        ({"num_registers": -1}, "at least 0"),
        ({"out_indices": (12,)}, "must lie in"),
        ({"out_indices": (3, 1)}, "increase"),
        ({"window_block_indexes": (1,)}, "window_size"),
        ({"use_rel_pos": True, "use_class_token": True}, "prefix"),
        ({"norm_maps": True, "final_norm": False}, "final_norm"),
    ],
)
def test_wrong_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        create_encoder("vit_tiny", **arguments)


def test_unknown_encoder():
    with pytest.raises(ValueError, match="did you mean 'vit_small'"):
        create_encoder("vit_smal")


@pytest.mark.parametrize("grid", [(4, 4), (3, 7), (5, 1)])
def test_both_ways_of_decomposed_attention_equal_a_loop_over_pairs(grid):
    """The fused way, which GPUs take, and the CPU's, against the definition; values and gradients."""
    from splitmask_backbones.position import attend_fused, attend_in_full, decomposed_bias

    torch.manual_seed(0)
    n, dim = grid[0] * grid[1], 8
    query, key, value = (torch.randn(2, 3, n, dim, requires_grad=True) for _ in range(3))
    table_h, table_w = (torch.randn(2 * size - 1, dim, requires_grad=True) for size in grid)
    leaves = (query, key, value, table_h, table_w)
    scores = torch.zeros(2, 3, n, n)
    for i in range(n):
        for j in range(n):
            (yi, xi), (yj, xj) = divmod(i, grid[1]), divmod(j, grid[1])
            relative = table_h[yi - yj + grid[0] - 1] + table_w[xi - xj + grid[1] - 1]
            scores[:, :, i, j] = (query[:, :, i] * key[:, :, j]).sum(-1) / dim**0.5 + query[:, :, i] @ relative
    expected = scores.softmax(-1) @ value
    weight = torch.randn_like(expected)
    expected_grads = torch.autograd.grad((expected * weight).sum(), leaves)
    for attend in (attend_fused, attend_in_full):
        found = attend(query, key, value, *decomposed_bias(query, table_h, table_w, grid))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        grads = torch.autograd.grad((found * weight).sum(), leaves)
        for a, b in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 2.5}, "depth must be a whole number, got 2.5"),
        ({"embed_dim": "64"}, "embed_dim must be a whole number, got '64'"),
        ({"drop_path_rate": None}, "drop_path_rate must be a number, got None"),
        ({"norm_maps": "false"}, "norm_maps must be true or false, got 'false'"),
        ({"use_class_token": None}, "use_class_token must be true or false, got None"),
        ({"layer_scale": "x"}, "layer_scale must be a number"),
        ({"out_indices": 3}, "out_indices must be whole numbers in a list, got 3"),
        ({"window_block_indexes": 0}, "window_block_indexes must be whole numbers in a list"),
        ({"out_indices": (0.5,)}, "out_indices must be whole numbers in a list"),
        ({"img_size": "a"}, "img_size must be whole numbers in a list, got 'a'"),
        ({"img_size": (64, 64, 64)}, "img_size must be two numbers"),
    ],
)
def test_arguments_of_another_type_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        VisionTransformer(**arguments)


def test_numbers_may_be_numpys_and_are_saved(tmp_path):
    sizes = {"embed_dim": np.int64(32), "depth": np.int32(2), "num_heads": 2, "out_indices": np.arange(2)}
    vit = VisionTransformer(
        img_size=np.array([32, 48]), **sizes, mlp_ratio=np.float32(2), use_class_token=np.bool_(True)
    )
    assert vit.grid_size == (2, 3)
    save_encoder(vit, tmp_path / "encoder.safetensors")
    assert load_encoder(tmp_path / "encoder.safetensors").config == vit.config
    assert VisionTransformer(img_size=np.int64(32), **sizes).grid_size == (2, 2)
