"""The tables of detection (Table 3) and segmentation (ADE20K)."""

from tools.reproduction.paper.schema import BASE, LETTER, SMALL, TITLES, Measurement, Row, Table, encoder_of, make_row

_BOX = ("AP", "AP50", "AP75")
_COLUMNS = {
    f"{name} {metric}": f"{key}.{metric}" for name, key in (("box", "bbox"), ("mask", "segm")) for metric in _BOX
}

# Row -> length, then the six values of ViT-S and of ViT-B.
_COCO = {
    "random": ("3x", "38.3 60.1 41.4 35.6 57.1 37.7", "40.7 62.7 44.2 37.1 59.1 39.4"),
    "random_6x": ("6x", "42.8 64.5 45.6 39.1 61.5 41.7", "43.0 64.2 46.9 38.8 61.3 41.6"),
    "deit": ("3x", "44.2 66.6 47.9 40.1 63.2 42.7", "45.5 67.9 49.2 41.0 64.6 43.8"),
    "beit_imagenet": ("3x", "44.5 66.2 48.8 40.3 63.2 43.1", "46.3 67.6 50.6 41.6 64.5 44.9"),
    "dino_coco": ("3x", "43.7 65.5 47.7 39.6 62.3 42.3", "43.1 64.4 46.9 38.9 61.4 41.4"),
    "beit_coco": ("3x", "44.7 66.3 48.8 40.2 63.1 43.2", "46.7 67.7 51.2 41.8 65.0 44.6"),
    "splitmask_coco": ("3x", "45.3 66.9 49.4 40.6 63.6 43.5", "46.8 67.9 51.5 42.1 65.3 45.1"),
}


def _coco_row(name: str, model: str) -> Row:
    length, *values = _COCO[name]
    config, origin = f"coco_{length}_{model}_{name.removesuffix('_6x')}", encoder_of(name, model, "coco")
    places = [(column, Measurement("train_det", config, path, origin, "coco")) for column, path in _COLUMNS.items()]
    return make_row(
        f"{model}_{name}",
        f"{LETTER[model]} {TITLES[name.removesuffix('_coco')].format('COCO')}",
        values[model == BASE],
        places,
    )


COCO = Table(
    "coco",
    "Table 3: Mask R-CNN on COCO val2017",
    "AP x 100",
    tuple(_coco_row(name, model) for model in (SMALL, BASE) for name in _COCO),
)

_ADE20K = {"random": "25.4", "deit": "46.1", "beit_imagenet": "45.6", "beit_ade20k": "45.6", "splitmask_ade20k": "45.7"}


def _ade20k_row(name: str, value: str) -> Row:
    config, origin = f"ade20k_160k_{BASE}_{name}", encoder_of(name, BASE, "ade20k")
    place = ("mIoU", Measurement("train_seg", config, "mIoU", origin, "ade20k"))
    return make_row(
        f"{BASE}_{name}", f"{LETTER[BASE]} {TITLES[name.removesuffix('_ade20k')].format('ADE20K')}", value, [place]
    )


ADE20K = Table("ade20k", "UperNet on ADE20K", "mIoU in percent", tuple(_ade20k_row(*item) for item in _ADE20K.items()))

TABLES = (COCO, ADE20K)
