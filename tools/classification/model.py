"""The classifier: the encoder, the mean of its patch tokens, a LayerNorm and one linear layer."""

import logging
from pathlib import Path
from typing import Any

import torch
from timm.data.mixup import Mixup, mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn

from pretrain.data.pixel_norm import PixelNorm
from pretrain.training.global_generators import global_generators
from splitmask_backbones.adapters import resolve_encoder
from splitmask_backbones.vit import VisionTransformer
from tools.classification.recipes import ClsRecipe

logger = logging.getLogger(__name__)

HEAD_STD = 2e-5
"""Of the last layer's initial weights: the first predictions are uniform (BEiT's 0.02 x 0.001, MAE)."""


class Classifier(nn.Module):
    """Encoder, mean pooling, norm, linear layer; `classifier(batch)` returns named losses for training.

    As BEiT and MAE fine-tune: the encoder's own final norm gives way to a new one after the pooling. The paper's
    encoders have no class token; where a file has one (or registers), it takes part in the attention and the mean is
    over the patches alone.

    Args:
        encoder: built with `final_norm=False`.
        recipe: for mixup, cutmix and label smoothing.
    """

    metric_names = ("loss", "accuracy")

    def __init__(self, encoder: VisionTransformer, num_classes: int, recipe: ClsRecipe) -> None:
        super().__init__()
        self.encoder = encoder
        self.fc_norm = nn.LayerNorm(encoder.embed_dim, eps=encoder.config["layer_norm_eps"])
        self.head = nn.Linear(encoder.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD)
        nn.init.zeros_(self.head.bias)
        self.num_classes, self.label_smoothing = num_classes, recipe.label_smoothing
        self.mix = None
        if recipe.mixes:
            self.mix = Mixup(
                mixup_alpha=recipe.mixup,
                cutmix_alpha=recipe.cutmix,
                label_smoothing=recipe.label_smoothing,
                num_classes=num_classes,
            )
        self.loss = SoftTargetCrossEntropy()
        self.normalize = PixelNorm()

    def logits(self, images: Tensor) -> Tensor:
        """Returns `(B, K)` for normalised float images `(B, 3, H, W)`."""
        tokens = self.encoder(images)[:, self.encoder.num_prefix_tokens :]
        return self.head(self.fc_norm(tokens.mean(dim=1)))

    def predict(self, images: Tensor) -> Tensor:
        """Returns float32 logits `(B, K)` for uint8 images `(B, 3, H, W)`."""
        return self.logits(self.normalize(images)).float()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the `loss` and the `accuracy` in 0-1, both 0-dim, of a training batch.

        Where images are mixed, right is the class with the larger part.

        Args:
            batch: `image` uint8 `(B, 3, S, S)` and `label` int64 `(B,)`.
        """
        images, labels = self.normalize(batch["image"]), batch["label"]
        if self.mix is None:
            targets = mixup_target(labels, self.num_classes, 1.0, self.label_smoothing)
        else:
            # From torch's generator, which the loop seeds for each step.
            with global_generators(int(torch.randint(2**31, ()))):
                images, targets = self.mix(images, labels)
        logits = self.logits(images).float()
        accuracy = (logits.argmax(dim=1) == targets.argmax(dim=1)).float().mean()
        return {"loss": self.loss(logits, targets), "accuracy": accuracy}


def build_classifier(
    recipe: ClsRecipe,
    num_classes: int,
    weights: Path | None = None,
    encoder_config: dict[str, Any] | None = None,
    model: str | None = None,
) -> Classifier:
    """Returns the classifier; its encoder comes from a file (strictly), from a run's config, or is new.

    Args:
        recipe: of the run; its `model` counts without weights and config.
        weights: an encoder file; it decides the encoder.
        encoder_config: constructor arguments of an earlier run's encoder.
        model: a name that the file has to agree with.

    Raises:
        ValueError: unusable weights, or of another encoder than `model`.
    """
    overrides: dict[str, Any] = {
        "img_size": recipe.img_size,
        "drop_path_rate": recipe.drop_path,
        "final_norm": False,
        "norm_maps": False,
    }
    if encoder_config is not None:
        encoder = VisionTransformer(**encoder_config)
    elif weights is not None:
        encoder = resolve_encoder(model, weights, **overrides)
        if encoder.num_prefix_tokens:
            logger.info("%d prefix tokens: the mean is over the patches alone", encoder.num_prefix_tokens)
    else:
        encoder = resolve_encoder(recipe.model, **overrides)
    return Classifier(encoder, num_classes, recipe)
