"""Finished runs as rows of the tables: which run belongs to which cell, mean and spread over seeds."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.recipes import RECIPES
from tools.reproduction.deviations import deviations, notes
from tools.reproduction.paper.schema import Cell, Measurement, Origin, Table
from tools.reproduction.runs import IDENTITY, METRICS, Run, find_runs, look_at, option_text

logger = logging.getLogger(__name__)

UNKNOWN = "the encoder's origin is unknown: the row is that of the config's name"
LIKE_DEIT = "the encoder's file looks as DeiT's, MAE's and MoCo v3's do: convert.py --from deit says that it is DeiT's"


@dataclass
class Filled:
    """What was measured of one cell: its runs, one per seed, their values, and the deviations and notes of all."""

    runs: list[Run]
    values: list[float]
    remarks: list[str]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Returns the runs that can be compared with their recipes; each other one is named in a `warning:` line.

    Raises:
        ValueError: a folder does not exist, or there is no run at all.
    """
    runs, warnings = find_runs(folders)
    # All that a table says of a run.
    kept, more = look_at(
        runs, lambda run: (deviations(run), notes(run), describe(run), run.identity), lambda r: r.folder
    )
    for warning in warnings + more:
        logger.warning(" ".join(warning.split()))
    return [run for run, _ in kept]


def fill(table: Table, runs: Sequence[Run]) -> tuple[dict[tuple[str, str], Filled], set[int]]:
    """Returns what was measured for the cells of a table by (row, column), and the ids of the runs that were used.

    Where runs of one cell deviate differently, those closest to the recipe are taken.
    """
    filled: dict[tuple[str, str], Filled] = {}
    used: set[int] = set()
    for row in table.rows:
        for cell in row.cells:
            groups = _groups(cell, runs)
            if not groups:
                continue
            (remarks, _), of_all = min(groups.items(), key=lambda item: (len(item[0][0]), item[0]))
            chosen = [run for run in of_all if run.metric(cell.measured.metric) is not None]
            used_once = _one_per_seed(chosen)
            values = _values(used_once, cell.measured.metric)
            if values:
                listed = [*remarks, *dict.fromkeys(note for run in used_once for note in notes(run))]
                listed += _repeated(chosen, used_once)
                filled[row.name, cell.column] = Filled(used_once, values, listed)
                used |= {id(run) for run in chosen}
    return filled, used


def _one_per_seed(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs that differ in seed or encoder: one that was made twice says nothing about the spread."""
    first: dict[tuple[str, str], Run] = {}
    for run in runs:
        key = run.folder.as_posix() if run.tool == "pretrain" else run.encoder_digest
        first.setdefault((str(run.values.get("seed")), key), run)
    return list(first.values())


def _repeated(runs: Sequence[Run], used_once: Sequence[Run]) -> list[str]:
    count = len(runs) - len(used_once)
    return [f"{count} repeated with the same seed: the first counts"] if count else []


def _groups(cell: Cell, runs: Sequence[Run]) -> dict[tuple[tuple[str, ...], str], list[Run]]:
    """Returns the runs of a cell; those together that differ in nothing but the seed."""
    groups: dict[tuple[tuple[str, ...], str], list[Run]] = {}
    for run in runs:
        if not belongs(run, cell.measured):
            continue
        remarks = deviations(run, cell.measured.data if run.tool != "pretrain" else None)
        if run.origin is None:
            remarks.append(UNKNOWN)
        elif _is_bare(run.origin):
            remarks.append(LIKE_DEIT)
        groups.setdefault((tuple(remarks), run.identity), []).append(run)
    return groups


def _is_bare(origin: Origin) -> bool:
    """Returns whether an encoder comes from a file with the keys of timm's ViT and no other sign of its makers."""
    return origin.kind == "published" and origin.method == "timm"


SEVERAL_SCALES = "_ms"
"""Ends the name of a config that tests at several scales: another number of the same training."""


def belongs(run: Run, measured: Measurement) -> bool:
    """Returns whether a run measures a cell: tool, setting, and where the encoder comes from.

    The configs of a table differ in their names only, so that the length of the schedule and the model count, and the
    origin decides the row. Where the origin is unknown, the config's full name does.
    """
    if measured.tool == "hours":
        return run.tool == "pretrain" and run.origin == _with_defaults(measured.origin)
    origin, model = run.origin, measured.origin.model
    fits = run.setting == measured.setting
    if run.tool in ("train_det", "train_seg") and origin is not None:
        fits = run.setting.startswith(f"{measured.setting.split('_vit_')[0]}_{model}_")
        fits &= run.setting.endswith(SEVERAL_SCALES) == measured.setting.endswith(SEVERAL_SCALES)
    if run.tool != measured.tool or not fits:
        return False
    if origin is None:
        return run.tool in ("train_det", "train_seg")
    if _is_bare(origin):
        origin = dataclasses.replace(origin, method="deit")
    return run.model == model and origin == _with_defaults(measured.origin)


def _with_defaults(origin: Origin) -> Origin:
    """Returns the origin without options that are the recipe's own values, in the order in which runs list them."""
    if origin.kind != "pretrain":
        return origin
    standard, given = RECIPES[origin.data][1], dict(origin.options)
    own = [key for key in IDENTITY if key in given and given[key] != option_text(getattr(standard, key))]
    return dataclasses.replace(origin, options=tuple((key, given[key]) for key in own))


@dataclass
class Other:
    """Runs that are in no row, with the same tool, setting and origin: their numbers and remarks."""

    title: str
    runs: list[Run]
    values: dict[str, list[float]]
    remarks: list[str]


def others(runs: Sequence[Run], used: set[int]) -> list[Other]:
    """Returns the fine-tuning runs that no row took, those that differ in the seed alone together."""
    groups: dict[tuple[str, tuple[str, ...], str], list[Run]] = {}
    for run in runs:
        if id(run) not in used and run.tool in METRICS:
            title = f"{run.tool} {run.setting}, {describe(run)}"
            groups.setdefault((title, (*deviations(run), *notes(run)), run.identity), []).append(run)
    found = []
    for (title, remarks, _), of_all in sorted(groups.items(), key=lambda item: item[0]):
        members = _one_per_seed(of_all)
        values = {name: _values(members, path) for name, path in METRICS[members[0].tool].items()}
        found.append(Other(title, members, values, [*remarks, *_repeated(of_all, members)]))
    return found


def _values(runs: Sequence[Run], path: str) -> list[float]:
    return [value for run in runs if (value := run.metric(path)) is not None]


def describe(run: Run) -> str:
    """Returns in words where a run's encoder comes from."""
    origin = run.origin
    if origin is None:
        return f"{run.model}, encoder of unknown origin"
    if origin.kind == "none":
        return f"{run.model}, random init"
    if origin.kind == "published":
        return f"{run.model}, converted from {origin.method}"
    options = "".join(f", {key} {value}" for key, value in origin.options)
    method = origin.method or "trained with labels"
    return f"{run.model}, {method} with recipe {origin.data}{options}"
