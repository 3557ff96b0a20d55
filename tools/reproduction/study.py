"""The small study: SplitMask against BEiT, DINO and random init on nuclei and CamVid. Free of torch.

Every row of a size has the same budget: pre-training in images seen, fine-tuning in steps. The longer rows get
as many further steps as fit in the time that SplitMask's pre-training takes, by the seconds of the budget. The rows
of ABLATION each change one value of SplitMask's. Those of FEW_LABELS are fine-tuned on shares of the labels too, from
the same pre-training and with the same steps.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.recipes import get_recipe
from splitmask_backbones.run_files import ENCODER, RESULTS
from tools.reproduction.cost import pretraining_operations
from tools.running.job import Job
from tools.running.pictures import prediction_job
from tools.running.planned import planned_recipe

PICTURES = 4
PRETRAIN_DISK = 190e6  # bytes of a pre-training of ViT-Ti, measured
FINETUNE_PRECISION = "32"
PRETRAIN = "pretrain.py"
GIVEN_MODEL = "vit_tiny"
OTHERS_SLOWER = 2.3
"""A step of lightly-train's DINO over SplitMask's, on a CPU (one thread, 96 wide, 128 px: 3.2 and 1.4 s)."""


@dataclass(frozen=True)
class Head:
    """Data, tool and config of one half of the study, what its results.json is read for, and the bytes of a run.

    The bytes were measured: two checkpoints, and the detector. The engine is named, so that the numbers of two machines
    compare although detectron2 may be installed on one of them only. `encoder` is where its config holds the encoder's
    sizes and `lr` the rate, `overrides` are values that its config does not have, `rate` is a factor on the base
    learning rate of every pre-training on it.
    """

    tool: str
    config: tuple[str, ...]
    disk: float
    pictures: str
    encoder: str = ""
    lr: str = "lr"
    overrides: tuple[str, ...] = ()
    rate: float = 1.0


HEADS = {
    "nuclei": Head("train_det", ("det_configs/nuclei_tiny.py", "--engine", "torchvision"), 240e6, "val"),
    "camvid": Head(
        "train_seg",
        ("seg_configs/camvid_tiny.py",),
        160e6,
        "images/val",
        "model.backbone.",
        "optim_wrapper.optimizer.lr",
        # So that mIoU is not that of the four largest classes; their roots, so that buildings stay buildings
        # (docs/study/ablation.md).
        ("class_weights=sqrt_median_frequency",),
        # docs/study/ablation.md: road scenes gain by four times the rate that nuclei lose by.
        rate=4.0,
    ),
}


@dataclass(frozen=True)
class Row:
    """One row of the study.

    Attributes:
        title: in the table.
        argv: options of its pre-training, None without one.
        length: factor on its steps.
        rate: factor on its base learning rate.
        rates: such a factor by data set, where the method's best rate differs from SplitMask's.
        tool: what pre-trains.
        given: the encoder comes from the user (`--weights ROW=FILE`).
        encoder_of: the row whose pre-training it begins with, where that is another one.
        compared_with: the row that its gain is told against.
    """

    title: str
    argv: tuple[str, ...] | None
    length: float = 1.0
    rate: float = 1.0
    rates: Mapping[str, float] = field(default_factory=dict)
    tool: str = PRETRAIN
    given: bool = False
    encoder_of: str = ""
    compared_with: str = "random"


METHODS = {
    "random": Row("random init", None),
    "random_longer": Row("random init, longer", None),
    "dino": Row("DINO", ("--method", "dino")),
    # On CamVid better with each of three seeds at the recipe's own rate (docs/study/README.md).
    "beit": Row("BEiT", ("--method", "beit"), rates={"camvid": 0.25}),
    "inpaint": Row("SplitMask, inpaint only", ("--match-weight", "0")),
    "match": Row("SplitMask, match only", ("--inpaint-weight", "0")),
    "full": Row("SplitMask", ()),
    "full_longer": Row("SplitMask, longer", None, encoder_of="full", compared_with="random_longer"),
}
# What users would do instead.
OTHERS = {
    "imagenet": Row("DeiT-Ti, ImageNet's labels", None, given=True),
    "lightly": Row("DINO of lightly-train", (), tool="benchmarks/lightly_dino.py"),
}
ABLATION = {
    "lr_lower": Row("lr / 4", (), rate=0.25),
    "lr_higher": Row("lr x 4", (), rate=4.0),
    "shorter": Row("half as long", (), 0.5),
    "longer": Row("twice as long", (), 2.0),
    "norm_none": Row("patches as they are", ("--patch-norm", "none")),
    "norm_pixel": Row("mean of pixels in [0, 1] removed", ("--patch-norm", "pixel_mean")),
    "norm_channel": Row("mean of each channel removed", ("--patch-norm", "channel_mean")),
    "random_projection": Row("codebook of random projections", ("--tokenizer", "random_projection")),
    "vocab_larger": Row("2048 token ids", ("--vocab-size", "2048")),
    "crop_128": Row("crops of 128 px", ("--img-size", "128")),
    "mask_half": Row("uniform mask of 50 %", ("--mask", "uniform", "--mask-ratio", "0.5")),
    "mask_block": Row("block mask of 50 %", ("--mask", "block", "--mask-ratio", "0.5")),
    "match_one": Row("match weight 1", ("--match-weight", "1")),
    "no_jitter": Row("no branch jitter", ("--branch-jitter", "0")),
    "crop_medium": Row("crops of 20 to 100 %", ("--crop-scale", "0.2", "--crop-scale-max", "1")),
    "crop_large": Row("crops of 50 to 100 %", ("--crop-scale", "0.5", "--crop-scale-max", "1")),
    "frozen": Row("patch embedding frozen", ("--freeze-patch-embed", "true")),
}
ROWS = METHODS | OTHERS | ABLATION
LONGER = ("random_longer", "full_longer")
"""Rows that are fine-tuned as long as a pre-training and a fine-tuning together take."""
FEW_LABELS = ("random", "full")
SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
"""Of the training images with their labels, nested by seed (`tools/finetuning/labels.py`)."""


@dataclass(frozen=True)
class Length:
    """Steps of one training, images per step, and the seconds that a step of one job takes.

    The learning rates are those of a start from nothing and from an encoder, None for the config's own: each start has
    its best one, found on the validation images with the same rates tried for both.
    """

    steps: int
    batch_size: int
    seconds: float
    random_lr: float | None = None
    trained_lr: float | None = None


@dataclass(frozen=True)
class Budget:
    """The values of one size of the study; the one place to change them.

    Attributes:
        rows: of ROWS, by data set.
        seeds: how many; each is a pre-training and a fine-tuning of its own.
        pretrain: by data set; steps x batch size are the images seen in pre-training, in every row.
        finetune: by data set, at the config's image size.
        start_seconds: start, check of the data and evaluation of one run.
        encoder: its sizes where they are not ViT-Ti's, of every row without an encoder from elsewhere.
        overrides: by data set, values of fine-tuning that go with that encoder.
        precision: of pre-training; bf16 needs a machine that has instructions for it.
        bf16_time: factor on the seconds where all is trained in bf16, beside `precision`.
        hardware: what the seconds were taken on; estimates and the longer row follow them.
    """

    rows: Mapping[str, tuple[str, ...]]
    seeds: int
    pretrain: dict[str, Length]
    finetune: dict[str, Length]
    start_seconds: float
    hardware: str
    precision: str
    bf16_time: float = 1.0
    encoder: Mapping[str, int] = field(default_factory=dict)
    overrides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def pretraining_seconds(self, data: str) -> float:
        """Returns the seconds of SplitMask's pre-training."""
        return self.pretrain[data].steps * self.pretrain[data].seconds

    def pretraining_steps(self, data: str, row: str) -> int:
        """Returns the steps of a row's pre-training, 0 without one."""
        return 0 if ROWS[row].argv is None else round(ROWS[row].length * self.pretrain[data].steps)

    def finetuning_steps(self, data: str, row: str) -> int:
        """Returns the fine-tuning steps of a row."""
        own = self.finetune[data]
        return own.steps + (round(self.pretraining_seconds(data) / own.seconds) if row in LONGER else 0)

    def finetuning_seconds(self, data: str, row: str) -> float:
        """Returns the seconds of one fine-tuning."""
        return self.finetuning_steps(data, row) * self.finetune[data].seconds


