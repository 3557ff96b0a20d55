"""The study's table and pictures from its finished runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from PIL import Image

from pretrain.training.metrics import read_json_lines
from splitmask_backbones.errors import UserError
from splitmask_backbones.files import write_atomically
from splitmask_backbones.run_files import CONFIG, MONITOR_LOG, RESULTS, TABLE, TABLE_CSV
from tools.common import plots
from tools.common.spread import Numbers, cells, csv_text, listed, shown
from tools.reproduction import study_labels
from tools.reproduction.study import HEADS, PICTURES, ROWS, Study, finetuning_folder, run_folder
from tools.running.pictures import as_seen, copy_numbered, drawn
from tools.running.pictures import choose_pictures as study_pictures
from tools.running.scores import SCORES, is_number

FOLDER = "pictures"
CAPTION = "On val, in percent: mean ± standard deviation over seeds (number of seeds)."
GAINS_CAPTION = (
    "Seed by seed, with the same images in the same order: mean ± standard deviation of the differences (number of "
    "seeds)."
)
CSV_HEADER = ("row", "column", "mean", "spread", "n", "values")
LOOKS = {
    "train_inpaint_gain": "gain (nats)",
    "train_match_rank1": "match rank 1",
    "effective_rank": "rank",
    "attention_entropy": "attention",
}
"""What monitor.jsonl says of a pre-training, and the titles of the columns."""
LOOKS_CAPTION = (
    "At the end of the pre-training, on training images. Gain: by how much the inpainting loss is below that of the "
    "best constant guess; at 0 or less nothing was learned from what surrounds a patch. Rank: the effective rank of "
    "the mean features of the images. Attention: the least entropy of a block's, from 0 (each patch attends to one) to "
    "1 (to all alike)."
)


def finished_rows(output: Path, asked: Sequence[str]) -> tuple[str, ...]:
    """Returns the rows that were asked for, and those that earlier calls have left results of, in the study's order."""
    return tuple(row for row in ROWS if row in asked or any((output / row).glob("*/seed*/*/results.json")))


def finished_shares(output: Path, asked: Sequence[float]) -> tuple[float, ...]:
    """Returns the shares of the labels asked for, and those that earlier calls have left results of, ascending."""
    folders = {file.parent.name for file in output.glob("*/*/seed*/*_percent/results.json")}
    percents = {name.removesuffix("_percent").rpartition("_")[2] for name in folders}
    found = {percent: float(percent) / 100 for percent in percents}
    return tuple(sorted((found | {f"{100 * share:g}": share for share in asked}).values()))


def read_values(output: Path, rows: Sequence[str], share: float = 1.0) -> study_labels.Values:
    """Returns what the finished runs of all seeds reached, by seed; undefined values are left out.

    Args:
        share: of the labels, that they were fine-tuned with.

    Raises:
        ValueError: a results.json that cannot be read.
    """
    values: study_labels.Values = {}
    for data, head in HEADS.items():
        tool = finetuning_folder(output, "", data, 0, share).name
        for name, path in SCORES[head.tool].items():
            column = values.setdefault(f"{data} {name}", {})
            for row in rows:
                files = _by_seed(output, row, data, tool, RESULTS)
                found = {seed: _read(file, path) for seed, file in files.items()}
                column[row] = {seed: float(value) for seed, value in found.items() if is_number(value)}
    return values


def read_gains(output: Path, rows: Sequence[str], share: float = 1.0) -> study_labels.Values:
    """Returns by how much the runs of each row are above those of the same seed that it is compared with.

    That is random init, for the longer row random init that was fine-tuned as long.

    The same labels and the same order of images: what the seeds have in common is not taken for what the rows differ
    by, as between two means.
    """
    others = {ROWS[row].compared_with for row in rows}
    values = read_values(output, [*dict.fromkeys((*rows, *others))], share)
    gains: study_labels.Values = {}
    for name, column in values.items():
        start = {row: column[ROWS[row].compared_with] for row in rows}
        gains[name] = {row: {n: column[row][n] - start[row][n] for n in column[row] if n in start[row]} for row in rows}
    return gains


