"""An encoder as a graph that runs without this project: torch.export's or ONNX's, run from what is written."""

import importlib.metadata
import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from splitmask_backbones.convert.hf_models import processor_for
from splitmask_backbones.convert.libraries import need
from splitmask_backbones.convert.references import Forward
from splitmask_backbones.errors import UserError
from splitmask_backbones.vit import VisionTransformer

INPUT, OUTPUT = "images", "tokens"
"""What a graph takes, float32 `(B, in_chans, H, W)`, and gives, `(B, num_prefix_tokens + N, C)`: as `forward`."""
OLDEST_TORCH = (2, 6)
"""From which on a graph with any batch size is made without further libraries than named in the extra."""
MAX_ONNX_BYTES = 2**31 - 1
"""Of one protobuf message; larger models keep their weights in further files, which one DST is not."""
ABOUT = "splitmask_backbones.json"
"""File in a `.pt2`, key of the metadata of ONNX: encoder arguments and the normalisation of pixels, as JSON."""


def graph_of(encoder: VisionTransformer, target: str, size: tuple[int, int], pixel_stats: Any) -> tuple[bytes, Forward]:
    """Returns the file of a graph for images of one size, in batches of any, and a call that runs that file.

    Args:
        encoder: in evaluation mode.
        target: "onnx" or "exported".
        size: height and width; positions are resized by the encoder's own rule.
        pixel_stats: "image_mean" and "image_std" of the weights' own training; ImageNet's by default.

    Raises:
        ValueError: a library is missing or too old, or the encoder cannot be traced.
    """
    check_torch(target)
    about = {"config": encoder.config, "input": {"size": list(size), **_normalisation(encoder, pixel_stats)}}
    images = torch.zeros(2, encoder.config["in_chans"], *size)  # one image would make a graph for one
    maker = _onnx if target == "onnx" else _exported
    with quiet(), torch.no_grad():
        return maker(encoder, images, json.dumps(about, sort_keys=True))


def check_torch(target: str) -> None:
    """Raises ValueError where torch is too old to make a graph."""
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST_TORCH:
        needed = ".".join(map(str, OLDEST_TORCH))
        raise UserError(f"--to {target} needs torch {needed} or newer, this is {torch.__version__}: update torch")


def _normalisation(encoder: VisionTransformer, pixel_stats: Any) -> dict[str, Any]:
    processor = processor_for(encoder.config, pixel_stats) or {}
    return {name: processor[name] for name in ("image_mean", "image_std") if name in processor}


def check_onnx() -> None:
    """Raises ValueError where a library that writes or runs ONNX is missing."""
    for library in ("onnx", "onnxscript", "onnxruntime"):
        need(library, "export")


def onnx_model(module: nn.Module, images: Tensor, outputs: Sequence[str], any_batch: bool = True) -> Any:
    """Returns the ONNX model of a module, exported by `torch.export`.

    Args:
        module: in evaluation; takes `images` and returns a tensor for each output.
        images: float32 `(B, C, H, W)`, at least two where `any_batch`: one would make a graph for one.
        outputs: their names.
        any_batch: whether the number of images stays open.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    # The fused kernels leave strides behind that a later reshape of the trace does not take.
    with sdpa_kernel(SDPBackend.MATH):
        program: Any = torch.onnx.export(
            module, (images,), dynamo=True, input_names=[INPUT], output_names=list(outputs),
            dynamic_shapes=_dynamic() if any_batch else None, verbose=False,
        )  # fmt: skip
    return program.model_proto


def _dynamic() -> tuple[dict[int, Any]]:
    return ({0: torch.export.Dim("batch", min=1)},)


def _exported(encoder: VisionTransformer, images: Tensor, about: str) -> tuple[bytes, Forward]:
    program = torch.export.export(encoder, (images,), dynamic_shapes=_dynamic(), strict=False)
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={ABOUT: about})
    return file.getvalue(), torch.export.load(io.BytesIO(file.getvalue())).module()


def _onnx(encoder: VisionTransformer, images: Tensor, about: str) -> tuple[bytes, Forward]:
    check_onnx()
    import onnxruntime

    model = onnx_model(encoder, images, [OUTPUT])
    if model.ByteSize() > MAX_ONNX_BYTES:
        raise UserError(
            f"--to onnx: {model.ByteSize() / 1e9:.1f} GB are more than one ONNX file holds, "
            f"{MAX_ONNX_BYTES / 1e9:.1f} GB: use --to exported"
        )
    file = with_metadata(model, {ABOUT: about}).SerializeToString()
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return file, lambda batch: torch.from_numpy(session.run([OUTPUT], {INPUT: batch.numpy()})[0])


def with_metadata(model: Any, texts: Mapping[str, str]) -> Any:
    """Returns an ONNX model that says who made it, and what is given by key."""
    for key, text in texts.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, text
    model.producer_name, model.producer_version = "splitmask_backbones", _own_version()
    return model


def _own_version() -> str:
    try:
        return importlib.metadata.version("splitmask-backbones")
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return ""


def batches_of_one_and_more(forward: Forward) -> Forward:
    """Returns a call that runs the first image alone and the others together: a graph for one batch size fails."""
    return lambda images: torch.cat([forward(images[:1]), forward(images)[1:]])


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps torch's own remarks on tracing to itself: they name no fault of the user's."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