PRETRAIN_STEPS = {"nuclei": 16_000, "camvid": 4_000}
"""On nuclei twice as many bring no more, with the encoder of the CPU size. On CamVid they bring 2.3 to 4.5 mIoU: 4,000
are for the six hours of the CPU size (docs/study/README.md)."""

RATES = {"nuclei": (2e-3, 2e-3), "camvid": (1e-3, 2e-3)}
"""Of fine-tuning, from nothing and from an encoder: docs/study/ablation.md."""

BUDGETS = {
    "cpu": Budget(
        # The order of the methods on CamVid alone, where a pre-training takes a quarter of that on nuclei.
        rows={"nuclei": ("random", "full", "imagenet"), "camvid": (*METHODS, "imagenet")},
        seeds=3,
        pretrain={data: Length(steps, 64, 0.2) for data, steps in PRETRAIN_STEPS.items()},
        finetune={"nuclei": Length(400, 4, 0.46, *RATES["nuclei"]), "camvid": Length(800, 8, 0.28, *RATES["camvid"])},
        start_seconds=60.0,
        hardware="two jobs at once, one thread of a 2-core CPU with AVX-512 each; older ones take twice as long",
        precision="32",
        bf16_time=0.7,
        encoder={"embed_dim": 96, "depth": 6},  # of 0.75 million parameters: a minute counts for four times the crops
        # Six blocks come down to about what the config's 0.75 comes to with twelve.
        overrides={"camvid": ("optim_wrapper.paramwise_cfg.decay_rate=0.55",)},
    ),
    "gpu": Budget(
        rows=dict.fromkeys(HEADS, (*METHODS, "imagenet")),
        seeds=3,
        # The batches of the CPU: learning rates follow them, and these are the rates that were tried.
        pretrain={data: Length(steps, 64, 0.03) for data, steps in PRETRAIN_STEPS.items()},
        finetune={"nuclei": Length(400, 4, 0.08, *RATES["nuclei"]), "camvid": Length(800, 8, 0.05, *RATES["camvid"])},
        start_seconds=15.0,
        hardware="a guess for one GPU with jobs at once: nobody has measured it yet",
        precision="bf16",
    ),
}