def gains_section(output: Path, rows: Sequence[str]) -> str:
    """Returns the table of `read_gains` with all labels, as Markdown; nothing where no row can be compared."""
    others = [row for row in rows if row != study_labels.RANDOM]
    gains = read_gains(output, others)
    columns = [name for name, found in gains.items() if any(found.values())]
    others = [row for row in others if any(gains[name][row] for name in columns)]
    if not others:
        return ""
    header = ["above random init", *columns]
    body = [[_compared_title(row), *(shown(gains[name][row].values()) for name in columns)] for row in others]
    return f"\n{plots.markdown_table(header, body)}\n{GAINS_CAPTION}\n"


def _compared_title(row: str) -> str:
    """Returns the title of a row, and of what it is compared with where that is not random init."""
    against = ROWS[row].compared_with
    return ROWS[row].title + ("" if against == study_labels.RANDOM else f" (above {ROWS[against].title})")


def read_curves(output: Path, rows: Sequence[str], shares: Sequence[float]) -> study_labels.Curves:
    """Returns `read_values` by the share of the labels."""
    return {share: read_values(output, rows, share) for share in shares}


def _files(output: Path, row: str, data: str, tool: str, name: str) -> list[Path]:
    """Returns a file of all seeds of a row, in the order of the seeds."""
    return list(_by_seed(output, row, data, tool, name).values())


def _by_seed(output: Path, row: str, data: str, tool: str, name: str) -> dict[int, Path]:
    folders = run_folder(output, row, data, 0).parent.glob("seed*")
    seeds = sorted(int(seed) for folder in folders if (seed := folder.name.removeprefix("seed")).isdecimal())
    files = {seed: run_folder(output, row, data, seed) / tool / name for seed in seeds}
    return {seed: file for seed, file in files.items() if file.exists()}


def _read(file: Path, path: str) -> Any:
    try:
        place: Any = json.loads(file.read_text(encoding="utf-8"))
        for part in path.split("."):
            place = place[part]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}): remove it, and run the study again") from None
    return place


def _used(output: Path, row: str, data: str, tool: str, name: str) -> str:
    """Returns a value of a row's runs of a tool, "-" without runs: it may be of another budget than today's."""
    files = _files(output, row, data, tool, CONFIG)
    return " or ".join(map(str, sorted({_read(file, f"values.{name}") for file in files}))) or "-"


def write_table(
    output: Path, values: study_labels.Values, rows: Sequence[str], few: study_labels.Curves | None = None
) -> tuple[list[str], list[list[str]]]:
    """Writes table.md and table.csv into `output`; returns header and rows.

    Args:
        few: what shares of the labels reached, in a table of their own.
    """
    few = few or {}
    trained = [f"{data} pre-training" for data in HEADS]
    header = ["encoder", *values, *trained, *(f"{data} steps and lr" for data in HEADS)]
    body = [
        [
            ROWS[row].title,
            *(shown(values[column][row].values()) for column in values),
            *(_pretraining(output, data, row) for data in HEADS),
            *(_finetuning(output, data, row) for data in HEADS),
        ]
        for row in rows
    ]
    text = f"{plots.markdown_table(header, body)}\n{CAPTION}\n"
    text += gains_section(output, rows)
    text += study_labels.section(few, {share: read_gains(output, rows, share) for share in few})
    titles, looks = learned(output, rows)
    if looks:
        text += f"\n{plots.markdown_table(titles, looks)}\n{LOOKS_CAPTION}\n"
    write_atomically(output / TABLE, text.encode())
    found: list[tuple[str, str, Numbers]] = [
        (row, column, by_seed.values()) for column in values for row in rows if (by_seed := values[column][row])
    ]
    for name, share, row, numbers in study_labels.measured(few):
        if share < 1:
            found.append((row, study_labels.column(name, share), numbers))
    lines = [[row, column, *cells(numbers), listed(numbers)] for row, column, numbers in found]
    write_atomically(output / TABLE_CSV, csv_text([CSV_HEADER, *lines]).encode())
    return header, body


