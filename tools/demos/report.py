"""The pictures and the table of a finished demo."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from splitmask_backbones.files import write_atomically
from tools.demos.plan import HEADS, STARTS
from tools.finetuning import plots
from tools.running.job import RESULTS
from tools.running.predictions import drawn

HEADER = ("encoder", "box AP", "mask AP", "mIoU", "pre-training s", "fine-tuning s")
CAPTION = "val, in percent. One seed each: repeat with others before reading much into a small difference."


def save_pictures(output: Path, token_images: Sequence[Path]) -> None:
    """Writes `output/pictures`: detections, segmentations, loss curves, and the codebook on some images."""
    pictures = output / "pictures"
    pictures.mkdir(exist_ok=True)
    files = sorted((output / "data" / "pictures").iterdir())
    before = plots.read_metrics(output / "pretrain" / "metrics.jsonl")
    names = {"inpaint": "loss_inpaint", "match": "loss_match"}
    panels = {
        "pre-training: losses": {label: plots.curve(before, name) for label, name in names.items()},
        "pre-training: token accuracy": {"unseen patches": plots.curve(before, "token_accuracy")},
    }
    for head, model, title in (("det", "Mask R-CNN", "detections"), ("seg", "UperNet", "segmentations")):
        runs = {name: output / f"{head}_{start}" for start, name in STARTS.items()}
        if not all(run.is_dir() for run in runs.values()):
            continue
        columns = {"image": files} | {name: drawn(run, files) for name, run in runs.items()}
        plots.save_grid(columns, pictures / f"{title}.png")
        metrics = {name: plots.read_metrics(run / "metrics.jsonl") for name, run in runs.items()}
        panels[f"{model}: loss"] = {name: plots.curve(entries, "loss") for name, entries in metrics.items()}
    plots.save_curves(panels, pictures / "loss_curves.png")
    from pretrain.monitoring.pictures import save_words_picture  # torch

    save_words_picture(output / "pretrain", list(token_images), pictures / "words.png")


def write_table(output: Path, seconds: Callable[[str], float], note: str | None) -> None:
    """Prints the table and writes table.md: the last file of a demo.

    Args:
        output: folder of the demo.
        seconds: wall time of a job by its name.
        note: a further sentence below the table.
    """
    rows = []
    for start, name in STARTS.items():
        det, seg = (_results(output / f"{head}_{start}" / RESULTS) for head in HEADS)
        cells = [plots.show(det["bbox"]["AP"]), plots.show(det["segm"]["AP"])]
        cells.append(plots.show(seg["mIoU"]) if seg else "-")
        before = seconds("pretrain") if start == "splitmask" else 0.0
        after = sum(seconds(f"{head}_{start}") for head in HEADS)
        rows.append([name, *cells, f"{before:.0f}", f"{after:.0f}"])
    caption = CAPTION if note is None else f"{CAPTION} {note[0].upper()}{note[1:]}."
    text = plots.markdown_table(HEADER, rows) + f"\n{caption}\n"
    write_atomically(output / "table.md", text.encode("utf-8"))
    plots.print_table("random init against SplitMask", caption, HEADER, rows)
    sys.stdout.write(f"table: {output / 'table.md'}\npictures: {output / 'pictures'}\n")


def _results(path: Path) -> dict[str, Any]:
    """Returns results.json, an empty dictionary where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
