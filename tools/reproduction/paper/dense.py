"""The tables of detection (Table 3) and segmentation (ADE20K)."""

from __future__ import annotations

from tools.reproduction.paper.schema import (
    BASE,
    LETTER,
    SMALL,
    Cell,
    Measurement,
    Origin,
    Row,
    Table,
    beit_imagenet,
    pretrained,
    published,
    random_init,
)

_BOX = ("bbox.AP", "bbox.AP50", "bbox.AP75", "segm.AP", "segm.AP50", "segm.AP75")
_COLUMNS = ("box AP", "box AP50", "box AP75", "mask AP", "mask AP50", "mask AP75")

# Row -> title, length, then the six values of ViT-S and of ViT-B.
_COCO = {
    "random": ("random init", "3x", "38.3 60.1 41.4 35.6 57.1 37.7", "40.7 62.7 44.2 37.1 59.1 39.4"),
    "random_6x": ("random init, longer", "6x", "42.8 64.5 45.6 39.1 61.5 41.7", "43.0 64.2 46.9 38.8 61.3 41.6"),
    "deit": ("DeiT, ImageNet with labels", "3x", "44.2 66.6 47.9 40.1 63.2 42.7", "45.5 67.9 49.2 41.0 64.6 43.8"),
    "beit_imagenet": ("BEiT, ImageNet", "3x", "44.5 66.2 48.8 40.3 63.2 43.1", "46.3 67.6 50.6 41.6 64.5 44.9"),
    "dino_coco": ("DINO, COCO", "3x", "43.7 65.5 47.7 39.6 62.3 42.3", "43.1 64.4 46.9 38.9 61.4 41.4"),
    "beit_coco": ("BEiT, COCO", "3x", "44.7 66.3 48.8 40.2 63.1 43.2", "46.7 67.7 51.2 41.8 65.0 44.6"),
    "splitmask_coco": ("SplitMask, COCO", "3x", "45.3 66.9 49.4 40.6 63.6 43.5", "46.8 67.9 51.5 42.1 65.3 45.1"),
}


def _origin(name: str, model: str, data: str) -> Origin:
    if name.startswith("random"):
        return random_init(model)
    if name == "deit":
        return published("deit", model)
    if name == "beit_imagenet":
        return beit_imagenet(model)
    return pretrained(name.split("_")[0], data, model)


def _coco_row(name: str, model: str) -> Row:
    title, length, *values = _COCO[name]
    numbers = [float(word) for word in values[model == BASE].split()]
    config = f"coco_{length}_{model}_{name.removesuffix('_6x')}"
    origin = _origin(name, model, "coco")
    return Row(
        f"{model}_{name}",
        f"{LETTER[model]} {title}",
        tuple(
            Cell(column, number, Measurement("train_det", config, metric, origin, "coco"))
            for column, number, metric in zip(_COLUMNS, numbers, _BOX, strict=True)
        ),
    )


COCO = Table(
    "coco",
    "Table 3: Mask R-CNN on COCO val2017",
    "AP x 100",
    tuple(_coco_row(name, model) for model in (SMALL, BASE) for name in _COCO),
)

_ADE20K = {
    "random": ("random init", 25.4),
    "deit": ("DeiT, ImageNet with labels", 46.1),
    "beit_imagenet": ("BEiT, ImageNet", 45.6),
    "beit_ade20k": ("BEiT, ADE20K", 45.6),
    "splitmask_ade20k": ("SplitMask, ADE20K", 45.7),
}


def _ade20k_row(name: str) -> Row:
    title, value = _ADE20K[name]
    measured = Measurement("train_seg", f"ade20k_160k_{BASE}_{name}", "mIoU", _origin(name, BASE, "ade20k"), "ade20k")
    return Row(f"{BASE}_{name}", f"{LETTER[BASE]} {title}", (Cell("mIoU", value, measured),))


ADE20K = Table("ade20k", "UperNet on ADE20K", "mIoU in percent", tuple(_ade20k_row(name) for name in _ADE20K))

TABLES = (COCO, ADE20K)