@dataclass(frozen=True)
class Study:
    """One study: what is compared on which data (`root` holds a folder for each set), and where it goes."""

    size: str  # of BUDGETS
    root: Path
    output: Path
    rows: Mapping[str, tuple[str, ...]]  # of ROWS, by data set
    seeds: int
    workers: int = 0  # data processes of each job
    shares: tuple[float, ...] = SHARES  # of the labels, 1.0 among them
    files: Mapping[str, Path] = field(default_factory=dict)  # encoders by the row that takes them
    precision: str | None = None  # of every training, in place of the size's
    device: str = "auto"  # of every job

    @property
    def budget(self) -> Budget:
        """The values of its size."""
        return BUDGETS[self.size]

    @property
    def sets(self) -> tuple[str, ...]:
        """The data sets."""
        return tuple(self.rows)

    @property
    def all_rows(self) -> tuple[str, ...]:
        """The rows that run on one of the data sets at least, in the order of ROWS."""
        return tuple(row for row in ROWS if any(row in rows for rows in self.rows.values()))


def run_folder(output: Path, row: str, data: str, seed: int) -> Path:
    """Returns the folder of the runs of one row on one data set with one seed."""
    return output / row / data / f"seed{seed}"


def finetuning_folder(output: Path, row: str, data: str, seed: int, share: float = 1.0) -> Path:
    """Returns the folder of a fine-tuning on a share of the labels."""
    suffix = "" if share == 1 else f"_{100 * share:g}_percent"
    return run_folder(output, row, data, seed) / f"{HEADS[data].tool}{suffix}"


def missing(study: Study) -> list[str]:
    """Returns a sentence for each data set and each encoder that is not there."""
    needed = " and ".join(study.sets)
    sets = [
        f"--data {study.root} holds no folder {data}: the study needs {needed} in it"
        for data in study.sets
        if not (study.root / data).is_dir()
    ]
    absent = {row: file for row, file in study.files.items() if not file.exists()}
    return [*sets, *(f"--weights {row}={file}: the file does not exist" for row, file in absent.items())]


def study_jobs(study: Study) -> list[Job]:
    """Returns all jobs, seed by seed, so that what is finished can be compared early; data may be missing."""
    places = [(data, row, seed) for seed in range(study.seeds) for data in study.sets for row in study.rows[data]]
    given = [job for row in study.all_rows if ROWS[row].given for job in _given(study, row)]
    jobs = [*given, *(job for place in places for job in _row_jobs(study, *place))]
    jobs = list({job.name: job for job in jobs}.values())  # two rows begin with one pre-training
    factor = study.budget.bf16_time if study.precision == "bf16" else 1.0
    return [dataclasses.replace(job, seconds=factor * job.seconds) for job in jobs]


