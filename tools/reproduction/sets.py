"""The data sets of the tables: where they lie below --data, and how each tool is told. Free of torch."""

from dataclasses import dataclass
from pathlib import Path

from splitmask_backbones.errors import UserError, check_choice
from splitmask_backbones.files import write_atomically


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Attributes:
        num_images: training images, as the paper counts them.
        place: folder below --data.
        list_of: file in it that names the training images, where its folders do not tell them apart.
        share: whether the list takes a share of it.
        annotations: places of the COCO-like json in it that names the training images, the first that exists counts.
        images: places of the folder of the training images in it, where the set's own folder holds more.
    """

    num_images: int
    place: str
    list_of: str = ""
    share: bool = False
    annotations: tuple[str, ...] = ()
    images: tuple[str, ...] = ()


SETS = {
    "imagenet": DataSet(1_281_167, "imagenet"),
    "imagenet_10percent": DataSet(128_116, "imagenet", "10percent.txt", share=True),
    "imagenet_1percent": DataSet(12_811, "imagenet", "1percent.txt", share=True),
    "coco": DataSet(118_287, "coco"),
    "ade20k": DataSet(20_210, "ade20k"),
    "inat18": DataSet(437_513, "inat18", annotations=("train2018.json", "annotations/train2018.json")),
    "inat19": DataSet(265_240, "inat19", annotations=("train2019.json", "annotations/train2019.json")),
    "food101": DataSet(75_750, "food101", "meta/train.txt"),
    "cars": DataSet(8_144, "cars", images=("cars_train", "stanford_cars/cars_train")),
    "clipart": DataSet(34_019, "domainnet", "clipart_train.txt"),
    "painting": DataSet(52_867, "domainnet", "painting_train.txt"),
    "sketch": DataSet(49_115, "domainnet", "sketch_train.txt"),
}
"""Sizes: the paper's settings of pre-training; the shares of ImageNet are SimCLR's balanced lists."""


class Places:
    """Where the user's data sets lie.

    Args:
        given: values of --data: one root that holds a folder for each set, and NAME=PATH for those that lie elsewhere.
        needed: sets that will be asked for; where they all lie in one folder, the root may be that folder itself.

    Raises:
        ValueError: an unknown NAME (with the nearest), or two roots.
    """

    def __init__(self, given: list[str], needed: list[str]) -> None:
        self._named: dict[str, Path] = {}
        roots: list[str] = []
        folders = {SETS[name].place for name in needed}
        for text in given:
            name, equals, path = text.partition("=")
            if equals and "/" not in name:
                check_choice("data set", name, sorted({spec.place for spec in SETS.values()}), "--data")
                if name in self._named:
                    raise UserError(f"--data {name} is given twice: {self._named[name]} and {path}")
                self._named[name] = Path(path)
            else:
                roots.append(text)
        if len(roots) > 1:
            more = roots[1]
            raise UserError(f"--data {more} is a second root: give the others as NAME=PATH, such as coco={more}")
        for folder in folders - set(self._named) if roots else ():
            root = Path(roots[0])
            alone = len(folders) == 1 and not (root / folder).is_dir()
            self._named[folder] = root if alone else root / folder

    def folder(self, name: str) -> Path:
        """Returns the folder of a set, `<NAME>` where nothing was given for it."""
        place = SETS[name].place
        return self._named.get(place, Path(f"<{place}>"))

    def missing(self, name: str) -> str | None:
        """Returns what is not there of a set, with the remedy; None if it is there."""
        spec, folder = SETS[name], self.folder(name)
        if not folder.is_dir():
            return f"data set {spec.place}: {folder} is not a folder: give --data {spec.place}=PATH"
        needed = {
            spec.list_of: "put the data set's own list there",
            _first(folder, spec.annotations): "put the published file there",
            _first(folder, spec.images): "unpack the published images there",
        }
        if spec.share:
            needed[spec.list_of] = "put the paths or names of the images of the balanced share, one per line, there"
        for place, remedy in needed.items():
            if place and not (folder / place).exists():
                return f"data set {name}: {folder / place} does not exist: {remedy}"
        return None

    def pretraining(self, name: str, lists: Path) -> tuple[list[str], Path | None]:
        """Returns the options of tools/pretrain.py, and the file in `lists` that has to be written first, if any."""
        spec, folder = SETS[name], self.folder(name)
        if spec.list_of:
            file = lists / f"{name}.txt"
            return ["--data", str(file)], file
        if spec.annotations:
            return ["--data", str(folder / _first(folder, spec.annotations)), "--images", str(folder)], None
        return ["--data", str(folder / _first(folder, spec.images))], None

    def labelled(self, name: str) -> list[str]:
        """Returns the options of train_det, train_seg, train_cls and probe."""
        folder = self.folder(name)
        shares = ["--train-list", str(folder / SETS[name].list_of)] if SETS[name].share else []
        return ["--data", str(folder), *shares]


def _first(folder: Path, places: tuple[str, ...]) -> str:
    """Returns the first place that exists in a folder, the first of all if none does, "" for no places."""
    return next((place for place in places if (folder / place).exists()), (*places, "")[0])


def write_list(name: str, folder: Path, destination: Path) -> int:
    """Writes the absolute paths of a set's training images, one a line; returns their number.

    Food-101 lists `CLASS/NUMBER`, DomainNet `PATH LABEL`, the shares of ImageNet paths or bare names
    `WNID_NUMBER.JPEG`.
    """
    source = folder / SETS[name].list_of
    try:
        lines = [line.strip() for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is not text ({error.reason}): copy the data set's own list") from None
    if not lines:
        raise UserError(f"{source} is empty: copy the data set's own list")
    files = [folder.absolute() / _image(name, line) for line in lines]
    absent = [file for file in files if not file.exists()]
    if absent:
        raise UserError(f"{source}: {absent[0]} does not exist ({len(absent)} of {len(files)}): complete the data set")
    content = "".join(f"{file}\n" for file in files).encode("utf-8", "surrogateescape")
    if not destination.exists() or destination.read_bytes() != content:
        destination.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(destination, content)
    return len(files)


def _image(name: str, line: str) -> str:
    if name == "food101":
        return f"images/{line}.jpg"
    if not SETS[name].share:
        return line.rsplit(maxsplit=1)[0]  # path and label
    return line if "/" in line else f"train/{line.split('_')[0]}/{line}"
