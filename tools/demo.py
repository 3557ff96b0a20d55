"""The whole way on a small machine: pre-train with SplitMask, then Mask R-CNN and UperNet from random init and from it.

Without --data it makes its own images. What was interrupted continues; what is finished is not done again.
"""

from __future__ import annotations

import _path
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitmask_backbones.errors import UserError
from tools import cli
from tools.demos.steps import StepError, Steps

NUM_PICTURES = 6
ROWS = {"none": "random init", "splitmask": "SplitMask"}
HEADER = ("encoder", "box AP", "mask AP", "mIoU", "pre-training s", "fine-tuning s")
CAPTION = "val, in percent. One seed each: repeat with others before reading much into a small difference."


@dataclass(frozen=True)
class Inputs:
    """What the steps are given.

    Attributes:
        pretrain: arguments of tools/pretrain.py that name the images.
        detection: arguments of tools/train_det.py that name the data.
        segmentation: folder with images/ and annotations/, or None.
        pictures: files of the validation split to look at.
        words: files to show visual words of.
        note: why there is no segmentation, or None.
    """

    pretrain: list[str]
    detection: list[str]
    segmentation: Path | None
    pictures: list[Path]
    words: list[Path]
    note: str | None = None


def build_parser() -> cli.Parser:
    """Returns the parser."""
    parser = cli.Parser(prog="tools/demo.py", description=__doc__)
    parser.add_argument(
        "--data",
        metavar="ROOT",
        help="COCO-layout folder: train*/, val*/, annotations/instances_*.json (default: synthetic)",
    )
    parser.add_argument("--output", default="runs/demo", metavar="DIR", help="default runs/demo")
    for name, what in (("pretrain", "pre-training"), ("det", "each detector"), ("seg", "each segmentor")):
        parser.add_argument(
            f"--{name}-steps", type=cli.positive_int, metavar="N", help=f"updates of {what} (default: the recipe's)"
        )
    parser.add_argument("--seed", type=cli.non_negative_int, default=0, metavar="N", help="of every step (default 0)")
    parser.add_argument(
        "--workers", type=cli.non_negative_int, default=2, metavar="N", help="data processes (default 2)"
    )
    return parser


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    args = build_parser().parse_args(argv)
    from pretrain.training.run_folder import CONFIG, LOCK, RunFolder

    output = Path(args.output)
    started_before = (output / CONFIG).exists() or (output / LOCK).exists()
    with RunFolder.open(output, resume=started_before, artefact="table.md") as folder:
        steps = Steps(output, args.debug)
        try:
            inputs = _inputs(args, output, steps, folder)
            folders = _train(args, inputs, steps)
            _pictures(inputs, folders, output, steps)
        except StepError as error:
            if error.line is not None:
                sys.stderr.write(error.line + "\n")
            else:
                sys.stdout.write("stopped: the same command continues from here\n")
            return error.code
        _table(folders, inputs, output, steps.seconds)
    return 0


def _inputs(args: Any, output: Path, steps: Steps, folder: Any) -> Inputs:
    """Makes or opens the data; the run's config is written as soon as its input is known to be good."""
    values = {
        "data": None if args.data is None else str(Path(args.data).resolve()),
        "pretrain_steps": args.pretrain_steps,
        "det_steps": args.det_steps,
        "seg_steps": args.seg_steps,
        "seed": args.seed,
    }
    config = {"command": "demo", "values": values, "free": {"workers": args.workers}}
    if folder.previous is not None:
        try:
            folder.write_config(config)  # compares
        except UserError as error:  # here a run is resumed without the option
            raise UserError(str(error).removeprefix("--resume: ")) from None

    def commit() -> None:
        if folder.previous is None:
            folder.write_config(config)

    started = time.monotonic()
    inputs = _synthetic(output / "data", commit) if args.data is None else _own(args.data, output / "data", commit)
    steps.add_seconds("data", time.monotonic() - started)
    return inputs


