"""DINO: a student learns to agree with its own moving average on other crops (Caron et al. 2021); the baseline.

Loss and head are lightly's. Settings are those of DINO's published code, because SplitMask's paper names none.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.data.pixel_norm import PixelNorm
from pretrain.methods.base import METRICS, Method
from splitmask_backbones.errors import UserError
from splitmask_backbones.vit import VisionTransformer

FIRST_TEMPERATURE = 0.04
"""Of the teacher, where it is warmed up."""


class Dino(Method):
    """The method as a module: `forward(batch)` returns the loss, `after_step` moves the teacher.

    Student and teacher are an encoder with a class token and a head of three layers on that token. The teacher's
    encoder is the result.

    Args:
        student, teacher: encoders of the same form, with a class token and final norm; the teacher's weights are
            replaced by the student's.
        num_outputs: of the heads.
        momentum: of the teacher at the start; rises to 1 along a cosine.
        temperature: of the teacher's softmax; the student's is 0.1.
        warm_steps: steps in which the teacher's temperature rises linearly from 0.04. None in DINO's default; its
            long runs rise to 0.07 in 30 epochs.
        total_steps: of the whole run.
        frozen_steps: steps at the start that leave the last layer of the head alone (the first epoch).
    """

    metric_names = (*METRICS, "teacher_momentum", "teacher_entropy")
    finished: Tensor

    def __init__(
        self,
        student: VisionTransformer,
        teacher: VisionTransformer,
        *,
        num_outputs: int,
        momentum: float,
        temperature: float,
        total_steps: int,
        frozen_steps: int,
        warm_steps: int = 0,
    ) -> None:
        super().__init__()
        try:
            from lightly.loss.dino_loss import DINOLoss
            from lightly.models.modules.heads import DINOProjectionHead
        except ImportError as error:
            raise UserError(f"--method dino needs lightly ({error}): install the extra 'dino'") from None
        self.momentum, self.temperature = momentum, temperature
        self.total_steps, self.frozen_steps, self.warm_steps = total_steps, frozen_steps, warm_steps
        width = student.embed_dim
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # lightly's weight_norm is the old one of torch
            heads = [DINOProjectionHead(width, output_dim=num_outputs) for _ in range(2)]
        self.student = nn.ModuleDict({"encoder": student, "head": heads[0]})
        self.teacher = nn.ModuleDict({"encoder": teacher, "head": heads[1]})
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.loss = DINOLoss(num_outputs, teacher_temp=temperature)
        self.register_buffer("finished", torch.zeros((), dtype=torch.int64))
        self._steps: int | None = None  # `finished` for the host, which would wait for a GPU's
        self.register_load_state_dict_post_hook(_forget_steps)
        self._centres: list[Tensor] = []  # of the teacher's outputs, as each micro-batch of the step moves them
        # Frozen by gradients of zero, which processes can exchange and which do not count in the gradient's norm.
        self._last_layer().register_hook(lambda gradient: gradient * (self.finished >= self.frozen_steps))
        self.normalize = PixelNorm()

    @property
    def encoder(self) -> VisionTransformer:  # type: ignore[override]
        """The teacher's encoder."""
        return self.teacher["encoder"]  # type: ignore[return-value]

    @property
    def trained_encoder(self) -> VisionTransformer:
        """The student's encoder."""
        return self.student["encoder"]  # type: ignore[return-value]

    def train(self, mode: bool = True) -> Dino:
        """Puts the student into training mode; the teacher never drops a path."""
        super().train(mode)
        self.teacher.eval()
        return self

    @property
    def steps(self) -> int:
        """Finished steps."""
        if self._steps is None:
            self._steps = int(self.finished)
        return self._steps

    def teacher_momentum(self, step: int) -> float:
        """Returns the momentum of a step (0-based): a cosine from `momentum` to 1."""
        return 1 - (1 - self.momentum) * (1 + math.cos(math.pi * step / max(1, self.total_steps))) / 2

    def teacher_temperature(self, step: int) -> float:
        """Returns the temperature of a step (0-based)."""
        if step >= self.warm_steps:
            return self.temperature
        return FIRST_TEMPERATURE + (self.temperature - FIRST_TEMPERATURE) * step / self.warm_steps

    def _last_layer(self) -> nn.Parameter:
        last: Any = self.student["head"].last_layer  # type: ignore[union-attr]
        return last.weight_v

    def before_step(self) -> None:
        """Takes the frozen layer from the optimizer, which would decay it and count zeros in its averages."""
        if self.steps < self.frozen_steps:
            self._last_layer().grad = None

    @torch.no_grad()
    def after_step(self, done: int) -> None:
        """Moves the teacher towards the student, and the centre, after step `done` (1-based)."""
        momentum = self.teacher_momentum(done - 1)
        if self._centres:
            self.loss.center.copy_(torch.stack(self._centres).mean(0))
            self._centres = []
        # Leaves what is equal as it is: a frozen patch embedding.
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)
        self.finished.fill_(done)
        self._steps = done

    def outputs(self, model: nn.ModuleDict, crops: Tensor) -> list[Tensor]:
        """Returns one `(B, num_outputs)` for each of the V crops of uint8 `(B, V, 3, S, S)`."""
        images = self.normalize(crops.transpose(0, 1).flatten(0, 1))  # crop by crop
        return list(model["head"](model["encoder"](images)[:, 0]).float().chunk(crops.shape[1]))

    @torch.no_grad()
    def observe(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns what a monitor looks at, of the large crops: `loss_large`, `targets`, `predictions`.

        `loss_large` (0-dim) is the part of the loss between the two, without moving the centre; `targets` and
        `predictions` int64 `(2B,)` are the largest outputs of the teacher for one and of the student for the other:
        few that are used tell of a collapse.
        """
        temperature = self.teacher_temperature(self.steps)
        targets = torch.stack(self.outputs(self.teacher, batch["large"])) - self.loss.center
        found = torch.stack(self.outputs(self.student, batch["large"])).flip(0)  # the crop that the teacher has not
        log_shares = (found / self.loss.student_temp).log_softmax(-1)
        return {
            "loss_large": -((targets / temperature).softmax(-1) * log_shares).sum(-1).mean(),
            "targets": targets.argmax(-1).flatten(),
            "predictions": found.argmax(-1).flatten(),
        }

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns `loss`, and of the teacher its momentum and the entropy (nats) of its mean output.

        Args:
            batch: `large` uint8 `(B, 2, 3, S, S)`, `small` uint8 `(B, L, 3, s, s)`.
        """
        large, small = batch["large"], batch["small"]
        temperature = self.teacher_temperature(self.steps)
        with torch.no_grad():
            targets = self.outputs(self.teacher, large)
            centred = (torch.stack(targets) - self.loss.center) / temperature
            mean = centred.softmax(dim=-1).mean(dim=(0, 1))
        found = self.outputs(self.student, large)
        if small.shape[1]:
            found += self.outputs(self.student, small)
        # The loss moves the centre: once a step is the method, whatever number of micro-batches it has.
        centre = self.loss.center.clone()
        with torch.autocast(large.device.type, enabled=False):
            loss = self.loss(targets, found, teacher_temp=temperature)
        self._centres.append(self.loss.center.clone())
        self.loss.center.copy_(centre)
        return {
            "loss": loss,
            # `torch.tensor` would copy, behind all that the device has to do.
            "teacher_momentum": torch.full((), self.teacher_momentum(self.steps), device=loss.device),
            "teacher_entropy": -(mean * mean.clamp(min=1e-12).log()).sum(),
        }


def _forget_steps(method: nn.Module, _: Any) -> None:
    method._steps = None  # type: ignore[assignment]
