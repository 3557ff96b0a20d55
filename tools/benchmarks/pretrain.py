"""How much of the machine's matrix-product rate a pre-training step reaches, both measured in one run."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretrain.data.masking import split_halves
from pretrain.methods.build import build_encoder
from pretrain.methods.splitmask import SplitMask, complement
from pretrain.recipes import Recipe
from pretrain.tokenizers.codebook import Tokenizer, random_projection
from pretrain.training.distributed import make_fabric
from pretrain.training.loader import sample_rng
from splitmask_backbones.param_groups import param_groups
from splitmask_backbones.vit import gather_tokens
from tools.benchmarks import in_turns
from tools.finetuning.plots import print_table

PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}
"""Sides of the square matrices that are multiplied."""


def pretrain_step(recipe: Recipe, num_steps: int, device: str) -> None:
    """Prints FLOPs by part, images/s, and the share of the matrix-product rate measured between the steps."""
    fabric = make_fabric(recipe.precision, device)
    encoder = build_encoder(recipe)
    codebook = random_projection(recipe.vocab_size, 3 * encoder.patch_size**2, 0)
    method = SplitMask(encoder, Tokenizer(codebook, recipe.patch_norm))
    optimizer = torch.optim.AdamW(param_groups(method, recipe.peak_lr, recipe.weight_decay))
    halves = [split_halves("block", encoder.grid_size, sample_rng(0, 0, i)) for i in range(recipe.batch_size)]
    batch = {
        "image": torch.randint(256, (recipe.batch_size, 3, recipe.img_size, recipe.img_size), dtype=torch.uint8),
        "ids_a": torch.stack([torch.from_numpy(a) for a, _ in halves]),
        "ids_b": torch.stack([torch.from_numpy(b) for _, b in halves]),
    }
    flops = flops_per_image(method, batch)
    model, wrapped = fabric.setup(method, optimizer)
    batch = fabric.to_device(batch)
    method.train()

    def step() -> None:
        fabric.backward(model(batch)["loss"])
        torch.nn.utils.clip_grad_norm_(method.parameters(), recipe.clip_grad)
        wrapped.step()
        wrapped.zero_grad(set_to_none=True)

    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    size = PRODUCT_SIZE[fabric.device.type]
    left, right = (torch.randn(size, size, device=fabric.device, dtype=dtype) for _ in range(2))
    products = {f"product {i}": lambda: left @ right for i in range(4)}
    seconds = in_turns({**products, "step": step}, num_steps, fabric.device.type)
    # The best of each: on a shared machine everything slower measures the neighbours.
    best, slowest = min(seconds["step"]), max(seconds["step"])
    rate = 2 * size**3 / min(min(seconds[name]) for name in products)
    reached = sum(flops.values()) * recipe.batch_size / best

    title = f"SplitMask step, {recipe.model}, {recipe.img_size} px, batch {recipe.batch_size}"
    parts = {**flops, "total": sum(flops.values())}
    print_table(title, "", ("part", "GFLOPs per image"), [[name, f"{v / 1e9:.2f}"] for name, v in parts.items()])
    print(f"device {fabric.device}, precision {recipe.precision}, threads {torch.get_num_threads()}")
    print(f"step {best:.3f} s (slowest {slowest:.3f}), {recipe.batch_size / best:.1f} images/s")
    print(f"matrix product {size} x {size}: {rate / 1e9:.0f} GFLOP/s; the step reaches {reached / 1e9:.0f} GFLOP/s")
    print(f"share of the matrix-product rate: {100 * reached / rate:.0f} %")


@torch.no_grad()
def flops_per_image(method: SplitMask, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    """Returns operations per image of a training step by part: encoder, decoder, head, tokenizer.

    A multiply-add counts as two. Matrix products and attention are counted in the forward pass by torch's counter;
    the backward pass of encoder, decoder and head takes twice that. The tokenizer has no backward pass.

    Args:
        method: in any mode; nothing of it changes.
        batch: as `SplitMask.forward` takes it.
    """
    num_images = len(batch["image"])
    image = method.normalize(batch["image"])
    ids = torch.cat([batch["ids_a"], batch["ids_b"]])
    counts: dict[str, float] = {}

    def count(name: str, factor: int, part: object) -> object:
        # As plain matrix products: not every version of torch counts the fused attention of every device.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            result = part()  # type: ignore[operator]
        counts[name] = factor * counter.get_total_flops() / num_images
        return result

    tokens = count("encoder", 3, lambda: method.encoder(torch.cat([image, image]), ids))
    decoded = count("decoder", 3, lambda: method.decoder(tokens, ids))
    if method.head is not None and method.tokenizer is not None:
        hidden = gather_tokens(decoded, complement(ids, decoded.shape[1]))  # type: ignore[attr-defined, arg-type]
        count("head", 3, lambda: method.head(hidden))  # type: ignore[misc]
        count("tokenizer", 1, lambda: method.tokenizer.tokens_of(image, method.encoder.patch_size))  # type: ignore[union-attr]
    return counts
