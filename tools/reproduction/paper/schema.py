"""What a table of the paper is made of: rows, columns, published values, and what makes each cell. Free of torch."""

from collections.abc import Iterable
from dataclasses import dataclass

from splitmask_backbones.errors import check_choice


@dataclass(frozen=True)
class Origin:
    """Where an encoder comes from.

    Attributes:
        kind: "none" (random initialisation), "pretrain", "supervised" (tools/train_cls.py) or "published" (a file of
            others, converted).
        model: encoder.
        method: pre-training method, or family of the published file.
        data: data set, which is also the name of the recipe.
        options: further recipe values, as (name, value).
    """

    kind: str
    model: str
    method: str = ""
    data: str = ""
    options: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """A name for folders, such as "coco_splitmask_vit_small"; every field takes part."""
        if self.kind == "none":
            return f"random_{self.model}"
        if self.kind == "published":
            return f"{self.method}_{self.model.removeprefix('vit_')}"
        extra = "".join(f"_{key.replace('_', '-')}-{value}" for key, value in self.options)
        return f"{self.data}_{self.method or 'supervised'}_{self.model}{extra}"


@dataclass(frozen=True)
class Measurement:
    """How a cell is measured: the tool, what it is told, and the value of its results.json.

    Attributes:
        tool: "train_det", "train_seg", "train_cls", "probe", or "hours" for the time of the pre-training.
        setting: config file without folder and suffix, or recipe of train_cls, or data set of a probe.
        metric: dotted path in results.json, such as "bbox.AP".
        origin: encoder that is fine-tuned.
        data: data set.
    """

    tool: str
    setting: str
    metric: str
    origin: Origin
    data: str


@dataclass(frozen=True)
class Cell:
    """One number of a table: its column, the published value, and how it is measured."""

    column: str
    value: float
    measured: Measurement


@dataclass(frozen=True)
class Row:
    """One row: a name for the command line, a title for people, its cells."""

    name: str
    title: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """One table: name, title, unit and rows; all rows together give the columns, in order."""

    name: str
    title: str
    unit: str
    rows: tuple[Row, ...]

    @property
    def columns(self) -> list[str]:
        """Columns in the order in which the rows name them."""
        return list(dict.fromkeys(cell.column for row in self.rows for cell in row.cells))

    def row(self, name: str) -> Row:
        """Returns a row.

        Raises:
            ValueError: unknown name, with the nearest right one.
        """
        rows = {row.name: row for row in self.rows}
        check_choice(f"row of table {self.name}", name, rows)
        return rows[name]


def make_row(name: str, title: str, values: str, places: Iterable[tuple[str, Measurement]]) -> Row:
    """Returns a row from its values, "-" where the paper has none, and the column and measurement of each."""
    cells = zip(values.split(), places, strict=True)
    return Row(name, title, tuple(Cell(column, float(value), how) for value, (column, how) in cells if value != "-"))


SMALL, BASE = "vit_small", "vit_base"
LETTER = {SMALL: "ViT-S", BASE: "ViT-B"}
TITLES = {
    "random": "random init",
    "random_6x": "random init, longer",
    "deit": "DeiT, ImageNet with labels",
    "beit_imagenet": "BEiT, ImageNet",
    "dino": "DINO, {}",
    "beit": "BEiT, {}",
    "splitmask": "SplitMask, {}",
}
"""Titles of the rows of Tables 3 and 5 and of ADE20K; {} is the data set that is also fine-tuned on."""


def pretrained(method: str, data: str, model: str, **options: object) -> Origin:
    """Returns a pre-training with a method on a data set; options are recipe values."""
    return Origin("pretrain", model, method, data, tuple((key, str(value)) for key, value in options.items()))


def published(family: str, model: str) -> Origin:
    """Returns a file of others: DeiT's, BEiT's, DINO's or MoCo v3's, all on ImageNet."""
    return Origin("published", model, family, "imagenet")


def encoder_of(row: str, model: str, data: str) -> Origin:
    """Returns the encoder of a row of Tables 3 and 5 and of ADE20K.

    BEiT published no ViT-S: its row "beit_imagenet" is a pre-training with DALL-E's codebook.

    Args:
        row: "random", "deit", "beit_imagenet", or a method and where it was pre-trained.
        data: set that is fine-tuned on, and pre-trained on in the rows of a method.
    """
    if row.startswith("random"):
        return Origin("none", model)
    if row == "deit" or (row, model) == ("beit_imagenet", BASE):
        return published(row.split("_")[0], model)
    if row == "beit_imagenet":
        return pretrained("beit", "imagenet", model, tokenizer="dalle")
    return pretrained(row.split("_")[0], data, model)
