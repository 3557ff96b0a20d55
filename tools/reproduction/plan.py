"""From rows of the tables to the steps that make them, each once. Free of torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from det_configs.common.recipe import DetRecipe
from pretrain.recipes import Recipe, get_recipe
from splitmask_backbones.errors import UserError, check_choice
from tools.reproduction import cost
from tools.reproduction.paper import tables
from tools.reproduction.paper.schema import Measurement, Origin, Row
from tools.reproduction.sets import SETS, Places
from tools.reproduction.step import LIST, Step

ENCODER, RESULTS = "encoder.safetensors", "results.json"
DALLE = "dalle"
FOLDERS = {"train_det": "det", "train_seg": "seg", "train_cls": "cls", "probe": "probe"}


def known_files() -> list[str]:
    """Returns the names that --weights knows: every encoder of the tables, and DALL-E's."""
    origins = {cell.measured.origin for table in tables().values() for row in table.rows for cell in row.cells}
    return sorted({origin.name for origin in origins if origin.kind != "none"} | {DALLE})


def parse_files(words: Iterable[str]) -> dict[str, Path]:
    """Returns the files that --weights NAME=FILE gives.

    Raises:
        ValueError: no NAME=FILE, or an unknown name (with the nearest).
    """
    files = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or not path:
            raise UserError(f"--weights {word} is no NAME=FILE: write for example deit_small=deit_small.pth")
        check_choice("--weights name", name, known_files())
        files[name] = Path(path)
    return files


