"""From detections to results.json, and the trained detector as a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from splitmask_backbones.errors import UserError
from splitmask_backbones.files import write_atomically
from tools.detection.coco import CocoSplit

if TYPE_CHECKING:
    from tools.detection.evaluate import Detection

DETECTOR = "detector.safetensors"


def to_coco(image_id: int, found: dict[str, Any], categories: Sequence[tuple[int, str]]) -> list[Detection]:
    """Returns one image's detections in COCO's result format: boxes as x, y, width, height."""
    return [
        {
            "image_id": image_id,
            "category_id": categories[int(label)][0],
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "score": float(score),
            "segmentation": rle,
        }
        for (x1, y1, x2, y2), label, score, rle in zip(
            found["boxes"], found["labels"], found["scores"], found["masks"], strict=True
        )
    ]


def paths_and_sizes(split: CocoSplit) -> tuple[list[Path], list[tuple[int, int]]]:
    """Returns the image files of a split and their `(H, W)`."""
    paths = [split.image_dir / image.file_name for image in split.images]
    return paths, [(image.height, image.width) for image in split.images]


def save_detector(path: Path, detector: nn.Module, config: dict[str, Any]) -> None:
    """Writes the detector's parameters, with the run's config as metadata."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in detector.state_dict().items()}
    write_atomically(path, save(tensors, metadata={"config": json.dumps(config, sort_keys=True)}))


def newest_weights(folder: Path) -> tuple[str, dict[str, Tensor]]:
    """Returns the name of a run's newest weights and the weights: the finished detector, else the newest checkpoint.

    Where the run keeps an average of its weights, that is returned.

    Raises:
        ValueError: there are none, or none is readable.
    """
    from pretrain.run_folder import CHECKPOINTS
    from pretrain.train_state import newest_checkpoint

    path = folder / DETECTOR
    if path.exists():
        try:
            with safe_open(str(path), framework="pt") as file:
                return path.name, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise UserError(f"{path} is damaged ({error}): remove it and finish the run with --resume") from None
    found = newest_checkpoint(folder / CHECKPOINTS)
    if found is None:
        raise UserError(f"{folder} holds no trained weights yet: train first, or continue with --resume")
    state, tensors = found
    prefix = "average." if any(name.startswith("average.") for name in tensors) else "model."
    weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return f"checkpoint step_{state['step']:08d}", weights
