"""Any plain ViT in, any framework out; nothing is written before both models gave the same output."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from splitmask_backbones.checkpoints import read_encoder_file, save_encoder
from splitmask_backbones.convert.export import Export, export
from splitmask_backbones.convert.families import Source, read_source
from splitmask_backbones.convert.hf_models import processor_for
from splitmask_backbones.convert.names import GRAPHS, HUB_CARD, MODEL_CARD, TARGETS
from splitmask_backbones.convert.read import read_weights
from splitmask_backbones.convert.references import TOKENS, Forward, reference_of
from splitmask_backbones.errors import UserError, check_choice
from splitmask_backbones.files import replaced_at_once, sha256_of, write_atomically
from splitmask_backbones.load_report import LoadReport
from splitmask_backbones.vit import VisionTransformer

ANTIALIASED = {"timm": True, "detectron2": False, "mmseg": False, "hf": False}
"""Whether a target resizes positions with antialiasing."""
RELATIVE_TOLERANCE = 2e-5
"""Of the largest output, in float32: twelve blocks of another summation order stay below."""


@dataclass
class Conversion:
    """What was done.

    Attributes:
        family: what the source was read as.
        target: what was written.
        encoder: the encoder that both sides equal.
        report: what became of every key.
        differences: largest difference of outputs to the source's and to the target's own model; None where the file
            was incomplete and there was nothing to compare.
        tolerance: that both had to stay within.
        sha256: of the file that was read, in hexadecimal.
        remarks: where the outputs will not be the same although the weights are.
    """

    family: str
    target: str
    encoder: VisionTransformer
    report: LoadReport
    differences: dict[str, float | None]
    tolerance: float
    sha256: str
    remarks: list[str]


@contextmanager
def _plain_settings() -> Iterator[None]:
    """Proves in float32 on the CPU whatever the caller has set (autocast, another dtype or device), and sets it back.

    The caller's random numbers are left alone.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.autocast("cpu", enabled=False):
            with torch.device("cpu"):
                yield
    finally:
        torch.set_default_dtype(dtype)


@_plain_settings()
def convert(
    source: str | Path,
    destination: str | Path,
    from_: str = "auto",
    to: str = "splitmask",
    model: str | None = None,
    overrides: dict[str, Any] | None = None,
    step: int | None = None,
    overwrite: bool = False,
    allow_partial: bool = False,
    best: bool = False,
    img_size: int | tuple[int, int] | None = None,
) -> Conversion:
    """Converts weights, proves equal outputs on random images, and writes `destination`.

    Args:
        source: a file of any family, a Hugging Face folder, or a run folder of tools/.
        destination: `.safetensors` or `.pth`; a folder for "hf". Missing parent folders are made.
        from_: one of FAMILIES, or "auto".
        to: one of TARGETS.
        model: a name of `list_encoders()` that the source must fit.
        overrides: arguments of `VisionTransformer` that the file cannot tell.
        step: of a run folder's checkpoint.
        overwrite: replace an existing destination.
        allow_partial: go on where keys are missing or unexpected; then nothing is compared with the source.
        best: the best evaluated weights of a run folder.
        img_size: of the images that a graph ("onnx", "exported") takes, one side or height and width; by default the
            encoder's.

    Raises:
        ValueError: anything that would leave the destination other than the source; it is not written then.
    """
    check_choice("target", to, TARGETS, "--to")
    destination = Path(os.path.abspath(Path(destination).expanduser()))
    _check_destination(destination, to, overwrite)
    if img_size is not None and to not in GRAPHS:
        raise UserError(f"--img-size goes with --to {' and '.join(GRAPHS)}: files of weights fit images of any size")
    read = read_source(read_weights(source, step, best), from_, model, overrides or {})
    encoder = _build(read, allow_partial)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, encoder.config["in_chans"], *encoder.img_size, generator=generator)
    tolerance = RELATIVE_TOLERANCE * max(1.0, _output(encoder, TOKENS, images).abs().max().item())
    differences: dict[str, float | None] = {"source": None, "target": None}
    if read.report.complete:
        with _said_of(f"{read.path}: {read.family}'s own model does not take it"):
            forward, kind = reference_of(read)
            differences["source"] = _prove(f"{read.family}'s own model", forward, kind, encoder, images, tolerance)
    given = (img_size, img_size) if isinstance(img_size, int) else img_size
    size = encoder.img_size if given is None else (int(given[0]), int(given[-1]))
    if min(size) < 1:
        raise UserError(f"--img-size {img_size} is not a size: give one number or HEIGHT,WIDTH in pixels")
    if size != encoder.img_size:
        images = torch.randn(2, encoder.config["in_chans"], *size, generator=generator)
    theirs = f"the graph of --to {to}" if to in GRAPHS else f"{to}'s own model"
    with _said_of(f"{read.path}: {theirs} does not take it"):
        made = export(encoder, to, read.pyramid, size, read.pixel_stats)
        differences["target"] = _prove(theirs, made.forward, made.kind, made.encoder, images, tolerance)
    read.report.dropped |= made.dropped
    read.report.loaded = [key for key in read.report.loaded if key not in made.dropped]
    digest = sha256_of(read.path)  # which an --overwrite may replace
    entry = {"file": Path(source).name, "sha256": digest, "family": read.family}
    _write(destination, to, made, read, _lineage_of(read.path) if read.family == "splitmask" else [entry])
    return Conversion(read.family, to, encoder, read.report, differences, tolerance, digest, _remarks(made.encoder, to))


