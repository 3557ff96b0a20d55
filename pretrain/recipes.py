"""Pre-training recipes by name: every row of the paper's settings, and small ones. Free of torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.training.recipe import changes
from splitmask_backbones.errors import UserError, check_choice
from splitmask_backbones.registry import ENCODERS

REFERENCE_BATCH = 2048
METHODS = ("splitmask", "beit", "dino")

METHOD_VALUES: dict[str, dict[str, Any]] = {
    # DINO's published settings: lr 5e-4 at batch 256, down to 1e-6, weight decay 0.04 up to 0.4, large crops from 0.4.
    "dino": {
        "base_lr": 4e-3,
        "end_lr_factor": 1e-6 / 4e-3,
        "weight_decay": 0.04,
        "end_weight_decay": 0.4,
        "crop_scale": 0.4,
        "crop_scale_max": 1.0,
        "strong_augment": False,
    }
}
"""What choosing a method changes in any recipe, unless it is given. BEiT takes SplitMask's, as in the paper."""

PATCH_NORMS = ("none", "mean", "pixel_mean", "channel_mean")
_WORDS = ("tokenizer", "vocab_size", "patch_norm", "kmeans_patches", "kmeans_iterations")
_SPLIT = ("mask", "mask_ratio", "decoder_depth", "inpaint_weight", "match_weight", "temperature", "branch_jitter")
_TEACHER = ("local_crops", "dino_outputs", "teacher_momentum", "teacher_temperature", "teacher_warmup")
UNUSED = {
    "splitmask": _TEACHER,
    "beit": (*_SPLIT, *_TEACHER),
    "dino": (*_WORDS, *_SPLIT, "crop_scale_max", "strong_augment"),
}
"""Values that mean nothing to a method. BEiT's mask is its own: blocks, 75 of 196 patches."""


