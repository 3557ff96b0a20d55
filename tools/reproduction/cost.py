"""What a step costs: GPU hours from counted operations, disk from counted parameters. Free of torch.

Operations are those of `pretrain/flops.py` in closed form (a test compares them). The rate that turns them into hours
is the one figure that the paper measured: SplitMask with ViT-B on ImageNet, 300 epochs in 34.0 hours on 16 GPUs.
"""

from pretrain.recipes import Recipe
from splitmask_backbones.registry import ENCODERS
from tools.reproduction.sets import SETS

PATCH_DIM = 3 * 16 * 16
BYTES = 4
CHECKPOINTS_KEPT = 2
PAPER_HOURS, PAPER_GPUS, PAPER_EPOCHS = 34.0, 16, 300

# Counted with torch's FlopCounterMode on the forward pass. Mask R-CNN with the tapped pyramid at 640 x 864 (2160
# patches, the mean size of the 480-800 px training): pyramid and RPN 209 GFLOPs, box head with 512 RoIs 14, mask head
# with at most 128 of them 131. UperNet at 512 px: pyramid 63, heads 426.
DET_PATCHES, DET_PER_PATCH, DET_ROIS = 2160, 209e9 / 2160, 145e9
SEG_PATCHES, SEG_HEADS = 1024, 489e9
# Parameters around the encoder, counted in the same models.
HEAD_PARAMETERS = {"train_det": 22.1e6, "train_seg": 39.0e6, "train_cls": 0.0}
DINO_LOCAL_CROPS, DINO_LOCAL_SHARE = 8, 36 / 196  # small crops have 96 of 224 px


def block_operations(tokens: int, dim: int) -> float:
    """Returns the operations of one transformer block on one sequence; a multiply-add counts as two."""
    return 24 * tokens * dim**2 + 4 * tokens**2 * dim


def encoder_operations(model: str, tokens: int) -> float:
    """Returns the operations of a forward pass of an encoder that sees `tokens` patches."""
    dim, depth = ENCODERS[model]["embed_dim"], ENCODERS[model]["depth"]
    return depth * block_operations(tokens, dim) + 2 * tokens * PATCH_DIM * dim


def pretraining_operations(recipe: Recipe) -> float:
    """Returns the operations of one image in one step, backward pass included.

    BEiT sees all patches and predicts 75 of 196; DINO's student sees two large crops and eight small ones, its teacher
    the large ones. Their heads' and DALL-E's own operations are left out.
    """
    dim = ENCODERS[recipe.model]["embed_dim"]
    patches = (recipe.img_size // 16) ** 2
    tokenizer = 2 * patches * PATCH_DIM * recipe.vocab_size
    if recipe.method == "dino":
        large = 2 * encoder_operations(recipe.model, patches)
        small = DINO_LOCAL_CROPS * encoder_operations(recipe.model, round(patches * DINO_LOCAL_SHARE))
        return 3 * (large + small) + large
    if recipe.method == "beit":
        head = 6 * (75 * patches / 196) * dim * recipe.vocab_size
        return 3 * encoder_operations(recipe.model, patches) + head + tokenizer
    hidden = round(patches * recipe.mask_ratio)
    total = 6 * encoder_operations(recipe.model, patches - hidden)
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
        return 3 * (encoder_operations(model, DET_PATCHES) + DET_PATCHES * DET_PER_PATCH + DET_ROIS)
    if tool == "train_seg":
        return 3 * (encoder_operations(model, SEG_PATCHES) + SEG_HEADS)
    return (1 if tool == "probe" else 3) * encoder_operations(model, 196)


def probe_bytes(model: str, images: float) -> float:
    """Returns the bytes of the features that a probe keeps while it runs: one vector per image and layer."""
    return BYTES * images * ENCODERS[model]["depth"] * ENCODERS[model]["embed_dim"]


def encoder_parameters(model: str) -> float:
    """Returns the parameters of an encoder: blocks, patch embedding, positions of a 224-px grid."""
    dim, depth = ENCODERS[model]["embed_dim"], ENCODERS[model]["depth"]
    return depth * (12 * dim**2 + 13 * dim) + dim * (PATCH_DIM + 1) + 196 * dim + 2 * dim


def training_bytes(parameters: float) -> float:
    """Returns the bytes that a run leaves: the newest checkpoints with AdamW's two moments, and the result."""
    return BYTES * parameters * (3 * CHECKPOINTS_KEPT + 1)


def pretraining_bytes(recipe: Recipe) -> float:
    """Returns the bytes that a pre-training leaves; DINO's checkpoints hold the teacher too."""
    dim = ENCODERS[recipe.model]["embed_dim"]
    extra = recipe.decoder_depth * 12 * dim**2 + dim * recipe.vocab_size
    parameters = encoder_parameters(recipe.model)
    return training_bytes(parameters + (parameters if recipe.method == "dino" else extra))
