"""Stanford Cars as published: images in cars_train/ and cars_test/, labels in MATLAB files of devkit/.

Reading those needs SciPy, which the project does not require. The other forms in which the set is passed on, a folder a
class or a list, are plain `folder` and `list` layouts.
"""

from pathlib import Path
from typing import Any

from splitmask_backbones.errors import UserError

# The labels of the test images came later and lie where people have put them.
_FILES = {
    "train": ("cars_train_annos.mat",),
    "val": ("cars_test_annos_withlabels.mat", "cars_test_annos_with_labels.mat"),
}
_FOLDERS = {"train": "cars_train", "val": "cars_test"}


def has_cars(root: Path) -> bool:
    """Returns whether ROOT (or ROOT/stanford_cars, as torchvision has it) holds the published files."""
    return any(_base(root, split) is not None for split in _FILES)


def _base(root: Path, split: str) -> tuple[str, Path] | None:
    """Returns the folder within ROOT that holds the images' folders, and the label file of a split."""
    for prefix in ("", "stanford_cars/"):
        for name in _FILES[split]:
            for folder in (root / prefix / "devkit", root / prefix):
                if (folder / name).is_file():
                    return prefix, folder / name
    return None


def read_cars(root: Path, needed: tuple[str, ...]) -> tuple[dict[str, list[tuple[str, str]]], dict[str, str]]:
    """Returns split -> (name, label "1".."196"), and label -> name of the car.

    Raises:
        ValueError: a label file is missing or damaged, or SciPy is.
    """
    pairs: dict[str, list[tuple[str, str]]] = {}
    titles: dict[str, str] = {}
    for split in needed:
        found = _base(root, split)
        if found is None:
            raise UserError(
                f"--data {root} has no devkit/{' or devkit/'.join(_FILES[split])}: add the file with the labels, "
                "or sort the images into train/CLASS/ and val/CLASS/ folders"
            )
        prefix, path = found
        entries = _load(path, "annotations")
        try:
            pairs[split] = [
                (f"{prefix}{_FOLDERS[split]}/{entry['fname'].item()}", str(int(entry["class"].item())))
                for entry in entries
            ]
        except (ValueError, IndexError, TypeError) as error:
            raise UserError(f"{path} holds no `fname` and `class` for each image ({error}): copy it again") from None
        meta = path.with_name("cars_meta.mat")
        if meta.is_file():
            names = _load(meta, "class_names")
            titles = {str(number): str(name.item()) for number, name in enumerate(names, start=1)}
    return pairs, titles


def _load(path: Path, key: str) -> Any:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise UserError(
            f"{path} is a MATLAB file, which needs SciPy: pip install scipy, or sort the images into "
            "train/CLASS/ and val/CLASS/ folders"
        ) from None
    try:
        return loadmat(str(path))[key].reshape(-1)
    except Exception as error:  # scipy raises what the damage leads to
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error}): copy it again") from None