def _remarks(encoder: VisionTransformer, to: str) -> list[str]:
    antialiased = ANTIALIASED.get(to)
    if antialiased is None or encoder.positions == "none":
        return []
    sides = " x ".join(map(str, encoder.img_size))
    if encoder.positions != "learned":
        return [
            f"positions: computed for each size here, {to} resizes those of {sides}: other sizes give other outputs"
        ]
    if antialiased == (encoder.position_resize == "antialias"):
        return []
    how = "with" if antialiased else "without"
    return [f"positions: {to} resizes them {how} antialiasing, unlike here: images of other sizes than {sides} differ"]


@contextmanager
def _said_of(what: str) -> Iterator[None]:
    """Turns what other libraries raise at a model that is none into one sentence of ours."""
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{what} ({type(error).__name__}: {reason}): check --from, --model and --set") from error


HF_FILES = ("config.json", "model.safetensors", "preprocessor_config.json", HUB_CARD)
"""What --to hf writes into its folder."""


def _check_destination(destination: Path, to: str, overwrite: bool) -> None:
    if destination.exists() and not overwrite:
        raise UserError(f"{destination} exists already: choose another name, or give --overwrite")
    if to == "hf":
        if destination.is_file():
            raise UserError(f"{destination} is a file: --to hf writes a folder")
        others = [file.name for file in sorted(destination.glob("*")) if file.name not in HF_FILES]
        if others:
            more = ", ..." if len(others) > 3 else ""
            raise UserError(
                f"{destination} holds {', '.join(others[:3])}{more} beside the files of a Hugging Face model, and "
                "--overwrite would remove them: choose another folder"
            )
        return
    if destination.is_dir():
        raise UserError(f"{destination} is a folder: name a file")
    allowed = (".safetensors",) if to == "splitmask" else (".safetensors", ".pth")
    allowed = (GRAPHS[to],) if to in GRAPHS else allowed
    if destination.suffix not in allowed:
        raise UserError(f"{destination} must end in {' or '.join(allowed)} for --to {to}")


