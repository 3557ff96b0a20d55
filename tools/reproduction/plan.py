"""From rows of the tables to the jobs that make them, each once. Free of torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from splitmask_backbones.errors import UserError, check_choice
from splitmask_backbones.registry import ENCODERS
from splitmask_backbones.run_files import ENCODER, RESULTS
from tools.reproduction.cost import BYTES, encoder_parameters, finetuning_cost, pretraining_cost
from tools.reproduction.paper import tables
from tools.reproduction.paper.schema import Measurement, Origin, Row
from tools.reproduction.sets import Places, write_list
from tools.running.job import Job

DALLE = "dalle"
FOLDERS = {"train_det": "det", "train_seg": "seg", "train_cls": "cls", "probe": "probe"}


def known_files() -> list[str]:
    """Returns the names that --weights knows: every encoder of the tables, and DALL-E's."""
    origins = {cell.measured.origin for table in tables().values() for row in table.rows for cell in row.cells}
    return sorted({origin.name for origin in origins if origin.kind != "none"} | {DALLE})


def parse_files(given: Iterable[str], names: Sequence[str] | None = None) -> dict[str, Path]:
    """Returns the files that --weights NAME=FILE gives.

    Args:
        given: what stands after --weights.
        names: that there are, those of `known_files` by default.

    Raises:
        ValueError: not NAME=FILE, or an unknown name (with the nearest).
    """
    files: dict[str, Path] = {}
    example = f"{names[0]}=FILE" if names else "deit_small=deit_small.pth"
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise UserError(f"--weights {text} is not NAME=FILE: write for example {example}")
        check_choice("--weights name", name, names or known_files())
        if name in files:
            raise UserError(f"--weights {name} is given twice: {files[name]} and {path}")
        files[name] = Path(path)
    return files


def absent(name: str, file: Path) -> str:
    """Returns what is said of a file of --weights that is not there."""
    return f"--weights {name}={file}: the file does not exist"


