"""From `--predict` to pictures with what a detector finds, and predictions.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from det_configs.common.recipe import DetRecipe
from pretrain.data.decode import read_image
from pretrain.training.run_folder import RunFolder, write_json
from tools.detection.detect import detect_all
from tools.detection.draw import draw
from tools.detection.results import to_coco
from tools.finetuning.pictures import picture_names, readable_pictures

DRAWN_SCORE = 0.5


def predict_pictures(
    fabric: Any,
    detector: Any,
    recipe: DetRecipe,
    categories: list[tuple[int, str]],
    source: Path,
    folder: RunFolder,
    workers: int,
) -> None:
    """Draws what a detector finds in a picture or a folder of pictures into DIR/predictions.

    Args:
        fabric: device, precision, processes.
        detector: of either engine.
        recipe: of its training.
        categories: id and name of each label.
        source: `--predict`.
        folder: of the run; also gets predictions.json.
        workers: data processes.

    Raises:
        ValueError: no picture, or none that can be read.
    """
    root, found_sizes = readable_pictures(source)
    kept, sizes = list(found_sizes), list(found_sizes.values())
    paths = [root / name for name in kept]
    output = folder.path / "predictions"
    class_names = [name for _, name in categories]
    pictures = picture_names(kept)
    everything: dict[str, list[dict[str, Any]]] = {}
    for index, found in detect_all(fabric, detector, paths, sizes, recipe, workers, title="predict"):
        target = output / pictures[index]
        target.parent.mkdir(parents=True, exist_ok=True)
        draw(read_image(paths[index]), found, class_names, DRAWN_SCORE).save(target)
        listed = to_coco(index, found, categories)
        everything[kept[index]] = [{k: v for k, v in entry.items() if k != "image_id"} for entry in listed]
    if fabric.world_size == 1:
        write_json(output / "predictions.json", everything)
    drawn = sum(entry["score"] >= DRAWN_SCORE for listed in everything.values() for entry in listed)
    if folder.is_main:
        print(f"wrote {len(kept)} pictures with {drawn} detections of score {DRAWN_SCORE} or more to {output}")
