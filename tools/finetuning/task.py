"""What differs between detector, segmentor and classifier: a `Task`, around which `run` is the same for all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from pretrain.data.deep_images import range_of_run
from pretrain.data.sources import ImageList
from pretrain.data.value_range import ValueRange, range_in
from pretrain.training.distributed import make_fabric
from pretrain.training.optimizer import adamw
from pretrain.training.rehearsal import Rehearsal
from pretrain.training.run_folder import RunFolder
from splitmask_backbones.errors import UserError
from splitmask_backbones.param_groups import param_groups
from splitmask_backbones.run_files import BAD_IMAGES
from tools.finetuning.options import FinetuneOptions
from tools.finetuning.pictures import Pictures

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from tools.finetuning.graph import Graph

T = TypeVar("T")


class Task(ABC):
    """What one fine-tuning tool brings to the skeleton in `run`.

    Args:
        base: its values; has `override(given)` and what the loop reads.

    Attributes:
        command: the tool's name, as in config.json.
        noun: what is trained; `NOUN.safetensors` is the finished model.
        name_key: what `name` is called in config.json, "config" or "recipe".
        remedy: what to omit where trained weights do not fit the model.
        keeps_encoder: whether encoder.safetensors is written beside the model.
        recipe: the values of this run, known once its folder is open.
        previous: config.json of the run that is resumed or used; empty for a new one.
        rehearsal: what times it where it is one.
        weights_suffix: what names weights other than the finished model in what an evaluation writes: "_best", ...
        is_other: whether what is evaluated is other data than the run's, or with other values.
    """

    command: ClassVar[str]
    noun: ClassVar[str]
    name_key: ClassVar[str] = "config"
    remedy: ClassVar[str]
    keeps_encoder: ClassVar[bool] = False

    def __init__(self, options: FinetuneOptions, name: str, base: Any, given: dict[str, Any]) -> None:
        self.options, self.name, self.base, self.given = options, name, base, given
        self.recipe: Any = base
        self.previous: dict[str, Any] = {}
        self.weights_suffix = ""
        self.is_other = False
        self._value_range: ValueRange | None = None
        self.rehearsal = Rehearsal() if options.rehearse else None

    @abstractmethod
    def find_data(self, needed: tuple[str, ...]) -> None:
        """Finds the data of "train" and "val", or of "val" alone; no image is read.

        Raises:
            ValueError: it is not there.
        """

    @abstractmethod
    def recorded(self, config: dict[str, Any]) -> Any:
        """Returns the values of the run that a config.json is of."""

    def fabric(self) -> Fabric:
        """Returns device, precision and processes."""
        return make_fabric(self.recipe.precision, self.options.device, deterministic=self.is_deterministic)

    @property
    def is_deterministic(self) -> bool:
        """Whether a GPU makes the same bytes each time."""
        return self.options.is_deterministic(self.previous)

    def used(self, split: str, items: list[T]) -> list[T]:
        """Returns what of "train" or "val" is read: all, or a few in a rehearsal."""
        if self.rehearsal is None:
            return items
        return self.rehearsal.a_few(items, split, self.recipe.batch_size)

    @property
    def value_range(self) -> ValueRange | None:
        """How more than 8 bits become 8: by the training images of this run, or of the one that is used."""
        return self._value_range or range_in(self.previous)

    def choose_range(self, images: ImageList, fabric: Fabric) -> dict[str, Any]:
        """Measures it on the training images of a new run; returns what identifies it, nothing where there is none."""
        self._value_range = range_of_run(images, fabric, self.previous.get("data", {}) if self.previous else None)
        return {} if self.value_range is None else {"value_range": list(self.value_range)}

    @abstractmethod
    def check_data(self, folder: RunFolder, fabric: Fabric) -> dict[str, Any]:
        """Returns what identifies the data, after every file that was found has been checked.

        Raises:
            ValueError: something in it cannot be used.
        """

    @abstractmethod
    def build(self, weights: Path | None, encoder_config: dict[str, Any] | None = None) -> nn.Module:
        """Returns the model: `model(batch)` gives named losses; it has `metric_names` and `encoder`.

        Args:
            weights: encoder file; None for random initialisation.
            encoder_config: arguments of the encoder of a run that is used: nothing is loaded, its weights follow.
        """

    @abstractmethod
    def values(self) -> dict[str, Any]:
        """Returns the entries of config.json with the values that decide the result."""

    def free(self) -> dict[str, Any]:
        """Returns what else is worth knowing about the run."""
        return {}

    @abstractmethod
    def train_set(self) -> Dataset[Any]:
        """Returns the training samples, asked for as `step_batches` describes; its length is that of an epoch."""

    def repeats(self) -> int:
        """Returns the appearances of an image in an epoch (repeated augmentation)."""
        return 1

    def collate(self) -> Any:
        """Returns what makes a batch of samples; None for torch's own way."""
        return None

    @abstractmethod
    def data_report(self) -> dict[str, Any]:
        """Returns the entries of data_report.json, and tells the user what was dropped."""

    def optimizer(self, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
        """Returns AdamW with layer-wise learning rates; the groups' lr are the peak values."""
        recipe = self.recipe
        groups = param_groups(model, recipe.lr, recipe.weight_decay, recipe.layer_decay)
        return adamw(groups, device, beta2=recipe.beta2)

    @abstractmethod
    def measure(self, fabric: Fabric, model: nn.Module, folder: RunFolder, final: bool) -> dict[str, Any] | None:
        """Returns the contents of results.json in the main process; in others anything.

        Args:
            final: whether it is the evaluation that counts, and not one on the way.
        """

    @abstractmethod
    def score(self, entry: dict[str, Any]) -> float:
        """Returns what models are compared by; larger is better."""

    @property
    def bad_images(self) -> Path:
        """Where unreadable images are listed: an evaluation leaves the list of the training alone."""
        stem, suffix = BAD_IMAGES.split(".")
        return self.options.output / (BAD_IMAGES if self.options.trains else f"{stem}_val.{suffix}")

    @property
    def final_differs(self) -> bool:
        """Whether the evaluation that counts is another one than those on the way."""
        return False

    def results_suffix(self) -> str:
        """Returns what is added to the names of what an evaluation writes that is not made as the run's own."""
        return "_other" if self.is_other else ""

    @property
    @abstractmethod
    def class_names(self) -> list[str]:
        """Names of the classes, by their labels from 0."""

    @abstractmethod
    def answer(self, fabric: Fabric, model: Any, image: Image.Image, path: str = "") -> dict[str, Any]:
        """Returns what a trained model says of one image, in arrays of NumPy: what `tools.predictor` promises.

        Args:
            model: in evaluation, on the device.
            image: upright RGB.
            path: its file, for a pipeline that reads files.
        """

    @abstractmethod
    def predict(self, fabric: Fabric, model: nn.Module, pictures: Pictures) -> str:
        """Draws what the model finds in the pictures of `--predict`; returns what the drawings show, in words."""

    def graph(self, model: Any) -> Graph:
        """Returns a trained model as what runs without this project, on images of one size.

        Raises:
            ValueError: there is no such thing of this model.
        """
        raise UserError(f"a {self.noun} of this kind cannot be written as a graph")

    def graph_size(self) -> tuple[int, int]:
        """Returns `(H, W)` of the images that a graph takes unless another size is asked for."""
        raise NotImplementedError

    def prepared(self) -> dict[str, Any]:
        """Returns how images become what a graph takes: the values of deep ones that become 0 and 1."""
        return {} if self.value_range is None else {"value_range": list(self.value_range)}