def _synthetic(root: Path, commit: Callable[[], None]) -> Inputs:
    from tools.demo_data import make_demo_data

    sys.stdout.write(f"images: {root}\n")
    sys.stdout.flush()
    commit()
    make_demo_data(root)
    pictures = sorted((root / "coco" / "val").iterdir())[:NUM_PICTURES]
    return Inputs(
        ["--data", str(root / "unlabelled")],
        ["--data", str(root / "coco")],
        root / "seg",
        pictures,
        sorted((root / "unlabelled").iterdir())[:256],
    )


def _own(data: str, work: Path, commit: Callable[[], None]) -> Inputs:
    from pretrain.data.decode import UnreadableImage, read_image
    from tools.demos.folder import open_folder, why_no_segmentation, write_segmentation

    found = open_folder(data, work)
    commit()
    for note in found.notes:
        sys.stdout.write(f"{note}\n")
    reason = why_no_segmentation(found)
    segmentation = None
    if reason is None:
        work.mkdir(parents=True, exist_ok=True)
        segmentation = write_segmentation(found, work / "seg")

    def readable(split: str, count: int) -> list[Path]:
        files: list[Path] = []
        for image in found.splits[split].images:
            if len(files) == count:
                break
            path = found.splits[split].image_dir / image.file_name
            try:
                read_image(path)
            except (UnreadableImage, OSError):
                continue
            files.append(path)
        return files

    train, val = found.locations["train"], found.locations["val"]
    return Inputs(
        ["--data", str(train.json_path), "--images", str(train.image_dir)]
        + _small_data(len(found.splits["train"].images)),
        ["--train-json", str(train.json_path), "--train-images", str(train.image_dir)]
        + ["--val-json", str(val.json_path), "--val-images", str(val.image_dir)],
        segmentation,
        readable("val", NUM_PICTURES),
        readable("train", 256),
        None if reason is None else f"no segmentation: {reason}",
    )


