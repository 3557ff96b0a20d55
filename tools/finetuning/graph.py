"""A trained model as an ONNX graph for images of one size, run from what is written and held against the model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from splitmask_backbones.convert.graphs import ABOUT, INPUT, check_onnx, check_torch, onnx_model, quiet, with_metadata
from splitmask_backbones.errors import UserError
from splitmask_backbones.vit import VisionTransformer, cells

OPSET = 17
"""Of a traced graph: the oldest with LayerNormalization; RoIAlign is as old as 16."""
CHECKS = 2
"""Images that the graph has to answer as the model does."""
TOLERANCE = 1e-3
"""Largest difference of an output over its own largest value: float32 in another order."""


@dataclass(frozen=True)
class Graph:
    """What is written.

    Attributes:
        module: takes float32 `(B, 3, H, W)`, RGB in [0, 1], and returns as many tensors as there are outputs.
        outputs: their names.
        any_batch: whether B may be anything; otherwise it is 1.
        varies: whether the number of what is found varies, the first dimension of each output.
    """

    module: nn.Module
    outputs: tuple[str, ...]
    any_batch: bool = False
    varies: bool = False


@contextmanager
def of_one_size(encoder: VisionTransformer) -> Iterator[None]:
    """Lets an encoder keep the positions of its first images: ONNX knows no resizing of positions as it does it."""
    resized = encoder.position_table
    kept: list[Tensor | None] = []

    def table(grid_size: tuple[int, int]) -> Tensor | None:
        if not kept:
            made = resized(grid_size)
            kept.append(None if made is None else made.detach().clone())
        return kept[0]

    encoder.position_table = table  # type: ignore[method-assign]
    try:
        yield
    finally:
        del encoder.position_table


def onnx_of(
    graph: Graph, encoder: VisionTransformer, size: tuple[int, int], about: Mapping[str, Any]
) -> tuple[bytes, bool]:
    """Returns the ONNX file of a graph whose answers are those of its module, and whether there were any to compare.

    Args:
        graph: in evaluation, on the CPU.
        encoder: in it.
        size: `(H, W)` of the images.
        about: what the file says of itself, as JSON in its metadata.

    Raises:
        ValueError: a library is missing or too old, or the file's answers are others.
    """
    check_torch("onnx")
    check_onnx()
    images = torch.rand(2 if graph.any_batch else 1, 3, *size, generator=torch.Generator().manual_seed(0))
    with quiet(), torch.no_grad(), of_one_size(encoder):
        graph.module(images)  # what is kept of it is a constant of the graph
        model = (
            _traced(graph, images) if graph.varies else onnx_model(graph.module, images, graph.outputs, graph.any_batch)
        )
        file: bytes = with_metadata(model, {ABOUT: json.dumps(about, sort_keys=True)}).SerializeToString()
    return file, _check(graph, file, size)


def _traced(graph: Graph, images: Tensor) -> Any:
    """Returns the model of a detector: how many boxes there are is known only when it runs, so it is traced."""
    import onnx

    varying = {name: {0: "found"} for name in graph.outputs}
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        torch.onnx.export(
            graph.module, (images,), file.name, dynamo=False, opset_version=OPSET, input_names=[INPUT],
            output_names=list(graph.outputs), dynamic_axes=varying,
        )  # fmt: skip
        return onnx.load(file.name)


def _check(graph: Graph, file: bytes, size: tuple[int, int]) -> bool:
    """Runs the file on images of blurred noise; returns whether anything was found in one, as a detector may not.

    Raises:
        ValueError: it does not answer as the module does.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    generator, found = torch.Generator().manual_seed(1), False
    for _ in range(CHECKS):
        noise = torch.rand(1, 3, cells(size[0], 16), cells(size[1], 16), generator=generator)
        image = functional.interpolate(noise, size=size, mode="bilinear")
        with torch.no_grad():
            expected = graph.module(image)
        answers = session.run(list(graph.outputs), {INPUT: image.numpy()})
        for name, right, given in zip(graph.outputs, expected, map(torch.from_numpy, answers), strict=True):
            if not is_same(right, given):
                raise UserError(
                    f"the graph's {name} are not those of the model: tell us the versions of torch, onnx and "
                    "onnxruntime, and use tools.predictor meanwhile"
                )
        found = found or any(right.numel() for right in expected)
    return found


def is_same(right: Tensor, given: Tensor) -> bool:
    """Returns whether two answers are one but for rounding; one pixel in a thousand may change its label."""
    if right.shape != given.shape:
        return False
    if not right.is_floating_point():
        return right.numel() == 0 or (right != given).double().mean().item() <= TOLERANCE
    return bool(right.numel() == 0 or (right - given).abs().max() <= TOLERANCE * right.abs().max().clamp(min=1e-6))


def about_of(
    command: str, class_names: Sequence[str], size: tuple[int, int], prepared: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what a graph says of itself: the tool, the classes by label, and what it takes.

    Args:
        prepared: how images become what it takes, as of `Task.prepared`.
    """
    return {
        "command": command,
        "class_names": list(class_names),
        "input": {"size": list(size), "channels": "RGB", "range": [0, 1], **prepared},
    }
