"""The small study: SplitMask against BEiT, DINO and random init on nuclei and CamVid. Free of torch.

Every row of a size has the same budget: pre-training in images seen, fine-tuning in updates. The longer random row gets
as many further updates as fit in the time that SplitMask's pre-training takes, by the seconds of the budget. The rows
of ABLATION each change one value of SplitMask's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pretrain.recipes import get_recipe
from splitmask_backbones.errors import UserError
from tools.reproduction import cost
from tools.reproduction.plan import planned_recipe
from tools.reproduction.step import Step

ENCODER, RESULTS = "encoder.safetensors", "results.json"
PICTURES = 4
PRETRAIN_DISK = 190e6  # bytes of a pre-training of ViT-Ti, measured


@dataclass(frozen=True)
class Head:
    """Data, tool and config of one half of the study, what its results.json is read for, and the bytes of a run.

    The bytes were measured: two checkpoints, and the detector. The engine is named, so that the numbers of two machines
    compare although detectron2 may be installed on one of them only.
    """

    tool: str
    config: tuple[str, ...]
    disk: float
    metrics: tuple[tuple[str, str], ...]
    pictures: str


HEADS = {
    "nuclei": Head(
        "train_det",
        ("det_configs/nuclei_tiny.py", "--engine", "torchvision"),
        240e6,
        (("box AP", "bbox.AP"), ("mask AP", "segm.AP")),
        "val",
    ),
    "camvid": Head("train_seg", ("seg_configs/camvid_tiny.py",), 160e6, (("mIoU", "mIoU"),), "images/val"),
}


@dataclass(frozen=True)
class Row:
    """One row of the study.

    Attributes:
        title: in tables and pictures.
        words: options of its pre-training, or None without one.
        length: factor on the updates of the pre-training.
    """

    title: str
    words: tuple[str, ...] | None
    length: float = 1.0


METHODS = {
    "random": Row("random init", None),
    "random_longer": Row("random init, longer", None),
    "dino": Row("DINO", ("--method", "dino")),
    "beit": Row("BEiT", ("--method", "beit")),
    "inpaint": Row("SplitMask, inpaint only", ("--match-weight", "0")),
    "match": Row("SplitMask, match only", ("--inpaint-weight", "0")),
    "full": Row("SplitMask", ()),
}
BASE_LR = get_recipe("small").base_lr
ABLATION = {
    "lr_lower": Row("lr / 4", ("--base-lr", f"{BASE_LR / 4:g}")),
    "lr_higher": Row("lr x 4", ("--base-lr", f"{BASE_LR * 4:g}")),
    "shorter": Row("half as long", (), 0.5),
    "longer": Row("twice as long", (), 2.0),
    "norm_none": Row("patches as they are", ("--patch-norm", "none")),
    "norm_pixel": Row("mean of pixels in [0, 1] removed", ("--patch-norm", "pixel_mean")),
    "norm_channel": Row("mean of each channel removed", ("--patch-norm", "channel_mean")),
    "kmeans": Row("k-means words", ("--tokenizer", "kmeans")),
    "mask_half": Row("uniform mask of 50 %", ("--mask", "uniform", "--mask-ratio", "0.5")),
    "mask_block": Row("block mask of 50 %", ("--mask", "block", "--mask-ratio", "0.5")),
    "match_tenth": Row("match weight 0.1", ("--match-weight", "0.1")),
    "jitter": Row("branch jitter 0.4", ("--branch-jitter", "0.4")),
    "crop_small": Row("crops of 5 to 30 %", ("--crop-scale", "0.05", "--crop-scale-max", "0.3")),
    "crop_large": Row("crops of 50 to 100 %", ("--crop-scale", "0.5")),
    "frozen": Row("patch embedding frozen", ("--freeze-patch-embed", "true")),
}
ROWS = METHODS | ABLATION
LONGER = "random_longer"


@dataclass(frozen=True)
class Budget:
    """The values of one size of the study; the one place to change them.

    Attributes:
        rows: of ROWS.
        seeds: how many; each is a pre-training and a fine-tuning of its own.
        pretrain_updates, pretrain_batch: images seen in pre-training = their product, in every row.
        precision: of the pre-training.
        det_updates, det_batch: of Mask R-CNN, at the config's image size.
        seg_updates, seg_batch: of UperNet.
        finetune_precision: of both.
        pretrain_seconds, det_seconds, seg_seconds: of one update of one job; estimates and the longer row follow them.
        start_seconds: start, check of the data and evaluation of one run.
        hardware: what the seconds were taken on.
    """

    rows: tuple[str, ...]
    seeds: int
    pretrain_updates: int
    pretrain_batch: int
    precision: str
    det_updates: int
    det_batch: int
    seg_updates: int
    seg_batch: int
    finetune_precision: str
    pretrain_seconds: float
    det_seconds: float
    seg_seconds: float
    start_seconds: float
    hardware: str

    @property
    def pretraining_seconds(self) -> float:
        """Seconds of SplitMask's pre-training."""
        return self.pretrain_updates * self.pretrain_seconds

    def pretraining_updates(self, row: str) -> int:
        """Returns the updates of a row's pre-training, 0 without one."""
        return 0 if ROWS[row].words is None else round(ROWS[row].length * self.pretrain_updates)

    def updates(self, data: str, row: str) -> int:
        """Returns the fine-tuning updates of a row."""
        own, seconds = self._finetuning(data)
        return own + (round(self.pretraining_seconds / seconds) if row == LONGER else 0)

    def finetuning_seconds(self, data: str, row: str) -> float:
        """Returns the seconds of one fine-tuning."""
        return self.updates(data, row) * self._finetuning(data)[1]

    def _finetuning(self, data: str) -> tuple[int, float]:
        if data == "nuclei":
            return self.det_updates, self.det_seconds
        return self.seg_updates, self.seg_seconds


