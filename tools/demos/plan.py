"""The jobs of a demo: pre-training, then each head from random init and from SplitMask, then what they predict.

Its pictures and its table, once they are finished.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from pretrain.training.metrics import read_json_lines
from pretrain.training.run_folder import flatten, read_object
from splitmask_backbones.files import write_atomically
from splitmask_backbones.run_files import ENCODER, METRICS_LOG, RESULTS, TABLE
from tools.common import plots
from tools.demos.inputs import Inputs
from tools.running.job import Job
from tools.running.pictures import as_seen, copy_numbered, drawn, prediction_job
from tools.running.scores import SCORES

STARTS = {"none": "random init", "splitmask": "SplitMask"}
HEADS = {"det": "train_det", "seg": "train_seg"}
TITLES = {title: (head, name) for head, tool in HEADS.items() for title, name in SCORES[tool].items()}
HEADER = ("encoder", *TITLES, "pre-training s", "fine-tuning s")
KNOWN = (
    "Seeds 0, 1 and 2 (docs/study/demo.md): random init box AP 47.2 ± 1.6, mask AP 52.7 ± 1.7, mIoU 68.5 ± 0.5; "
    "SplitMask box AP 56.2 ± 2.5, mask AP 60.7 ± 2.1, mIoU 77.0 ± 0.8."
)
"""Of the demo's own images at its own lengths: mean and standard deviation."""
UNKNOWN = "One seed each: repeat with others before reading much into a small difference."


def demo_jobs(output: Path, inputs: Inputs, num_steps: dict[str, int | None], seed: int, workers: int) -> list[Job]:
    """Returns the jobs "pretrain", "det_none", "det_splitmask", ..., each with a folder of its name in `output`.

    Copies the pictures to look at, because the last jobs name their folder. `num_steps` holds those of "pretrain", of
    each "det" and of each "seg"; None leaves them to the recipe or config.
    """
    common = ["--seed", str(seed), "--workers", str(workers), "--save-every", "50", "--log-every", "10"]

    def job(name: str, tool: str, argv: list[str], artefact: str, needs: tuple[str, ...] = ()) -> Job:
        length = num_steps[name.split("_")[0]]
        steps = [] if length is None else ["--steps", str(length)]
        return Job(name, tool, (*argv, *common, *steps), output / name, artefact, needs, num_steps=length)

    pretraining = job("pretrain", "pretrain.py", ["--recipe", "demo", *inputs.pretrain], ENCODER)
    weights = {"none": "none", "splitmask": str(pretraining.folder / ENCODER)}
    data = {"det": inputs.detection}
    if inputs.segmentation is not None:
        data["seg"] = ["--data", str(inputs.segmentation)]
    pictures = output / "data" / "pictures"
    count = len(copy_numbered(inputs.pictures, pictures))
    jobs, predictions = [pretraining], []
    for head, named in data.items():
        tool, config = f"train_{head}.py", f"{head}_configs/demo.py"
        for start, file in weights.items():
            needs = (pretraining.name,) if start == "splitmask" else ()
            training = job(
                f"{head}_{start}",
                tool,
                [config, *named, *inputs.heads.get(head, []), "--weights", file],
                RESULTS,
                needs,
            )
            jobs.append(training)
            predictions.append(prediction_job(training.name, tool, (config,), training.folder, pictures, count))
    return jobs + predictions


def save_pictures(output: Path, token_images: Sequence[Path]) -> None:
    """Writes `output/pictures`: detections, segmentations, loss curves, and the codebook on some images."""
    pictures = output / "pictures"
    pictures.mkdir(exist_ok=True)
    files = sorted((output / "data" / "pictures").iterdir())
    before = read_json_lines(output / "pretrain" / METRICS_LOG)
    names = {"inpaint": "loss_inpaint", "match": "loss_match"}
    panels = {
        "pre-training: losses": {label: plots.curve(before, name) for label, name in names.items()},
        "pre-training: token accuracy": {"unseen patches": plots.curve(before, "token_accuracy")},
    }
    for head, model, title in (("det", "Mask R-CNN", "detections"), ("seg", "UperNet", "segmentations")):
        runs = {name: output / f"{head}_{start}" for start, name in STARTS.items()}
        if not all(run.is_dir() for run in runs.values()):
            continue
        columns: dict[str, Sequence[Path | Image.Image]] = {"image": as_seen(runs[STARTS["none"]], files)}
        columns |= {name: drawn(run, files) for name, run in runs.items()}
        plots.save_grid(columns, pictures / f"{title}.png")
        metrics = {name: read_json_lines(run / METRICS_LOG) for name, run in runs.items()}
        panels[f"{model}: loss"] = {name: plots.curve(entries, "loss") for name, entries in metrics.items()}
    plots.save_curves(panels, pictures / "loss_curves.png")
    from pretrain.monitoring.pictures import save_token_picture  # torch

    save_token_picture(output / "pretrain", list(token_images), pictures / "words.png")


def write_table(output: Path, seconds: Callable[[str], float], note: str | None, known: str = UNKNOWN) -> None:
    """Prints the table and what it says, and writes table.md, the last file of a demo.

    Args:
        output: the demo's folder.
        seconds: those of a job by its name.
        note: why there is no segmentation.
        known: by how much seeds differ, as far as it is known.
    """
    results = {
        start: {head: flatten(read_object(output / f"{head}_{start}" / RESULTS)) for head in HEADS} for start in STARTS
    }
    scores = {
        start: {title: found[head].get(name) for title, (head, name) in TITLES.items()}
        for start, found in results.items()
    }
    rows = []
    for start, name in STARTS.items():
        cells = [plots.show(value) if results[start][TITLES[key][0]] else "-" for key, value in scores[start].items()]
        before = seconds("pretrain") if start == "splitmask" else 0.0
        after = sum(seconds(f"{head}_{start}") for head in HEADS)
        rows.append([name, *cells, f"{before:.0f}", f"{after:.0f}"])
    caption = f"val, in percent. {_gains(scores)}{known}" + ("" if note is None else f" {note[0].upper()}{note[1:]}.")
    text = plots.markdown_table(HEADER, rows) + f"\n{caption}\n"
    write_atomically(output / TABLE, text.encode("utf-8"))
    plots.print_table("random init against SplitMask", caption, HEADER, rows)
    sys.stdout.write(f"table: {output / TABLE}\npictures: {output / 'pictures'}\n")


def _gains(scores: dict[str, dict[str, float | None]]) -> str:
    """Returns what the table says, in a sentence with a space after it."""
    before, after = scores["none"], scores["splitmask"]
    both = {name: (before[name], value) for name, value in after.items()}
    gains = [f"{name} {b - a:+.1f}" for name, (a, b) in both.items() if a is not None and b is not None]
    return f"SplitMask's pre-training changes {', '.join(gains)}, at equal fine-tuning. " if gains else ""