def _pretraining(output: Path, data: str, row: str) -> str:
    """Returns the images seen in a row's pre-trainings on a data set, "-" without one."""
    start = ROWS[row].encoder_of or row
    steps, batch_size = (_used(output, start, data, "pretrain", name) for name in ("steps", "batch_size"))
    return "-" if steps == "-" else f"{steps} x {batch_size} images"


def _finetuning(output: Path, data: str, row: str) -> str:
    """Returns the steps and the learning rate of a row's fine-tunings on a data set, "-" without one."""
    steps, rate = (_used(output, row, data, HEADS[data].tool, name) for name in ("steps", "lr"))
    return "-" if steps == "-" else f"{steps} at {rate}"


def learned(output: Path, rows: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of what the looks at the end of the pre-trainings saw, by data set and row."""
    header = ["pre-training", *(f"{data} {title}" for data in HEADS for title in LOOKS.values())]
    body = []
    for row in rows:
        if ROWS[row].argv is None:
            continue
        cells = []
        for data in HEADS:
            files = _files(output, row, data, "pretrain", MONITOR_LOG)
            looks = [entries[-1] for file in files if (entries := read_json_lines(file))]
            cells += [shown([look[name] for look in looks if look.get(name) is not None], 2) for name in LOOKS]
        body.append([ROWS[row].title, *cells])
    return header, body


def save_points(values: study_labels.Values, rows: Sequence[str], path: Path) -> None:
    """Writes one panel per column: a point per seed, a bar for the mean."""
    width, height = 1.2 + 3.6 * len(values), 1.2 + 0.45 * len(rows)
    with plots.panels(path, len(values), width, height) as (figure, axes):
        for number, (axis, (title, found)) in enumerate(zip(axes, values.items(), strict=True)):
            for place, row in enumerate(rows):
                if numbers := [*found[row].values()]:
                    axis.barh(place, fmean(numbers), height=0.6, color="#9ecae1")
                    axis.plot(numbers, [place] * len(numbers), "o", color="#08306b", markersize=4, clip_on=False)
            axis.set_yticks(range(len(rows)), [ROWS[row].title for row in rows] if number == 0 else [""] * len(rows))
            axis.set_ylim(len(rows) - 0.5, -0.5)  # the same where a row has no value
            axis.set_title(title)
            axis.grid(visible=False, axis="y")
        figure.tight_layout()


def choose_pictures(study: Study) -> None:
    """Copies the pictures to look at into `output/pictures/DATA`, spread evenly over the validation images.

    Raises:
        ValueError: too few validation images.
    """
    for data in study.sets:
        folder = study.root / data / HEADS[data].pictures
        chosen = study_pictures(folder, PICTURES)
        if len(chosen) < PICTURES:
            raise UserError(f"{folder} holds {len(chosen)} images: the study shows {PICTURES} that can be read")
        copy_numbered(chosen, study.output / FOLDER / data)


def save_grids(study: Study) -> None:
    """Writes detections.png and segmentations.png: one column per row of the table, the image first."""
    for data, rows in study.rows.items():
        name = {"nuclei": "detections", "camvid": "segmentations"}[data]
        files = sorted(path for path in (study.output / FOLDER / data).iterdir() if path.stem.isdecimal())
        runs = {ROWS[row].title: run_folder(study.output, row, data, 0) / HEADS[data].tool for row in rows}
        grid: dict[str, Sequence[Path | Image.Image]] = {"image": as_seen(next(iter(runs.values())), files)}
        grid |= {title: drawn(run, files) for title, run in runs.items()}
        plots.save_grid(grid, study.output / FOLDER / f"{name}.png")
