"""What a command line costs: GPU hours from counted operations, disk from counted parameters. Free of torch.

Operations are those that `tools/benchmark.py` counts, in closed form (a test compares them). The rate that turns them
into hours is the one figure that the paper measured: SplitMask with ViT-B on ImageNet, 300 epochs in 34.0 hours on 16
GPUs.
"""

from collections.abc import Mapping
from importlib import import_module
from itertools import pairwise
from typing import Any

from pretrain.recipes import Recipe
from pretrain.training.options import NUM_CHECKPOINTS
from splitmask_backbones.registry import ENCODERS
from tools import cli
from tools.classification.probe_recipe import ProbeRecipe
from tools.reproduction.sets import SETS
from tools.running.planned import parsed, planned_classification, planned_detection, planned_recipe

PATCH_DIM = 3 * 16 * 16
BYTES = 4
PAPER_HOURS, PAPER_GPUS, PAPER_EPOCHS = 34.0, 16, 300

# Counted with torch's FlopCounterMode on the forward pass. Mask R-CNN with the tapped pyramid at 640 x 864 (2160
# patches, the mean size of the 480-800 px training): pyramid and RPN 209 GFLOPs, box head with 512 RoIs 14, mask head
# with at most 128 of them 131. UperNet at 512 px, ViT-B: taps 29, heads 971.
DET_PATCHES, DET_PER_PATCH, DET_ROIS = 2160, 209e9 / 2160, 145e9
SEG_PATCHES, SEG_HEADS = 1024, 1000e9
# Parameters around the encoder, counted in the same models.
HEAD_PARAMETERS = {"train_det": 22.1e6, "train_seg": 76.8e6, "train_cls": 0.0}
SEG_STEPS, SEG_BATCH = 160_000, 16  # the paper's; tools/train_seg.py's configs need mmseg to be read
DINO_LOCAL_SIDE = 96 / 224  # of small crops over large ones
DINO_HEAD = (2048, 2048, 256)  # widths between the token and the outputs, as lightly's


def block_operations(tokens: int, dim: int) -> float:
    """Returns the operations of one transformer block on one sequence; a multiply-add counts as two."""
    return 24 * tokens * dim**2 + 4 * tokens**2 * dim


def encoder_operations(sizes: Mapping[str, int], patches: int, class_tokens: int = 0) -> float:
    """Returns the operations of a forward pass of an encoder of these sizes that sees `patches` patches."""
    dim, depth = sizes["embed_dim"], sizes["depth"]
    return depth * block_operations(patches + class_tokens, dim) + 2 * patches * PATCH_DIM * dim


