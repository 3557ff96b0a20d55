"""From `--predict` to pictures with what a detector finds, and predictions.json."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from det_configs.common.recipe import DetRecipe
from pretrain.images import UnreadableImage, read_image
from pretrain.run_folder import RunFolder, write_json
from pretrain.sources import SUFFIXES
from splitmask_backbones.errors import UserError
from tools.detection.detect import detect_all
from tools.detection.draw import draw, picture_names
from tools.detection.results import to_coco

DRAWN_SCORE = 0.5


def predict_pictures(
    fabric: Any,
    detector: Any,
    recipe: DetRecipe,
    categories: list[tuple[int, str]],
    source: str,
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
    root, names = _pictures(Path(source))
    paths, sizes, kept = [], [], []
    for name in names:
        try:
            image = read_image(root / name)
        except UnreadableImage as error:
            if len(names) == 1:
                raise UserError(f"--predict {root / name} cannot be read: {error}") from None
            sys.stderr.write(f"warning: unreadable image {root / name}: {error}\n")
            continue
        paths.append(root / name)
        sizes.append((image.height, image.width))
        kept.append(name)
    if not kept:
        raise UserError(f"--predict {source}: none of the {len(names)} images can be read")
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


def _pictures(path: Path) -> tuple[Path, list[str]]:
    if path.is_file():
        return path.parent, [path.name]
    names = sorted(
        file.relative_to(path).as_posix()
        for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES and file.is_file()
    )
    if not names:
        raise UserError(f"--predict {path} holds no images: name a folder with {', '.join(SUFFIXES)} files")
    return path, names
