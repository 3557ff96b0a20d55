"""Pre-training recipes by name: every row of the paper's settings, and small ones. Free of torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pretrain.training.options import COMPILE, OFF, PRECISIONS
from pretrain.training.recipe import ABOVE_ZERO, BELOW_ONE, CheckedRecipe, titled, value
from splitmask_backbones.errors import UserError, check_choice
from splitmask_backbones.registry import ENCODERS, encoder_sizes

REFERENCE_BATCH = 2048
METHODS = ("splitmask", "beit", "dino")

METHOD_VALUES: dict[str, dict[str, Any]] = {
    "beit": {"rescale_residuals": True},
    # DINO's published settings: lr 5e-4 at batch 256, down to 1e-6, weight decay 0.04 up to 0.4, large crops from 0.4;
    # its code clips the gradient of one parameter at a time.
    "dino": {
        "base_lr": 4e-3,
        "end_lr_factor": 1e-6 / 4e-3,
        "weight_decay": 0.04,
        "end_weight_decay": 0.4,
        "crop_scale": 0.4,
        "crop_scale_max": 1.0,
        "strong_augment": False,
        "clip_per_parameter": True,
        "qk_limit": None,
    },
}
"""What choosing a method changes in any recipe, unless it is given.

BEiT takes SplitMask's settings, as in the paper, and begins as its own code lets it begin.
"""

CROPS = ("cpu", "device")
POSITION_INITS = ("normal", "sincos")
PATCH_NORMS = ("none", "mean", "pixel_mean", "channel_mean")
TOKENIZERS = ("random_projection", "random_patches", "kmeans", "dalle")
_KMEANS = ("kmeans_patches", "kmeans_iterations")
_TOKENS = ("tokenizer", "vocab_size", "patch_norm", *_KMEANS)
_MATCH = ("match_weight", "temperature", "branch_jitter", "grad_cache")
_SPLIT = ("mask", "mask_ratio", "decoder_depth", "inpaint_weight", *_MATCH)
_TEACHER = ("local_crops", "dino_outputs", "teacher_momentum", "teacher_temperature", "teacher_warmup")
UNUSED = {
    "splitmask": _TEACHER,
    "beit": (*_SPLIT, *_TEACHER),
    "dino": (*_TOKENS, *_SPLIT, "crop_scale_max", "strong_augment", "crops", "reduced_jpeg"),
}
"""Values that have no effect with a method. BEiT's mask is its own: blocks, 75 of 196 patches."""