def pretraining_operations(recipe: Recipe) -> float:
    """Returns the operations of one image in one step, backward pass included.

    BEiT sees all patches and predicts 75 of 196; DINO's student sees two large crops and eight small ones, its teacher
    the large ones. DALL-E's own operations are left out.
    """
    dim = recipe.encoder_sizes["embed_dim"]
    patches = (recipe.img_size // 16) ** 2
    tokenizer = 2 * patches * PATCH_DIM * recipe.vocab_size
    if recipe.method == "dino":
        widths = (dim, *DINO_HEAD, recipe.dino_outputs)
        head = sum(2 * width * following for width, following in pairwise(widths))
        large = 2 * (encoder_operations(recipe.encoder_sizes, patches, 1) + head)
        local_patches = max(1, round(recipe.img_size / 16 * DINO_LOCAL_SIDE)) ** 2
        small = recipe.local_crops * (encoder_operations(recipe.encoder_sizes, local_patches, 1) + head)
        return 3 * (large + small) + large
    if recipe.method == "beit":
        head = 6 * (75 * patches / 196) * dim * recipe.vocab_size
        return 3 * encoder_operations(recipe.encoder_sizes, patches) + head + tokenizer
    hidden = round(patches * recipe.mask_ratio)
    total = 6 * encoder_operations(recipe.encoder_sizes, patches - hidden)
    total += 6 * recipe.decoder_depth * block_operations(patches, dim)
    if recipe.inpaint_weight:
        total += 6 * 2 * hidden * dim * recipe.vocab_size + tokenizer
    return total


def paper_rate() -> float:
    """Returns the operations per second that one GPU of the paper reached, about 3e13."""
    images = SETS["imagenet"].num_images * PAPER_EPOCHS
    return pretraining_operations(Recipe(model="vit_base")) * images / (PAPER_HOURS * 3600 * PAPER_GPUS)


def finetuning_operations(tool: str, model: str) -> float:
    """Returns the operations of one image in one step of a tool, backward pass included; a probe has none.

    Mask R-CNN at 480-800 px, UperNet at 512 px, classifiers and probes at 224 px.
    """
    if tool == "train_det":
        return 3 * (encoder_operations(ENCODERS[model], DET_PATCHES) + DET_PATCHES * DET_PER_PATCH + DET_ROIS)
    if tool == "train_seg":
        return 3 * (encoder_operations(ENCODERS[model], SEG_PATCHES) + SEG_HEADS)
    return (1 if tool == "probe" else 3) * encoder_operations(ENCODERS[model], 196)


def encoder_parameters(sizes: Mapping[str, int]) -> float:
    """Returns the parameters of an encoder: blocks, patch embedding, positions of a 224-px grid."""
    dim, depth = sizes["embed_dim"], sizes["depth"]
    return depth * (12 * dim**2 + 13 * dim) + dim * (PATCH_DIM + 1) + 196 * dim + 2 * dim


def training_bytes(parameters: float) -> float:
    """Returns the bytes that a run leaves: the newest checkpoints with AdamW's two moments, and the result."""
    return BYTES * parameters * (3 * NUM_CHECKPOINTS + 1)


def pretraining_cost(argv: list[str], data: str) -> dict[str, Any]:
    """Returns the values of a `Job` that say what a pre-training costs: num_steps, batch_size, ...

    Raises:
        ValueError: what tools/pretrain.py would say about an option.
    """
    recipe = planned_recipe(argv)
    steps = recipe.total_steps(SETS[data].num_images // recipe.batch_size)
    operations = pretraining_operations(recipe) * steps * recipe.batch_size
    dim, parameters = recipe.encoder_sizes["embed_dim"], encoder_parameters(recipe.encoder_sizes)
    # DINO's checkpoints hold the teacher too.
    heads = recipe.decoder_depth * 12 * dim**2 + dim * recipe.vocab_size
    disk = training_bytes(parameters + (parameters if recipe.method == "dino" else heads))
    return {"num_steps": steps, "batch_size": recipe.batch_size, "operations": operations, "disk": disk}


def finetuning_cost(tool: str, argv: list[str], model: str, data: str) -> dict[str, Any]:
    """Returns the values of a `Job` that say what a fine-tuning or probe costs: num_steps, batch_size, ...

    Raises:
        ValueError: what the tool would say about an option.
    """
    num_images, operations = SETS[data].num_images, finetuning_operations(tool, model)
    if tool == "probe":
        ProbeRecipe().override(cli.given_values(parsed("probe", argv), ProbeRecipe))
        # While it runs, a probe keeps one vector per image and layer.
        scratch = BYTES * num_images * ENCODERS[model]["depth"] * ENCODERS[model]["embed_dim"]
        return {"operations": operations * num_images, "scratch": scratch}
    if tool == "train_seg":
        args = import_module("tools.train_seg").parse_args([*argv, "--output", "-"])
        given = dict(text.split("=", 1) for text in args.overrides if "=" in text)
        steps = args.steps or int(given.get("steps", SEG_STEPS))
        batch = args.batch_size or int(given.get("batch_size", SEG_BATCH))
    else:
        recipe = planned_detection(argv) if tool == "train_det" else planned_classification(argv)
        steps, batch = recipe.steps or (recipe.epochs or 0) * (num_images // recipe.batch_size), recipe.batch_size
    disk = training_bytes(encoder_parameters(ENCODERS[model]) + HEAD_PARAMETERS[tool])
    return {"num_steps": steps, "batch_size": batch, "operations": operations * steps * batch, "disk": disk}