def _row_jobs(study: Study, data: str, row: str, seed: int) -> list[Job]:
    """Returns the pre-training of a row on a data set with a seed, if it has one, and its fine-tunings."""
    common = ["--seed", str(seed), "--workers", str(study.workers)]
    logged = ["--save-every", "100", "--log-every", "10"]
    pretraining = _pretraining(study, ROWS[row].encoder_of or row, data, seed, common, logged)
    start = _given(study, row) or pretraining
    budget, head, length = study.budget, HEADS[data], study.budget.finetuning_steps(data, row)
    argv = [*head.config, "--steps", str(length), "--batch-size", str(budget.finetune[data].batch_size)]
    argv += ["--precision", study.precision or FINETUNE_PRECISION, "--data", str(study.root / data), "--weights"]
    argv += [str(start[0].folder / ENCODER) if start else "none", *common, *logged]
    argv += head.overrides
    rate = budget.finetune[data].trained_lr if start else budget.finetune[data].random_lr
    argv += [] if rate is None else [f"{head.lr}={rate:g}"]
    if not ROWS[row].given:
        argv += [f"{head.encoder}{name}={size}" for name, size in budget.encoder.items()]
        argv += budget.overrides.get(data, ())
    needs = tuple(job.name for job in start)
    seconds = budget.finetuning_seconds(data, row) + budget.start_seconds
    costs: dict[str, Any] = {"seconds": seconds, "disk": head.disk, "num_steps": length}
    finetunings = []
    for share in study.shares if row in FEW_LABELS else (1.0,):
        run = finetuning_folder(study.output, row, data, seed, share)
        given = (*argv, *(() if share == 1 else ("--labels", f"{share:g}")))
        name = str(run.relative_to(study.output))
        finetunings.append(Job(name, f"{head.tool}.py", given, run, RESULTS, needs, **costs))
    return [*pretraining, *finetunings]


def _given(study: Study, row: str) -> list[Job]:
    """Returns the job that converts the encoder that the user gives for a row, in a list; an empty one for others."""
    if not ROWS[row].given:
        return []
    folder = study.output / row
    argv = (str(study.files.get(row, f"<{row}>")), str(folder / ENCODER), "--model", GIVEN_MODEL)
    return [Job(row, "convert.py", argv, folder, ENCODER, resumable=False, with_output=False, disk=PRETRAIN_DISK / 8)]


def pretraining_folder(output: Path, row: str, data: str, seed: int) -> Path:
    """Returns the folder of the pre-training that a row begins with, its own or another row's."""
    return run_folder(output, ROWS[row].encoder_of or row, data, seed) / "pretrain"


def _pretraining(study: Study, row: str, data: str, seed: int, common: list[str], logged: list[str]) -> list[Job]:
    """Returns the pre-training of a row on a data set in a list, an empty one for a row without."""
    own, budget, length = ROWS[row].argv, study.budget, study.budget.pretraining_steps(data, row)
    if own is None:
        return []
    folder = pretraining_folder(study.output, row, data, seed)
    batch_size, step_seconds = budget.pretrain[data].batch_size, budget.pretrain[data].seconds
    argv = ["--recipe", "small", *own, "--steps", str(length), "--batch-size", str(batch_size)]
    argv += [text for size, value in budget.encoder.items() for text in (f"--{size.replace('_', '-')}", str(value))]
    argv += ["--precision", study.precision or budget.precision, "--data", str(study.root / data), *common]
    name, tool = str(folder.relative_to(study.output)), ROWS[row].tool
    if tool != PRETRAIN:
        seconds = length * step_seconds * OTHERS_SLOWER + budget.start_seconds
        costs: dict[str, Any] = {"seconds": seconds, "disk": PRETRAIN_DISK, "num_steps": length}
        return [Job(name, tool, tuple(argv), folder, ENCODER, resumable=False, **costs)]
    factor = HEADS[data].rate * ROWS[row].rate * ROWS[row].rates.get(data, 1.0)
    base_lr = planned_recipe(argv).base_lr * factor  # DINO has a rate of its own
    argv += ["--base-lr", f"{base_lr:g}", *logged, "--monitor-every", str(length)]
    argv += ["--cache", str(study.output / "images")]
    recipe = planned_recipe(argv)
    dearer = pretraining_operations(recipe) / pretraining_operations(get_recipe("small").override(dict(budget.encoder)))
    seconds = length * step_seconds * dearer + budget.start_seconds
    costs = {"seconds": seconds, "disk": PRETRAIN_DISK, "num_steps": length}
    return [Job(name, tool, tuple(argv), folder, ENCODER, **costs)]


def picture_jobs(study: Study) -> list[Job]:
    """Returns the jobs that draw what seed 0 of each row predicts for the pictures in `output/pictures/DATA`."""
    jobs = []
    for data, rows in study.rows.items():
        head, pictures = HEADS[data], study.output / "pictures" / data
        for row in rows:
            run = run_folder(study.output, row, data, 0) / head.tool
            training = str(run.relative_to(study.output))
            jobs.append(prediction_job(training, f"{head.tool}.py", head.config, run, pictures, PICTURES))
    return jobs