BUDGETS = {
    "cpu": Budget(
        rows=("random", "beit", "full"),
        seeds=2,
        pretrain_updates=500,
        pretrain_batch=64,
        precision="bf16",
        det_updates=200,
        det_batch=4,
        seg_updates=300,
        seg_batch=8,
        finetune_precision="32",
        pretrain_seconds=1.5,
        det_seconds=1.6,
        seg_seconds=0.85,
        start_seconds=60.0,
        hardware="two jobs at once, one thread of a 2-core CPU each",
    ),
    "gpu": Budget(
        rows=tuple(METHODS),
        seeds=3,
        # The batches of the CPU: learning rates follow them, and these are the rates that were tried.
        pretrain_updates=2000,
        pretrain_batch=64,
        precision="bf16",
        det_updates=500,
        det_batch=4,
        seg_updates=600,
        seg_batch=8,
        finetune_precision="32",
        pretrain_seconds=0.03,
        det_seconds=0.08,
        seg_seconds=0.05,
        start_seconds=15.0,
        hardware="a guess for one GPU with jobs at once: nobody has measured it yet",
    ),
}


def study_steps(
    budget: Budget,
    root: Path,
    output: Path,
    workers: int,
    rows: tuple[str, ...],
    seeds: int,
    sets: tuple[str, ...] = tuple(HEADS),
) -> list[Step]:
    """Returns all steps, seed by seed, so that what is finished can be compared early.

    Raises:
        ValueError: a data set is missing.
    """
    for data in sets:
        if not (root / data).is_dir():
            raise UserError(f"--data {root} holds no folder {data}: the study needs {' and '.join(sets)} in it")
    steps = []
    for seed in range(seeds):
        for data in sets:
            for row in rows:
                steps += _row_steps(budget, data, row, seed, root / data, output, workers)
    return steps


def run_folder(output: Path, row: str, data: str, seed: int) -> Path:
    """Returns the folder of the runs of one row on one data set with one seed."""
    return output / row / data / f"seed{seed}"


def _row_steps(budget: Budget, data: str, row: str, seed: int, root: Path, output: Path, workers: int) -> list[Step]:
    folder = run_folder(output, row, data, seed)
    base = str(folder.relative_to(output))
    common = ("--seed", str(seed), "--workers", str(workers), "--save-every", "100", "--log-every", "10")
    words = ROWS[row].words
    steps: list[Step] = []
    weights, needs = "none", ()  # type: str, tuple[str, ...]
    if words is not None:
        length = budget.pretraining_updates(row)
        seen = ("--steps", str(length), "--batch-size", str(budget.pretrain_batch), "--monitor-every", str(length))
        given = ("--recipe", "small", *words, *seen, "--precision", budget.precision, "--data", str(root), *common)
        recipe = planned_recipe(list(given))
        dearer = cost.pretraining_operations(recipe) / cost.pretraining_operations(get_recipe("small"))
        steps.append(
            Step(
                f"{base}/pretrain",
                "pretrain.py",
                given,
                folder / "pretrain",
                ENCODER,
                seconds=length * budget.pretrain_seconds * dearer + budget.start_seconds,
                disk=PRETRAIN_DISK,
                total_updates=length,
                recipe=recipe,
            )
        )
        weights, needs = str(folder / "pretrain" / ENCODER), (f"{base}/pretrain",)
    head, updates = HEADS[data], budget.updates(data, row)
    batch = budget.det_batch if head.tool == "train_det" else budget.seg_batch
    sizes = ("--steps", str(updates), "--batch-size", str(batch), "--precision", budget.finetune_precision)
    steps.append(
        Step(
            f"{base}/{head.tool}",
            f"{head.tool}.py",
            (*head.config, *sizes, "--data", str(root), "--weights", weights, *common),
            folder / head.tool,
            RESULTS,
            needs,
            seconds=budget.finetuning_seconds(data, row) + budget.start_seconds,
            disk=head.disk,
            total_updates=updates,
        )
    )
    return steps


def picture_steps(output: Path, rows: tuple[str, ...], sets: tuple[str, ...] = tuple(HEADS)) -> list[Step]:
    """Returns the steps that draw what seed 0 of each row predicts for the pictures in `output/pictures/DATA`."""
    steps = []
    for data in sets:
        head, last = HEADS[data], f"{PICTURES - 1}.*"
        for row in rows:
            folder = run_folder(output, row, data, 0) / head.tool
            training = str(folder.relative_to(output))
            steps.append(
                Step(
                    f"{training}/predict",
                    f"{head.tool}.py",
                    (*head.config, "--predict", str(output / "pictures" / data)),
                    folder,
                    f"predictions/{last}",
                    (training,),
                    resumable=False,
                    seconds=15.0,
                )
            )
    return steps