@dataclass(frozen=True)
class Recipe(CheckedRecipe):
    """Every value that decides what pre-training computes (SplitMask Sec. 4 and App. A, via BEiT's settings).

    The lr ends at 1e-5 of 1.5e-3 and warms up in 10 of 300 epochs, as in the paper.
    """

    model: str = value("vit_small", "encoder", choices=tuple(ENCODERS))
    embed_dim: int | None = value(None, "width of the encoder in place of the model's: few images, few minutes", low=1)
    depth: int | None = value(None, "its blocks in place of the model's", low=1)
    method: str = value("splitmask", "pre-training method", choices=METHODS)
    tokenizer: str = value("random_projection", "where the codebook comes from", choices=TOKENIZERS)
    vocab_size: int = value(8192, "vectors of the codebook, V", low=2)
    patch_norm: str = value("mean", "mean taken out of a patch before it gets its token id", choices=PATCH_NORMS)
    kmeans_patches: int = value(3_000_000, "patches that k-means clusters, at most", low=1)
    kmeans_iterations: int = value(20, "iterations of k-means", low=1)
    img_size: int = value(224, "side of the crop in pixels")
    crop_scale: float = value(0.08, "least share of the image's area in a crop", low=ABOVE_ZERO, high=1)
    crop_scale_max: float = value(1.0, "greatest share; small ones magnify things smaller than a patch", low=0, high=1)
    crops: str = value("cpu", "where crops are resampled: device is where the model is, a batch at once", choices=CROPS)
    reduced_jpeg: bool = value(False, "decode JPEGs at 1/2 to 1/8 where the crop has pixels to spare: other bytes")
    strong_augment: bool = value(False, "also grayscale, solarisation, blur and colour jitter (tiny sets)")
    mask: str = value("block", "how patches are split; beit has blocks of its own", choices=("block", "uniform"))
    mask_ratio: float = value(0.5, "share of the patches that a branch does not see", low=0.5, high=BELOW_ONE)
    decoder_depth: int = value(2, "decoder layers", low=1)
    inpaint_weight: float = value(1.0, "weight of the inpainting loss; 0 switches it off", low=0)
    match_weight: float = value(1.0, "weight of the matching loss; 0 switches it off", low=0)
    temperature: float = value(0.2, "temperature of the matching loss", low=ABOVE_ZERO)
    branch_jitter: float = value(0.0, "change of each branch's colours against matching by them", low=0, high=1)
    local_crops: int = value(8, "small crops per image (dino)", low=0)
    dino_outputs: int = value(65536, "outputs of the heads (dino)", low=2)
    teacher_momentum: float = value(0.996, "momentum of the teacher at the start, rising to 1 (dino)", low=0, high=1)
    teacher_temperature: float = value(0.04, "temperature of the teacher's softmax (dino)", low=ABOVE_ZERO)
    teacher_warmup: float = value(0.0, "share of the steps in which it rises from 0.04 (dino)", low=0, high=1)
    epochs: int | None = value(300, "epochs of floor(images / batch) steps", low=1)
    steps: int | None = value(None, "optimizer steps of the whole run, in place of --epochs", low=1)
    batch_size: int = value(2048, "images per step over all processes and accumulated micro-batches", low=1)
    accumulate: int = value(
        1,
        "micro-batches per step; without grad_cache accumulation does not enlarge the set of negatives of the matching "
        "loss: they come from the micro-batch (over all processes)",
        low=1,
    )
    grad_cache: bool = value(True, "with accumulate: all images of the step are negatives, for one more forward pass")
    lr: float | None = value(None, "peak learning rate; by default base_lr x batch_size / 2048", low=ABOVE_ZERO)
    base_lr: float = value(1.5e-3, "peak learning rate at batch 2048", low=ABOVE_ZERO)
    end_lr_factor: float = value(1e-5 / 1.5e-3, "last learning rate over the peak", low=0, high=1)
    warmup_fraction: float = value(10 / 300, "share of the steps that warm up", low=0, high=1)
    weight_decay: float = value(0.05, "AdamW weight decay, none on 1-D parameters and positions", low=0)
    end_weight_decay: float | None = value(None, "last weight decay of a cosine; by default constant", low=0)
    beta2: float = value(0.999, "AdamW second beta", low=0, high=BELOW_ONE)
    clip_grad: float = value(3.0, "largest gradient norm", low=ABOVE_ZERO)
    clip_per_parameter: bool = value(False, "of each parameter by itself, not of all together (dino)")
    qk_limit: float | None = value(None, "largest singular value of what makes queries and keys", low=ABOVE_ZERO)
    drop_path: float = value(0.1, "stochastic depth of the encoder", low=0, high=BELOW_ONE)
    position_init: str = value("normal", "how the encoder's learned positions begin", choices=POSITION_INITS)
    rescale_residuals: bool = value(False, "last matrices of block l begin divided by sqrt(2 l) (beit)")
    freeze_patch_embed: bool = value(False, "the patch embedding stays as initialised (MoCo v3)")
    seed: int = value(0, "seed of everything random", low=0, high=2**62)
    precision: str = value("32", "bf16 is mixed precision", choices=PRECISIONS)
    compile: str = value(OFF, "blocks as compiled code; auto: where the run is long enough to pay", choices=COMPILE)
    cuda_graph: bool = value(False, "record the step once and play it again: small models and batches on one GPU")

    def __post_init__(self) -> None:
        """Raises ValueError for a value that cannot work, naming option and remedy."""
        super().__post_init__()
        if self.crop_scale > self.crop_scale_max:
            raise UserError(f"--crop-scale {self.crop_scale} must be at most --crop-scale-max {self.crop_scale_max}")
        if self.method == "splitmask":
            self._check_split()
            patches = (self.img_size // self.encoder_sizes["patch_size"]) ** 2
            if patches >= 4 and math.floor(patches * (1 - self.mask_ratio) + 1e-9) < 1:
                raise UserError(
                    f"--mask-ratio {self.mask_ratio} leaves a branch none of the {patches} patches of --img-size "
                    f"{self.img_size}: use {math.floor(100 * (1 - 1 / patches)) / 100:g} or less, or larger crops"
                )
        if self.weight_decay == 0 and self.end_weight_decay is not None:
            raise UserError(
                f"--weight-decay 0 is no decay at all, and --end-weight-decay {self.end_weight_decay:g} would have no "
                "effect: begin above 0, or add --end-weight-decay none"
            )
        patch_size = self.encoder_sizes["patch_size"]
        side = self.img_size // patch_size
        if self.img_size < 1 or self.img_size % patch_size or (side * side) % 2 or side * side < 4:
            raise UserError(
                f"--img-size {self.img_size} must be a multiple of the patch size {patch_size} with an even number of "
                f"patches, at least 4: use {max(2, round(self.img_size / patch_size / 2) * 2) * patch_size}"
            )

    def _check_split(self) -> None:
        if self.inpaint_weight == 0 and self.match_weight == 0:
            raise UserError("--inpaint-weight 0 together with --match-weight 0 leaves nothing to learn: raise one")
        if self.branch_jitter and self.match_weight == 0:
            raise UserError(f"--branch-jitter {self.branch_jitter} has no effect with --match-weight 0: omit it")
        if self.mask == "block" and self.mask_ratio != 0.5:
            raise UserError(f"--mask block splits in halves: --mask-ratio {self.mask_ratio} needs --mask uniform")
        negatives = self.batch_size if self.grad_cache else self.batch_size // self.accumulate
        if self.match_weight and negatives < 2:
            raise UserError("the matching loss needs other images in the batch: use --batch-size 2 or more")

    @property
    def encoder_sizes(self) -> dict[str, Any]:
        """patch_size, embed_dim, depth and num_heads of the encoder."""
        return encoder_sizes(self.model, self.embed_dim, self.depth)

    @property
    def encoder_title(self) -> str:
        """The model's name, with the sizes of one's own: "vit_tiny (96 wide, 6 blocks)"."""
        return titled(self.model, self.embed_dim, self.depth)

    @property
    def idle(self) -> dict[str, str]:
        """Values that have no effect, each with the option because of which it has none."""
        found = dict.fromkeys(UNUSED[self.method], f"--method {self.method}")
        if self.method == "splitmask" and not self.match_weight:
            found |= dict.fromkeys(_MATCH[1:], "--match-weight 0")
        if self.tokenizer != "kmeans":
            found = dict.fromkeys(_KMEANS, f"--tokenizer {self.tokenizer}") | found
        if not self.uses_tokens:
            found = dict.fromkeys(_TOKENS, "--inpaint-weight 0") | found
        return found

    @property
    def uses_tokens(self) -> bool:
        """Whether the method predicts token ids."""
        return self.method == "beit" or self.method == "splitmask" and self.inpaint_weight > 0

    def check_tokenizer_weights(self, path: str | Path | None) -> None:
        """Raises ValueError where the tokenizer needs a file that is not given, or the other way round."""
        if self.tokenizer != "dalle" and path is not None:
            raise UserError(f"--tokenizer-weights goes with --tokenizer dalle: {self.tokenizer} needs no file")
        if self.uses_tokens and self.tokenizer == "dalle" and path is None:
            raise UserError(
                "--tokenizer dalle needs the 8192 token ids of DALL-E's encoder and has 0 without weights: add "
                "--tokenizer-weights FILE.safetensors, or use random_projection (75.2 against 75.2 in the paper's "
                "ablation), random_patches or kmeans"
            )

    @property
    def peak_lr(self) -> float:
        """The peak learning rate that is used: `lr`, or `base_lr` by the linear rule."""
        return self.lr if self.lr is not None else self.base_lr * self.batch_size / REFERENCE_BATCH

    def override(self, values: dict[str, Any]) -> Self:
        """Returns the recipe with some values replaced; steps replaces epochs and the other way round.

        Another method brings its own values along (METHOD_VALUES).

        Raises:
            ValueError: unknown name, a value that cannot work, or one that has no effect beside the others.
        """
        method = values.get("method", self.method)
        check_choice("method", method, METHODS, "--method")
        given = dict(values)
        if method != self.method:
            values = {**METHOD_VALUES.get(method, {}), **values}
        if values.get("match_weight") == 0:  # the recipe's jitter is against matching by colours
            values = {"branch_jitter": 0.0, **values}
        made = self.replaced(values)
        for name, because in made.idle.items():
            same = getattr(self, name)
            if given.get(name, same) not in (same, 0):  # to switch off what is off is no mistake
                raise UserError(f"{self.shown(name, given[name])} has no effect with {because}: omit it")
        return made


_TINY_SETS: dict[str, Any] = {"mask": "uniform", "mask_ratio": 0.75, "strong_augment": True, "epochs": 5000}
# What a machine without a GPU can do: short runs need a higher base rate and more of their steps to warm up. Ours.
_CPU: dict[str, Any] = {"model": "vit_tiny", "base_lr": 4e-3, "warmup_fraction": 0.1, "drop_path": 0.0, "epochs": None}
# The mask is the paper's for its tiny sets.
_FEW_IMAGES = _CPU | {"mask": "uniform", "dino_outputs": 4096, "crop_scale": 0.2, "batch_size": 64}

RECIPES: dict[str, tuple[str, Recipe]] = {
    # Here stands what `own_recipe` does not derive; uniform masks can have any --mask-ratio.
    "own": ("your own images", Recipe(mask="uniform", epochs=None, steps=1_000)),
    "imagenet": ("ImageNet, 1,281,167 images", Recipe(epochs=300)),
    "imagenet_10percent": ("10 % of ImageNet", Recipe(epochs=3_000)),
    "imagenet_1percent": ("1 % of ImageNet", Recipe(epochs=30_000)),
    "coco": ("COCO train2017, 118,287 images", Recipe(epochs=3_000)),
    "ade20k": ("ADE20K train, 20,210 images", Recipe(model="vit_base", epochs=21_000)),
    "inat18": ("iNaturalist 2018, 437,513 images", Recipe(epochs=800)),
    "inat19": ("iNaturalist 2019, 265,240 images", Recipe(epochs=1_400)),
    "food101": ("Food-101, 75,750 images", Recipe(epochs=5_000)),
    "cars": ("Stanford Cars, 8,144 images", Recipe(**_TINY_SETS)),
    "clipart": ("DomainNet Clipart, 34,019 images", Recipe(**_TINY_SETS)),
    "painting": ("DomainNet Painting, 52,867 images", Recipe(**_TINY_SETS)),
    "sketch": ("DomainNet Sketch, 49,115 images", Recipe(**_TINY_SETS)),
    "small": (
        "a few hundred images on a CPU",
        # docs/study/ablation.md: matching must neither outweigh inpainting nor go by colours; small crops magnify; in
        # long runs attention must not collapse.
        Recipe(
            **_FEW_IMAGES | {"crop_scale": 0.05, "crop_scale_max": 0.4},
            tokenizer="kmeans",
            vocab_size=256,
            match_weight=0.1,
            branch_jitter=0.4,
            mask_ratio=0.75,
            img_size=96,
            qk_limit=3.0,
            steps=2_000,
        ),
    ),
    "demo": (
        "the images of make demo",
        # Patches as they are: all scenes have one light. The encoder is small, because a minute counts for more crops.
        Recipe(
            **_FEW_IMAGES | {"base_lr": 3.2e-2, "crop_scale": 0.36},
            embed_dim=96,
            depth=6,
            tokenizer="kmeans",
            vocab_size=256,
            patch_norm="none",
            kmeans_iterations=10,
            match_weight=0.1,
            img_size=96,
            steps=1_000,
        ),
    ),
    "tiny": (
        "a test on a CPU in seconds",
        Recipe(
            **_CPU | {"base_lr": 1.6e-2},
            vocab_size=256,
            kmeans_iterations=3,
            dino_outputs=256,
            img_size=64,
            batch_size=8,
            steps=20,
        ),
    ),
}


def get_recipe(name: str) -> Recipe:
    """Returns the recipe called `name`.

    Raises:
        ValueError: unknown name, with the nearest right one.
    """
    check_choice("recipe", name, RECIPES, "--recipe")
    return RECIPES[name][1]