def _small_data(num_images: int) -> list[str]:
    """Returns the options that let the demo's recipe run on fewer images than it is made for."""
    from pretrain.recipes import get_recipe
    from splitmask_backbones.registry import ENCODERS

    recipe = get_recipe("demo")
    num_patches = num_images * (recipe.img_size // ENCODERS[recipe.model]["patch_size"]) ** 2
    options = []
    if 2 <= num_images < recipe.batch_size:
        options += ["--batch-size", str(num_images)]
    if 2 <= num_patches < recipe.vocab_size:
        options += ["--vocab-size", str(num_patches)]
    return options


def _shown_path(name: str) -> str:
    """Returns the path of a file of the checkout as short as it can be given from here."""
    return os.path.relpath(_path.ROOT / name) if Path.cwd() == _path.ROOT else str(_path.ROOT / name)


def _train(args: Any, inputs: Inputs, steps: Steps) -> dict[str, Path]:
    """Returns the folders of the finished steps: "pretrain", "det_none", "det_splitmask", "seg_none", ..."""
    common = ["--seed", str(args.seed), "--workers", str(args.workers), "--save-every", "50", "--log-every", "10"]

    def budget(number: int | None) -> list[str]:
        return [] if number is None else ["--steps", str(number)]

    folders = {
        "pretrain": steps.run(
            "pretrain",
            "encoder.safetensors",
            "pretrain.py",
            *("--recipe", "demo", *inputs.pretrain, *common, *budget(args.pretrain_steps)),
        )
    }
    weights = {"none": "none", "splitmask": str(folders["pretrain"] / "encoder.safetensors")}
    heads = {"det": ("det_configs/demo.py", inputs.detection, args.det_steps)}
    if inputs.segmentation is not None:
        heads["seg"] = ("seg_configs/demo.py", ["--data", str(inputs.segmentation)], args.seg_steps)
    for head, (config, data, number) in heads.items():
        for start, file in weights.items():
            name = f"{head}_{start}"
            folders[name] = steps.run(
                name,
                "results.json",
                f"train_{head}.py",
                *(_shown_path(config), *data, "--weights", file, *common, *budget(number)),
            )
    return folders


def _pictures(inputs: Inputs, folders: dict[str, Path], output: Path, steps: Steps) -> None:
    from splitmask_backbones.files import write_atomically
    from tools.finetuning import plots

    pictures = output / "pictures"
    chosen = output / "data" / "pictures"
    chosen.mkdir(parents=True, exist_ok=True)
    pictures.mkdir(exist_ok=True)
    # Numbered, because names may come with folders and repeat.
    files = [chosen / f"{i}{path.suffix.lower()}" for i, path in enumerate(inputs.pictures)]
    for source, file in zip(inputs.pictures, files, strict=True):
        if not file.exists():
            write_atomically(file, source.read_bytes())
    for head, title in (("det", "detections"), ("seg", "segmentations")):
        if f"{head}_none" not in folders:
            continue
        columns = {"image": files}
        for start, name in ROWS.items():
            folder = folders[f"{head}_{start}"]
            config = _shown_path(f"{head}_configs/demo.py")
            steps.predict(folder, f"train_{head}.py", config, pictures=chosen)
            columns[name] = [next((folder / "predictions").glob(f"{file.stem}.*")) for file in files]
        plots.save_grid(columns, pictures / f"{title}.png")
    before = plots.read_metrics(folders["pretrain"] / "metrics.jsonl")
    names = {"inpaint": "loss_inpaint", "match": "loss_match"}
    panels = {
        "pre-training: losses": {label: plots.curve(before, name) for label, name in names.items()},
        "pre-training: token accuracy": {"unseen patches": plots.curve(before, "token_accuracy")},
    }
    for head, title in (("det", "Mask R-CNN: loss"), ("seg", "UperNet: loss")):
        if f"{head}_none" in folders:
            panels[title] = {
                name: plots.curve(plots.read_metrics(folders[f"{head}_{start}"] / "metrics.jsonl"), "loss")
                for start, name in ROWS.items()
            }
    plots.save_curves(panels, pictures / "loss_curves.png")
    from pretrain.monitoring.pictures import save_words_picture  # torch

    save_words_picture(folders["pretrain"], inputs.words, pictures / "words.png")


def _table(folders: dict[str, Path], inputs: Inputs, output: Path, seconds: dict[str, float]) -> None:
    """Prints the table and writes table.md: the last file of a demo."""
    from splitmask_backbones.files import write_atomically
    from tools.finetuning import plots

    rows = []
    for start, name in ROWS.items():
        det = json.loads((folders[f"det_{start}"] / "results.json").read_text(encoding="utf-8"))
        cells = [plots.show(det["bbox"]["AP"]), plots.show(det["segm"]["AP"])]
        if f"seg_{start}" in folders:
            seg = json.loads((folders[f"seg_{start}"] / "results.json").read_text(encoding="utf-8"))
            cells.append(plots.show(seg["mIoU"]))
        else:
            cells.append("-")
        before = seconds.get("pretrain", 0.0) if start == "splitmask" else 0.0
        after = sum(seconds.get(f"{head}_{start}", 0.0) for head in ("det", "seg"))
        rows.append([name, *cells, f"{before:.0f}", f"{after:.0f}"])
    caption = CAPTION if inputs.note is None else f"{CAPTION} {inputs.note[0].upper()}{inputs.note[1:]}."
    text = plots.markdown_table(HEADER, rows) + f"\n{caption}\n"
    write_atomically(output / "table.md", text.encode("utf-8"))
    plots.print_table("random init against SplitMask", caption, HEADER, rows)
    sys.stdout.write(f"table: {output / 'table.md'}\npictures: {output / 'pictures'}\n")


if __name__ == "__main__":
    cli.run(main)