def _build(read: Source, allow_partial: bool) -> VisionTransformer:
    """Returns the encoder with the file's weights; fills in the report's missing and unexpected keys."""
    with _said_of(f"{read.report.path}: its arguments are not an encoder's"):
        try:
            encoder = VisionTransformer(**read.config).eval()
        except UserError as error:
            raise UserError(f"{read.report.path}: {error}") from None
    own = encoder.state_dict()
    report = read.report
    wrong = [name for name, value in read.state.items() if name in own and own[name].shape != value.shape]
    report.missing = [name for name in own if name not in read.state]
    report.unexpected = [*read.unexpected, *(name for name in read.state if name not in own)]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{report.path} does not fit: {name} has the shape {tuple(read.state[name].shape)}, expected "
            f"{tuple(own[name].shape)}: check --model and --set"
        )
    if not report.complete and not allow_partial:
        first = (report.missing + report.unexpected)[0]
        raise UserError(
            f"{report.path} is not accounted for: {report.gaps()}; the first is {first}: it is of another family, or "
            "use --allow-partial"
        )
    encoder.load_state_dict({name: value for name, value in read.state.items() if name in own}, strict=False)
    report.loaded = [name for name in own if name in read.state]
    return encoder


@torch.no_grad()
def _output(encoder: VisionTransformer, kind: str, images: Tensor) -> Tensor:
    if kind == TOKENS:
        return encoder(images)
    # MAP: the last block's output before the norm, whatever out_indices says.
    last = VisionTransformer(**{**encoder.config, "out_indices": None, "norm_maps": False})
    last.load_state_dict(encoder.state_dict())
    return last.eval().forward_maps(images)[-1]


@torch.no_grad()
def _prove(
    title: str, forward: Forward, kind: str, encoder: VisionTransformer, images: Tensor, tolerance: float
) -> float:
    expected, found = forward(images), _output(encoder, kind, images)
    if expected.shape != found.shape:
        raise UserError(f"{title} gives {tuple(expected.shape)}, the encoder {tuple(found.shape)}: nothing was written")
    difference = (expected - found).abs().max().item()
    if not difference <= tolerance:
        raise UserError(
            f"{title} and the encoder differ by {difference:.2g}, more than {tolerance:.2g}: nothing was written; "
            "check --from, --model and --set"
        )
    return difference


def _lineage_of(path: Path) -> list[dict[str, str]]:
    """Returns the lineage of an encoder file of this project, nothing of its other files."""
    with suppress(UserError):
        return read_encoder_file(path).lineage
    return []


def _write(destination: Path, to: str, made: Export, read: Source, lineage: list[dict[str, str]]) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    if to == "splitmask":
        gaps = "" if read.report.complete else f"converted with --allow-partial, {read.report.gaps()}"
        save_encoder(made.encoder, destination, read.pyramid, gaps or read.report.partial, lineage, read.pixel_stats)
        return
    if made.graph is not None:
        write_atomically(destination, made.graph)
        return
    state = {name: value.detach().cpu().clone().contiguous() for name, value in made.state.items()}
    with replaced_at_once(destination) as weights:
        if to == "hf":
            weights.mkdir()
            text = json.dumps(made.hf_config, indent=2, sort_keys=True, default=str)
            (weights / "config.json").write_text(text + "\n", encoding="utf-8")
            processor = processor_for(made.encoder.config, read.pixel_stats)
            if processor is not None:
                text = json.dumps(processor, indent=2, sort_keys=True)
                (weights / "preprocessor_config.json").write_text(text + "\n", encoding="utf-8")
            card = _card_for(destination, read)
            if card is not None:
                (weights / HUB_CARD).write_text(card, encoding="utf-8")
            weights /= "model.safetensors"
        if to != "hf" and destination.suffix == ".pth":
            content = BytesIO()  # torch would write the name of a path into the file, and hide that a disk is full
            torch.save({made.container: state} if made.container else state, content)
            weights.write_bytes(content.getbuffer())
        else:
            # Hugging Face's tools look for the "format".
            weights.write_bytes(save(state, metadata={"format": "pt"}))


def _card_for(destination: Path, read: Source) -> str | None:
    """Returns the card of a Hugging Face folder: what lies there already, else that beside the source, else None.

    The library that reads the folder is transformers, and the card says so.
    """
    there, beside = destination / HUB_CARD, Path(read.path).parent / MODEL_CARD
    if there.is_file():
        return there.read_text(encoding="utf-8")
    if not beside.is_file():
        return None
    text = beside.read_text(encoding="utf-8")
    return text.replace("\nlibrary_name: splitmask_backbones\n", "\nlibrary_name: transformers\n", 1)