@dataclass
class Planner:
    """Makes steps.

    Attributes:
        output: folder of everything.
        places: where the data sets are.
        files: weights of others, or encoders made elsewhere, by the name of their origin.
        seeds: fine-tunings of a cell; the pre-training is made once.
        precision: of every training.
        workers: data processes of every step.
        extra: further words for each tool, by the tool's name.
        missing: what the user has to give before the plan can run, filled while planning.
    """

    output: Path
    places: Places
    files: dict[str, Path] = field(default_factory=dict)
    seeds: int = 1
    precision: str = "bf16"
    workers: int = 2
    extra: dict[str, list[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    _steps: dict[str, Step] = field(default_factory=dict)

    def steps(self, rows: Iterable[Row]) -> list[Step]:
        """Returns the steps of some rows in the order in which they run."""
        for row in rows:
            for cell in row.cells:
                self._measurement(cell.measured)
        return list(self._steps.values())

    def _add(self, step: Step) -> str:
        self._steps.setdefault(step.name, step)
        return step.name

    def _miss(self, what: str | None) -> None:
        if what is not None and what not in self.missing:
            self.missing.append(what)

    def _common(self, tool: str) -> list[str]:
        return ["--precision", self.precision, "--workers", str(self.workers), *self.extra.get(tool, [])]

    def _measurement(self, measured: Measurement) -> None:
        weights, needs = self._encoder(measured.origin)
        if measured.tool == "hours":
            return
        self._miss(self.places.missing(measured.data))
        origin = measured.origin
        for seed in range(self.seeds if measured.tool != "probe" else 1):
            words = list(self._setting(measured))
            if measured.tool in ("train_det", "train_seg"):
                name = measured.setting
            else:
                name = f"{measured.setting}_from_{origin.name}"
                words += ["--model", origin.model] if origin.kind == "none" else []
            words += [*self.places.labelled(measured.data), "--weights", str(weights)]
            if measured.tool == "probe":
                words += ["--workers", str(self.workers), *self.extra.get("probe", [])]
                path = self.output / "probe" / name
            else:
                words += ["--seed", str(seed), *self._common(measured.tool)]
                path = self.output / FOLDERS[measured.tool] / f"{name}_seed{seed}"
            step_name = str(path.relative_to(self.output))
            operations, disk, updates = _finetuning_cost(measured, words)
            images = SETS[measured.data].num_images
            self._add(
                Step(
                    step_name,
                    f"{measured.tool}.py",
                    tuple(words),
                    path,
                    RESULTS,
                    needs,
                    operations=operations,
                    disk=disk,
                    scratch=cost.probe_bytes(origin.model, images) if measured.tool == "probe" else 0.0,
                    total_updates=updates,
                )
            )

    @staticmethod
    def _setting(measured: Measurement) -> list[str]:
        if measured.tool == "train_det":
            return [f"det_configs/{measured.setting}.py"]
        if measured.tool == "train_seg":
            return [f"seg_configs/{measured.setting}.py"]
        return ["--recipe", measured.setting] if measured.tool == "train_cls" else []

    def _encoder(self, origin: Origin) -> tuple[Path | str, tuple[str, ...]]:
        """Returns the encoder file (or "none") and the step that makes it."""
        if origin.kind == "none":
            return "none", ()
        given = self.files.get(origin.name)
        if given is not None and not given.exists():
            self._miss(f"--weights {origin.name}={given}: the file does not exist")
        if origin.kind == "published":
            return self._converted(origin, given)
        if given is not None:
            return given, ()
        if origin.kind == "supervised":
            return self._supervised(origin)
        return self._pretrained(origin)

    def _converted(self, origin: Origin, given: Path | None) -> tuple[Path, tuple[str, ...]]:
        if given is None:
            self._miss(f"{origin.method.upper()}'s published {origin.model}: give --weights {origin.name}=FILE")
        folder = self.output / "convert" / origin.name
        source = str(given or f"<{origin.name}>")
        words = (source, str(folder / ENCODER), "--from", origin.method, "--model", origin.model)
        disk = cost.BYTES * cost.encoder_parameters(origin.model)
        name = f"convert/{origin.name}"
        self._add(Step(name, "convert.py", words, folder, ENCODER, resumable=False, with_output=False, disk=disk))
        return folder / ENCODER, (name,)

    def _supervised(self, origin: Origin) -> tuple[Path, tuple[str, ...]]:
        measured = Measurement("train_cls", origin.data, "top1", Origin("none", origin.model), origin.data)
        self._miss(self.places.missing(origin.data))
        words = ["--recipe", origin.data, "--model", origin.model, *self.places.labelled(origin.data)]
        words += ["--weights", "none", "--seed", "0", *self._common("train_cls")]
        folder = self.output / "supervised" / origin.name
        name = f"supervised/{origin.name}"
        operations, disk, updates = _finetuning_cost(measured, words)
        self._add(
            Step(
                name,
                "train_cls.py",
                tuple(words),
                folder,
                RESULTS,
                operations=operations,
                disk=disk,
                total_updates=updates,
            )
        )
        return folder / ENCODER, (name,)

    def _pretrained(self, origin: Origin) -> tuple[Path, tuple[str, ...]]:
        self._miss(self.places.missing(origin.data))
        options, listed = self.places.pretraining(origin.data, self.output / "lists")
        needs: tuple[str, ...] = ()
        if listed is not None:
            needs = (self._list(*listed),)
        words = ["--recipe", origin.data, "--model", origin.model]
        if origin.method != "splitmask":
            words += ["--method", origin.method]
        for key, value in origin.options:
            words += [f"--{key.replace('_', '-')}", value]
        if ("tokenizer", DALLE) in origin.options:
            words += ["--tokenizer-weights", str(self._dalle(origin))]
        words += [*options, *self._common("pretrain")]
        recipe = planned_recipe(words)
        folder, name = self.output / "pretrain" / origin.name, f"pretrain/{origin.name}"
        per_epoch = SETS[origin.data].num_images // recipe.batch_size
        self._add(
            Step(
                name,
                "pretrain.py",
                tuple(words),
                folder,
                ENCODER,
                needs,
                operations=cost.pretraining_total(recipe, origin.data),
                disk=cost.pretraining_bytes(recipe),
                total_updates=recipe.total_steps(per_epoch),
                recipe=recipe,
            )
        )
        return folder / ENCODER, (name,)

    def _dalle(self, origin: Origin) -> Path:
        given = self.files.get(DALLE)
        if given is None:
            self._miss(f"DALL-E's words for {origin.name}: give --weights {DALLE}=FILE.safetensors")
            return Path(f"<{DALLE}>")
        if not given.exists():
            self._miss(f"--weights {DALLE}={given}: the file does not exist")
        return given

    def _list(self, name: str, file: Path) -> str:
        return self._add(
            Step(
                f"lists/{name}",
                LIST,
                (name, str(self.places.folder(name)), str(file)),
                file.parent,
                file.name,
                resumable=False,
                with_output=False,
            )
        )


def planned_recipe(words: list[str]) -> Recipe:
    """Returns the recipe that words of tools/pretrain.py stand for.

    Raises:
        ValueError: what the tool itself would say about an option.
    """
    from tools.pretrain import build_parser

    if "--tokenizer-weights" in words:  # a file: decides no value
        at = words.index("--tokenizer-weights")
        words = words[:at] + words[at + 2 :]
    args = build_parser().parse_args([*words, "--output", "-"])
    given = {name: getattr(args, name) for name in Recipe.__dataclass_fields__ if getattr(args, name) is not None}
    return get_recipe(args.recipe).override(given)


def planned_detection(words: list[str]) -> DetRecipe:
    """Returns the recipe that words of tools/train_det.py stand for."""
    from tools.detection.config import given_values, load_config, take_overrides
    from tools.train_det import build_parser

    parser = build_parser()
    rest, overrides = take_overrides(parser, words)
    args = parser.parse_args([*rest, "--output", "-"])
    return load_config(args.config).override(given_values(vars(args), overrides))


def _finetuning_cost(measured: Measurement, words: list[str]) -> tuple[float, float, int | None]:
    """Returns operations, bytes left and updates of a fine-tuning."""
    model, images = measured.origin.model, SETS[measured.data].num_images
    parameters = cost.encoder_parameters(model)
    if measured.tool == "train_det":
        recipe = planned_detection(words)
        updates = recipe.total_steps(images // recipe.batch_size)
        bytes_left = cost.training_bytes(parameters + cost.DET_PARAMETERS)
        return cost.detection_total(model, updates * recipe.batch_size), bytes_left, updates
    if measured.tool == "train_seg":
        steps, batch = planned_segmentation(words)
        bytes_left = cost.training_bytes(parameters + cost.SEG_PARAMETERS)
        return cost.segmentation_total(model, steps * batch), bytes_left, steps
    if measured.tool == "probe":
        planned_probe(words)
        return cost.probe_total(model, images), 0.0, None
    planned = planned_classification(words)
    updates = planned.steps or planned.epochs * (images // planned.batch_size)
    return cost.classification_total(model, updates * planned.batch_size), cost.training_bytes(parameters), updates


def planned_segmentation(words: list[str]) -> tuple[int, int]:
    """Returns updates and batch of words of tools/train_seg.py; its configs need mmseg, the paper's values do not."""
    from tools.train_seg import parse_args

    args = parse_args([*words, "--output", "-"])
    return args.steps or 160_000, args.batch_size or 16


def planned_classification(words: list[str]) -> Any:
    """Returns the recipe that words of tools/train_cls.py stand for."""
    from tools.classification.recipes import ClsRecipe
    from tools.cli import given_values
    from tools.train_cls import build_parser

    args = build_parser().parse_args([*words, "--output", "-"])
    return classification_recipe(args.recipe).override(given_values(args, ClsRecipe))


def planned_probe(words: list[str]) -> None:
    """Raises ValueError for what tools/probe.py would refuse."""
    from tools.classification.probe_recipe import ProbeRecipe
    from tools.cli import given_values
    from tools.probe import build_parser

    args = build_parser().parse_args([*words, "--output", "-"])
    ProbeRecipe().override(given_values(args, ProbeRecipe))


def classification_recipe(name: str) -> Any:
    """Returns a recipe of tools/train_cls.py, None where that tool is not there."""
    if find_spec("tools.classification") is None:
        return None
    from tools.classification.recipes import get_recipe as classification

    return classification(name)