@dataclass
class Planner:
    """Makes jobs.

    Attributes:
        output: folder of everything.
        places: where the data sets are.
        files: weights of others, or encoders made elsewhere, by the name of their origin.
        seeds: fine-tunings of a cell; the pre-training is made once.
        precision: of every training.
        workers: data processes of every job; None leaves them to the tools.
        extra: further argv for each tool, by the tool's name.
        device: of every job; "auto" leaves it to the tools.
        missing: what the user has to give before the plan can run, filled while planning.
        lists: lists of images that have to be written before the jobs run, by data set, filled while planning.
    """

    output: Path
    places: Places
    files: Mapping[str, Path] = field(default_factory=dict)
    seeds: int = 1
    precision: str = "bf16"
    workers: int | None = None
    extra: Mapping[str, list[str]] = field(default_factory=dict)
    device: str = "auto"
    missing: list[str] = field(default_factory=list)
    lists: dict[str, Path] = field(default_factory=dict)
    _jobs: dict[str, Job] = field(default_factory=dict)

    def jobs(self, rows: Iterable[Row]) -> list[Job]:
        """Returns the jobs of some rows in the order in which they run."""
        for row in rows:
            for cell in row.cells:
                self._measurement(cell.measured)
        return list(self._jobs.values())

    def write_lists(self) -> None:
        """Writes the lists of images of the data sets that are there; as they are now, whatever was listed before.

        Raises:
            ValueError: a data set is not complete.
        """
        for name, file in self.lists.items():
            if self.places.missing(name) is None:
                write_list(name, self.places.folder(name), file)

    def _add(self, job: Job) -> tuple[Path, tuple[str, ...]]:
        """Returns the encoder that a job leaves (if it does), and what has to be finished before it is used."""
        self._jobs.setdefault(job.name, job)
        return job.folder / ENCODER, (job.name,)

    def _miss(self, what: str | None) -> tuple[str, ...]:
        """Returns what is missing, if anything is, and keeps it in the list of all."""
        if what is not None and what not in self.missing:
            self.missing.append(what)
        return () if what is None else (what,)

    def _common(self, tool: str) -> list[str]:
        precision = [] if tool == "probe" else ["--precision", self.precision]
        workers = [] if self.workers is None else ["--workers", str(self.workers)]
        return [*precision, *workers, *self.extra.get(tool, [])]

    def _measurement(self, measured: Measurement) -> None:
        weights, needs = self._encoder(measured.origin)
        tool, setting, origin = measured.tool, measured.setting, measured.origin
        if tool == "hours":
            return
        missing = self._miss(self.places.missing(measured.data))
        is_dense = tool in ("train_det", "train_seg")
        name = setting if is_dense else f"{setting}_from_{origin.name}"
        argv = [f"{FOLDERS[tool]}_configs/{setting}.py"] if is_dense else []
        argv += ["--recipe", setting] if tool == "train_cls" else []
        argv += ["--model", origin.model] if not is_dense and origin.kind == "none" else []
        argv += [*self.places.labelled(measured.data), "--weights", str(weights)]
        seeds = range(self.seeds) if tool != "probe" else (None,)
        for seed in seeds:
            own = [*argv, *([] if seed is None else ["--seed", str(seed)]), *self._common(tool)]
            folder = f"{FOLDERS[tool]}/{name}" + ("" if seed is None else f"_seed{seed}")
            self._finetuning(folder, tool, own, origin.model, measured.data, missing, needs)

    def _finetuning(
        self,
        name: str,
        tool: str,
        argv: list[str],
        model: str,
        data: str,
        missing: tuple[str, ...],
        needs: tuple[str, ...] = (),
    ) -> tuple[Path, tuple[str, ...]]:
        costs = finetuning_cost(tool, argv, model, data)
        folder = self.output / name
        named = tool in ("train_det", "train_seg") or "--model" in argv
        job = Job(name, f"{tool}.py", tuple(argv), folder, RESULTS, needs, missing=missing, **costs)
        return self._add(replace(job, model="" if named else model))

    def _encoder(self, origin: Origin) -> tuple[Path | str, tuple[str, ...]]:
        """Returns the encoder file (or "none") and the job that makes it."""
        if origin.kind == "none":
            return "none", ()
        given = self._given(origin.name)
        if origin.kind == "published":
            return self._converted(origin, given)
        if given is not None:
            return given, ()
        if origin.kind == "supervised":
            missing = self._miss(self.places.missing(origin.data))
            argv = ["--recipe", origin.data, "--model", origin.model, *self.places.labelled(origin.data)]
            argv += ["--weights", "none", "--seed", "0", *self._common("train_cls")]
            return self._finetuning(f"supervised/{origin.name}", "train_cls", argv, origin.model, origin.data, missing)
        return self._pretrained(origin)

    def _given(self, name: str) -> Path | None:
        """Returns the file that --weights gives for a name."""
        given = self.files.get(name)
        if given is not None and not given.exists():
            self._miss(absent(name, given))
        return given

    def _converted(self, origin: Origin, given: Path | None) -> tuple[Path, tuple[str, ...]]:
        missing: tuple[str, ...] = ()
        if given is None:
            missing = self._miss(
                f"{origin.method.upper()}'s published {origin.model}: give --weights {origin.name}=FILE"
            )
        elif not given.exists():
            missing = (absent(origin.name, given),)
        name = f"convert/{origin.name}"
        folder = self.output / name
        source = str(given or f"<{origin.name}>")
        argv = (source, str(folder / ENCODER), "--from", origin.method, "--model", origin.model)
        disk = BYTES * encoder_parameters(ENCODERS[origin.model])
        job = Job(name, "convert.py", argv, folder, ENCODER, resumable=False, with_output=False, disk=disk)
        return self._add(replace(job, missing=missing))

    def _pretrained(self, origin: Origin) -> tuple[Path, tuple[str, ...]]:
        missing = self._miss(self.places.missing(origin.data))
        images, listed = self.places.pretraining(origin.data, self.output / "lists")
        if listed is not None:
            self.lists[origin.data] = listed
        argv = ["--recipe", origin.data, "--model", origin.model]
        if origin.method != "splitmask":
            argv += ["--method", origin.method]
        for key, value in origin.options:
            argv += [f"--{key.replace('_', '-')}", value]
        if ("tokenizer", DALLE) in origin.options:
            weights = self._given(DALLE)
            if weights is None:
                missing += self._miss(f"DALL-E's encoder for {origin.name}: give --weights {DALLE}=FILE.safetensors")
            argv += ["--tokenizer-weights", str(weights or f"<{DALLE}>")]
        argv += [*images, *self._common("pretrain")]
        name = f"pretrain/{origin.name}"
        costs = pretraining_cost(argv, origin.data)
        folder = self.output / name
        return self._add(Job(name, "pretrain.py", tuple(argv), folder, ENCODER, missing=missing, **costs))
