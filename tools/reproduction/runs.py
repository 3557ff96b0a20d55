"""Finished runs below some folders: what each was told, what came out, and where its encoder comes from."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pretrain.recipes import RECIPES
from pretrain.training.metrics import training_seconds
from splitmask_backbones.errors import UserError
from splitmask_backbones.files import sha256_of
from splitmask_backbones.registry import encoder_name
from splitmask_backbones.run_files import CONFIG, DATA_REPORT, ENCODER, LOAD_REPORT, RESULTS
from tools.reproduction.paper.schema import Origin
from tools.running.scores import SCORES, is_number

T = TypeVar("T")
R = TypeVar("R")

METRICS = SCORES | {"probe": {"best kNN": "layers.knn", "best linear": "layers.linear"}}
"""Tools whose runs are rows, and the numbers that must be there (of a probe one): title -> path in results.json."""
IDENTITY = ("tokenizer", "inpaint_weight", "match_weight")
"""Recipe values that make a pre-training another row; all others are deviations."""


@dataclass
class Run:
    """One finished run.

    Attributes:
        folder: of the run.
        tool: "pretrain", "train_det", ...
        setting: config file, or recipe.
        config: config.json.
        results: results.json; of a pre-training `{"hours": ...}`.
        report: data_report.json, empty where there is none.
        load_complete: what load_report.json says, None where there is none.
        origin: of its encoder, as the tables name it; None where it is unknown.
        pretraining: config.json of the run that made its encoder, empty where there is none.
    """

    folder: Path
    tool: str
    setting: str
    config: dict[str, Any]
    results: dict[str, Any]
    report: dict[str, Any]
    load_complete: bool | None = None
    origin: Origin | None = None
    pretraining: dict[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, Any]:
        """The values that all trainers have: steps, batch_size, lr, seed, precision, ..."""
        return self.config.get("values", {})

    @property
    def model(self) -> str:
        """Name of the encoder by its size, "custom" for another."""
        return encoder_name(self.config.get("encoder", {})) or "custom"

    @property
    def encoder_digest(self) -> str:
        """SHA-256 of the weights that it began with, "none" for none."""
        return str(self.config.get("--weights", "none"))

    @property
    def identity(self) -> str:
        """What runs that differ in nothing but the seed have in common beside their settings: data and encoder.

        An encoder of a training here is what that was told, and any other its file.
        """
        made = self.pretraining
        told = {name: value for name, value in made.get("values", {}).items() if name not in ("seed", "precision")}
        encoder = [told, made.get("--init"), _data_of(made)] if made else self.encoder_digest
        return json.dumps([_data_of(self.config), encoder], sort_keys=True)

    def metric(self, path: str) -> float | None:
        """Returns a value of results.json by its dotted path; of a list of layers the best; None if undefined."""
        place: Any = self.results
        for part in path.split("."):
            if isinstance(place, list):
                numbers = [_number(entry.get(part)) for entry in place if isinstance(entry, dict)]
                return max((number for number in numbers if number is not None), default=None)
            place = place.get(part) if isinstance(place, dict) else None
        return _number(place)


def _data_of(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what tells the data of a run apart: the fingerprints."""
    known = config.get("data", {})
    return {key: known.get(key) for key in ("train", "val", "fingerprint")}


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def find_runs(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Returns the finished runs below some folders, in the order of their paths, and why others were left out.

    Raises:
        ValueError: a folder does not exist, or there is no run at all.
    """
    configs: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"RUNS_DIR {folder} is not a folder: name a folder that holds runs of the tools")
        for path in sorted(folder.rglob(CONFIG)):
            configs.setdefault(path.resolve(), path)  # folders may overlap
    found, warnings = look_at(list(configs.values()), _read, lambda path: path.parent)
    runs = [run for _, run in found if run is not None]
    if not runs and not warnings:
        listed = ", ".join(map(str, folders))
        raise UserError(
            f"no run in {listed}: a run is a folder with the config.json and results.json of train_det, train_seg, "
            "train_cls or probe"
        )
    traced, more = look_at(runs, _tracer(runs), lambda run: run.folder)
    return [run for run, _ in traced], warnings + more


def look_at(
    items: Sequence[T], look: Callable[[T], R], folder_of: Callable[[T], Path]
) -> tuple[list[tuple[T, R]], list[str]]:
    """Returns the items that can be looked at, each with what was seen, and the warnings about the others.

    A config.json by hand, or of another version, may hold anything anywhere: one run must not cost all others.
    """
    seen: list[tuple[T, R]] = []
    warnings: list[str] = []
    for item in items:
        try:
            seen.append((item, look(item)))
        except UserError as error:
            warnings.append(f"{folder_of(item)}: {error}: left out")
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            what = f"config.json is damaged ({type(error).__name__}: {error})"
            warnings.append(f"{folder_of(item)}: {what}: left out")
    return seen, warnings


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.name} is missing (unfinished or failed)") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path.name} cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path.name} holds a {type(content).__name__} where an object is needed")
    return content


def _read(path: Path) -> Run | None:
    """Returns a run, None for folders of other tools and for rehearsals.

    Raises:
        ValueError: the run is unfinished or damaged.
    """
    folder, config = path.parent, _load(path)
    if config.get("rehearsal"):
        return None
    tool = config.get("command")
    if tool == "pretrain":
        return _read_pretraining(folder, config)
    if not isinstance(tool, str) or tool not in METRICS:
        return None
    for key in ("values", "encoder"):
        if not isinstance(config.get(key), dict):
            raise UserError(f"config.json has no '{key}'")
    run = Run(folder, tool, _setting(tool, config), config, _load(folder / RESULTS), {})
    missing = [path for path in METRICS[tool].values() if run.metric(path) is None]
    if missing and (tool != "probe" or len(missing) == len(METRICS[tool])):
        raise UserError(f"results.json has no number for {' or '.join(missing)}")
    if (folder / DATA_REPORT).exists():
        run.report = _load(folder / DATA_REPORT)
    if (folder / LOAD_REPORT).exists():
        run.load_complete = bool(_load(folder / LOAD_REPORT).get("complete", True))
    return run


def _setting(tool: str, config: dict[str, Any]) -> str:
    """Returns config file or recipe; of a probe what its classes show of its data."""
    if tool in ("train_det", "train_seg"):
        return str(config.get("config"))
    if tool != "probe":
        return str(config.get("recipe", "unknown recipe"))
    labels = config.get("data", {}).get("labels")
    if not isinstance(labels, list):
        return "unknown data"
    # ImageNet's are a thousand numbers of WordNet.
    is_imagenet = len(labels) == 1000 and all(re.fullmatch(r"n\d{8}", str(label)) for label in labels)
    return "imagenet" if is_imagenet else f"{len(labels)} classes"


def _read_pretraining(folder: Path, config: dict[str, Any]) -> Run:
    if not isinstance(config.get("values"), dict) or config.get("recipe") not in RECIPES:
        raise UserError("config.json names no recipe that is known here")
    if not (folder / ENCODER).exists():
        raise UserError("encoder.safetensors is missing (unfinished or failed)")
    seconds = training_seconds(folder)
    hours = None if seconds is None else seconds / 3600
    return Run(folder, "pretrain", str(config["recipe"]), config, {"hours": hours}, {})


def _tracer(runs: Sequence[Run]) -> Callable[[Run], None]:
    """Returns what fills in the origin of a run; files are told apart by their digest, wherever they lie now."""
    digest_of = cache(sha256_of)
    candidates = [run.folder / ENCODER for run in runs]

    def trace(run: Run) -> None:
        if run.tool == "pretrain":
            run.origin, run.pretraining = _pretraining_origin(run.config), run.config
        elif run.encoder_digest == "none":
            run.origin = Origin("none", run.model)
        else:
            named = run.config.get("free", {}).get("weights")
            for path in [*([Path(named)] if named else []), *candidates]:
                if path.is_file() and digest_of(path) == run.encoder_digest:
                    run.origin, run.pretraining = _origin_of(path, run.model)
                    return

    return trace


def _origin_of(weights: Path, model: str) -> tuple[Origin | None, dict[str, Any]]:
    """Returns where an encoder file comes from, by what lies beside it, and the config of its pre-training."""
    report = weights.with_name(f"{weights.name}.report.json")
    try:
        if report.exists():
            return Origin("published", model, str(_load(report).get("family")), "imagenet"), {}
        config = _load(weights.parent / CONFIG)
    except UserError:
        return None, {}
    if config.get("command") == "pretrain":
        return _pretraining_origin(config), config
    if config.get("command") == "train_cls":
        return Origin("supervised", model, "", str(config.get("recipe"))), config
    return None, {}


def _pretraining_origin(config: dict[str, Any]) -> Origin | None:
    """Returns the origin of a pre-training: recipe, method, model, and the values that make it another row."""
    name, values = config.get("recipe"), config.get("values", {})
    if name not in RECIPES:
        return None
    standard = RECIPES[name][1]
    # DINO has neither a codebook nor the two losses.
    known = IDENTITY if values.get("method") != "dino" else ()
    own = [key for key in known if values.get(key, getattr(standard, key)) != getattr(standard, key)]
    options = tuple((key, option_text(values[key])) for key in own)
    return Origin("pretrain", str(values.get("model")), str(values.get("method")), str(name), options)


def option_text(value: Any) -> str:
    """Returns a recipe value as the tables write it: 0 and not 0.0."""
    return f"{value:g}" if isinstance(value, float) else str(value)
