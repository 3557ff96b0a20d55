"""What `tools/embed.py` does: from images to a vector each, and a picture of which are near each other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pretrain.data.sources import open_source, printable
from pretrain.training.distributed import machine_record, make_fabric
from pretrain.training.run_folder import RunFolder
from pretrain.training.signals import StopSignals
from splitmask_backbones import load_encoder
from splitmask_backbones.errors import UserError
from splitmask_backbones.files import write_atomically
from splitmask_backbones.registry import encoder_name
from splitmask_backbones.vit import VisionTransformer
from tools import cli
from tools.embedding.neighbours import save_neighbours
from tools.finetuning.model_files import weights_digest
from tools.frozen.center_crop import CenterCrop
from tools.frozen.features import extract
from tools.pretraining.images import readable_images, with_range

EMBEDDINGS, NAMES, PICTURE = "embeddings.npy", "images.txt", "neighbours.jpg"
PARTIAL = "partial"
"""Folder of the vectors that are done, until all are."""


@dataclass(frozen=True)
class EmbedOptions:
    """What the command line says; each as `tools/embed.py --help` describes it."""

    data: str
    images: str | None
    include: list[str] | None
    exclude: list[str] | None
    range: tuple[float, float] | None
    weights: Path
    output: Path
    resume: bool
    img_size: int | None
    test_crop: float
    pool: str
    precision: str
    device: str
    workers: int
    max_bad_fraction: float


def embed(options: EmbedOptions) -> None:
    """Describes all images, and writes embeddings.npy last."""
    cli.start_log()
    digest = weights_digest(options.weights)
    source = open_source(options.data, options.images, options.include or [], options.exclude or [])
    with StopSignals(), RunFolder.open(options.output, resume=options.resume, artefact=EMBEDDINGS) as folder:
        if folder.previous is not None and folder.previous.get("command") != "embed":
            raise UserError(f"--resume: {folder.path} holds another run than one of tools/embed.py: choose its folder")
        encoder = load_encoder(options.weights, **({} if options.img_size is None else {"img_size": options.img_size}))
        vectors_of = pooled(encoder.eval().requires_grad_(False), options.pool)
        size = options.img_size or min(encoder.img_size)
        fabric = make_fabric(options.precision, options.device)
        source = with_range(source, options.range, folder.previous, fabric)
        images, data = readable_images(source, folder, fabric, options.workers, options.max_bad_fraction)
        chosen = {name: getattr(options, name) for name in ("test_crop", "pool", "precision")}
        folder.write_config(
            {
                "command": "embed",
                "--weights": digest,
                "values": {"img_size": size, **chosen},
                "encoder": encoder.config | {"name": encoder_name(encoder.config)},
                "data": data,
                "free": {
                    "data": options.data,
                    "images": options.images,
                    "weights": str(options.weights),
                    "workers": options.workers,
                    **machine_record(fabric),
                },
            }
        )
        if folder.finished:
            cli.say(folder, f"{folder.path / EMBEDDINGS} is finished: nothing to do")
            return
        title = encoder_name(encoder.config) or "the encoder"
        cli.say(folder, f"{len(images)} images, {title} at {size} px, {options.pool} token, {fabric.device}")
        folder.start()  # from here on --resume has something to go on with
        fabric.to_device(encoder)
        part = folder.path / PARTIAL / EMBEDDINGS
        crop, shape = CenterCrop(size, options.test_crop), (encoder.embed_dim,)
        vectors = extract(fabric, vectors_of, shape, images, crop, part, options.workers, "embedding")
        write_atomically(folder.path / NAMES, "".join(f"{printable(name)}\n" for name in images.names).encode())
        save_neighbours(vectors, images, folder.path / PICTURE)
        os.replace(part, folder.path / EMBEDDINGS)
        shutil.rmtree(folder.path / PARTIAL, ignore_errors=True)
        rows, columns = vectors.shape
        beside = [name for name in (NAMES, PICTURE) if (folder.path / name).exists()]  # one image has no neighbours
        cli.say(folder, f"wrote {folder.path / EMBEDDINGS}, {rows} x {columns}; {' and '.join(beside)} beside it")


def pooled(encoder: VisionTransformer, pool: str) -> Callable[[Tensor], Tensor]:
    """Returns a call from normalised images `(B, 3, H, W)` to one vector each, `(B, C)`, after the final norm.

    Args:
        encoder: in evaluation mode.
        pool: "mean" of the patch tokens, or the "class" token.

    Raises:
        ValueError: there is no class token.
    """
    if pool == "class" and encoder.cls_token is None:
        raise UserError("--pool class: the encoder has no class token: use --pool mean")

    def vectors_of(images: Tensor) -> Tensor:
        tokens = encoder(images).float()
        return tokens[:, 0] if pool == "class" else tokens[:, encoder.num_prefix_tokens :].mean(dim=1)

    return vectors_of