def option(default: Any, help: str, choices: tuple[str, ...] | None = None) -> Any:
    """Returns a dataclass field that also describes its command-line option."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Recipe:
    """Every value that decides what pre-training computes (SplitMask Sec. 4 and App. A, via BEiT's settings)."""

    model: str = option("vit_small", "encoder", tuple(ENCODERS))
    method: str = option("splitmask", "pre-training method", METHODS)
    tokenizer: str = option(
        "random_projection", "visual words", ("random_projection", "random_patches", "kmeans", "dalle")
    )
    vocab_size: int = option(8192, "number of visual words V")
    patch_norm: str = option("mean", "mean taken out of a patch before it gets its word", PATCH_NORMS)
    kmeans_patches: int = option(3_000_000, "patches that k-means clusters, at most")
    kmeans_iterations: int = option(20, "iterations of k-means")
    img_size: int = option(224, "side of the crop in pixels")
    crop_scale: float = option(0.08, "least share of the image's area in a crop")
    crop_scale_max: float = option(1.0, "greatest share; small ones magnify things smaller than a patch")
    strong_augment: bool = option(False, "also grey-scale, solarisation, blur and colour jitter (tiny sets)")
    mask: str = option(
        "block",
        "how patches are split (beit has its own: blocks, 75 of 196)",
        ("block", "uniform"),
    )
    mask_ratio: float = option(0.5, "share of the patches that a branch does not see")
    decoder_depth: int = option(2, "decoder layers")
    inpaint_weight: float = option(1.0, "weight of the inpainting loss; 0 switches it off")
    match_weight: float = option(1.0, "weight of the matching loss; 0 switches it off")
    temperature: float = option(0.2, "temperature of the matching loss")
    branch_jitter: float = option(
        0.0, "change of each branch's colours, so that matching cannot go by them; 0 for none"
    )
    local_crops: int = option(8, "small crops of an image (dino)")
    dino_outputs: int = option(65536, "outputs of the heads (dino)")
    teacher_momentum: float = option(0.996, "momentum of the teacher at the start, rising to 1 (dino)")
    teacher_temperature: float = option(0.04, "temperature of the teacher's softmax (dino)")
    teacher_warmup: float = option(0.0, "share of the updates in which that temperature rises from 0.04 (dino)")
    epochs: int | None = option(300, "epochs of floor(images / batch) updates")
    steps: int | None = option(None, "updates of the whole run, in place of --epochs")
    batch_size: int = option(2048, "images an update over all processes and accumulated micro-batches")
    accumulate: int = option(
        1,
        "micro-batches an update; plain accumulation does not enlarge the set of negatives of the matching loss: "
        "they come from the micro-batch (over all processes)",
    )
    lr: float | None = option(None, "peak learning rate; by default base_lr x batch_size / 2048")
    base_lr: float = option(1.5e-3, "peak learning rate at batch 2048")
    end_lr_factor: float = option(1e-5 / 1.5e-3, "last learning rate over the peak (the paper's 1e-5 / 1.5e-3)")
    warmup_fraction: float = option(10 / 300, "share of the updates that warm up (the paper's 10 of 300 epochs)")
    weight_decay: float = option(0.05, "AdamW weight decay, none on 1-D parameters and positions")
    end_weight_decay: float | None = option(None, "last weight decay, reached along a cosine; by default constant")
    beta2: float = option(0.999, "AdamW second beta")
    clip_grad: float = option(3.0, "largest gradient norm")
    drop_path: float = option(0.1, "stochastic depth of the encoder")
    freeze_patch_embed: bool = option(False, "the patch embedding stays as initialised (MoCo v3)")
    seed: int = option(0, "seed of everything random")
    precision: str = option("32", "bf16 is mixed precision", ("32", "bf16"))

    def check(self) -> None:
        """Raises ValueError for a value that cannot work, naming option and remedy."""
        for field in dataclasses.fields(self):
            if field.metadata["choices"]:
                check_choice(field.name, getattr(self, field.name), field.metadata["choices"])
        if (self.epochs is None) == (self.steps is None):
            raise UserError("--epochs and --steps exclude each other: give one of them")
        counts = ("epochs", "steps", "batch_size", "accumulate", "vocab_size", "decoder_depth", "kmeans_iterations")
        for name in (*counts, "dino_outputs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        for name in ("lr", "base_lr", "clip_grad", "temperature", "teacher_temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"--{name.replace('_', '-')} must be a positive number, got {value}")
        for name in ("inpaint_weight", "match_weight", "weight_decay", "end_weight_decay", "local_crops", "seed"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 2**62:
                raise UserError(f"--{name.replace('_', '-')} must be at least 0, got {value}")
        for name in (
            "crop_scale",
            "crop_scale_max",
            "warmup_fraction",
            "drop_path",
            "end_lr_factor",
            "branch_jitter",
            "teacher_momentum",
            "teacher_warmup",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name.replace('_', '-')} must be between 0 and 1, got {getattr(self, name)}")
        if self.drop_path == 1 or self.crop_scale == 0:
            raise UserError("--drop-path must be below 1 and --crop-scale above 0")
        if self.crop_scale > self.crop_scale_max:
            raise UserError(f"--crop-scale {self.crop_scale} must be at most --crop-scale-max {self.crop_scale_max}")
        if not 0 <= self.beta2 < 1:
            raise UserError(f"--beta2 must be in [0, 1), got {self.beta2}")
        if self.method == "splitmask":
            self._check_split()
        self._check_img_size()

    def _check_split(self) -> None:
        if self.inpaint_weight == 0 and self.match_weight == 0:
            raise UserError("--inpaint-weight 0 together with --match-weight 0 leaves nothing to learn")
        if self.branch_jitter and self.match_weight == 0:
            raise UserError(f"--branch-jitter {self.branch_jitter} means nothing with --match-weight 0: leave it away")
        if self.mask == "block" and self.mask_ratio != 0.5:
            raise UserError(f"--mask block splits in halves: --mask-ratio {self.mask_ratio} needs --mask uniform")
        if not 0.5 <= self.mask_ratio < 1:
            raise UserError(f"--mask-ratio must be in [0.5, 1), got {self.mask_ratio}")
        if self.match_weight and self.batch_size // self.accumulate < 2:
            raise UserError("the matching loss needs other images in the batch: use --batch-size 2 or more")

    def _check_img_size(self) -> None:
        patch_size = ENCODERS[self.model]["patch_size"]
        side = self.img_size // patch_size
        if self.img_size < 1 or self.img_size % patch_size or (side * side) % 2 or side * side < 4:
            raise UserError(
                f"--img-size {self.img_size} must be a multiple of the patch size {patch_size} with an even number of "
                f"patches, at least 4: use {max(2, round(self.img_size / patch_size / 2) * 2) * patch_size}"
            )

    @property
    def uses_words(self) -> bool:
        """Whether the method predicts visual words."""
        return self.method == "beit" or self.method == "splitmask" and self.inpaint_weight > 0

    def check_tokenizer_weights(self, path: str | Path | None) -> None:
        """Raises ValueError where the words need a file that is not given, or the other way round."""
        if self.tokenizer != "dalle" and path is not None:
            raise UserError(f"--tokenizer-weights goes with --tokenizer dalle: {self.tokenizer} needs no file")
        if self.uses_words and self.tokenizer == "dalle" and path is None:
            raise UserError(
                "--tokenizer dalle needs the 8192 words of DALL-E's encoder and has 0 without weights: add "
                "--tokenizer-weights FILE.safetensors, or use random_projection (75.2 against 75.2 in the paper's "
                "ablation), random_patches or kmeans"
            )

    @property
    def peak_lr(self) -> float:
        """The peak learning rate that is used: `lr`, or `base_lr` by the linear rule."""
        return self.lr if self.lr is not None else self.base_lr * self.batch_size / REFERENCE_BATCH

    def total_steps(self, steps_per_epoch: int) -> int:
        """Returns the updates of the whole run."""
        return self.steps if self.steps is not None else (self.epochs or 0) * steps_per_epoch

    def override(self, values: dict[str, Any]) -> Recipe:
        """Returns the recipe with some values replaced; steps replaces epochs and the other way round.

        Another method brings its own values along (METHOD_VALUES).

        Raises:
            ValueError: unknown name, a value that cannot work, or one that means nothing to the method.
        """
        method = values.get("method", self.method)
        check_choice("method", method, METHODS)
        for name, value in values.items():
            if name in UNUSED[method] and value != getattr(self, name):
                raise UserError(f"--{name.replace('_', '-')} {value} means nothing to --method {method}: leave it away")
        if method != self.method:
            values = {**METHOD_VALUES.get(method, {}), **values}
        recipe = dataclasses.replace(self, **changes(self, values))
        recipe.check()
        return recipe


_TINY_SETS: dict[str, Any] = {"mask": "uniform", "mask_ratio": 0.75, "strong_augment": True, "epochs": 5000}
# What a machine without a GPU can do: short runs need a higher base rate and more of their updates to warm up. Ours.
_CPU: dict[str, Any] = {"model": "vit_tiny", "base_lr": 4e-3, "warmup_fraction": 0.1, "drop_path": 0.0}

RECIPES: dict[str, tuple[str, Recipe]] = {
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
        Recipe(
            **_CPU,
            vocab_size=2048,
            mask="uniform",  # the paper's mask for its tiny sets
            mask_ratio=0.75,
            dino_outputs=4096,
            img_size=128,
            crop_scale=0.2,
            batch_size=64,
            epochs=None,
            steps=1_000,
        ),
    ),
    "demo": (
        "the synthetic images of make demo",
        Recipe(
            **_CPU,
            tokenizer="kmeans",
            vocab_size=1024,
            kmeans_iterations=10,
            mask="uniform",
            dino_outputs=4096,
            img_size=96,
            crop_scale=0.2,
            batch_size=64,
            epochs=None,
            steps=250,
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
            epochs=None,
            steps=20,
        ),
    ),
}


def get_recipe(name: str) -> Recipe:
    """Returns the recipe called `name`.

    Raises:
        ValueError: unknown name, with the nearest right one.
    """
    check_choice("recipe", name, RECIPES)
    return RECIPES[name][1]
