"""A codebook: patch -> index of the nearest of V unit vectors (SplitMask Sec. 3), no training on other data."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.recipes import PATCH_NORMS
from pretrain.training.cores import threads_alone
from splitmask_backbones.errors import UserError, check_choice
from splitmask_backbones.imagenet_stats import IMAGENET_MEAN, IMAGENET_STD
from splitmask_backbones.vit import patchify

logger = logging.getLogger(__name__)

_IMAGENET = IMAGENET_MEAN, IMAGENET_STD
_AT_ONCE = 1 << 16  # patches
_FLAT = 1e-5
"""What rounding may leave of a patch in float32, over its norm; one grey level in one pixel is 4e-3 of [0, 1]."""


def normalize_patches(patches: Tensor, kind: str) -> Tensor:
    """Returns patches with their mean removed or not: `(..., 3 * p * p)`, colour first.

    Args:
        patches: of ImageNet-normalised pixels.
        kind: "none"; "mean" removes the patch's mean (brightness); "pixel_mean" as well, but of pixels in [0, 1];
            "channel_mean" the mean of each channel (brightness and colour). With "mean" gray images keep an offset
            between the channels, each of which has a mean and a std of its own in ImageNet's normalisation: it gives
            all flat gray patches one token id (58 % of nuclei), where "pixel_mean" leaves what varies within them.
    """
    check_choice("patch_norm", kind, PATCH_NORMS)
    if kind == "none":
        return patches
    if kind == "pixel_mean":
        # Filled and not copied: the host's numbers cannot be copied while a CUDA graph is recorded.
        size = patches.shape[-1] // 3
        mean, std = (torch.cat([patches.new_full((size,), value) for value in values]) for values in _IMAGENET)
        patches, kind = patches * std + mean, "mean"
    if kind == "mean":
        rest = patches - patches.mean(dim=-1, keepdim=True)
    else:
        by_channel = patches.unflatten(-1, (3, -1))
        rest = (by_channel - by_channel.mean(dim=-1, keepdim=True)).flatten(-2)
    # What rounding leaves of a flat patch would become a direction.
    flat = rest.norm(dim=-1, keepdim=True) <= _FLAT * (1 + patches.norm(dim=-1, keepdim=True))
    return rest.masked_fill(flat, 0.0)


class ImageTokenizer(Protocol):
    """What gives the patches of an image their token ids: `Tokenizer`, or DALL-E's in dalle.py."""

    @property
    def vocab_size(self) -> int:
        """V."""

    def tokens_of(self, images: Tensor, patch_size: int) -> Tensor:
        """Returns int64 `(B, N)` in `[0, V)`, patches row by row, of ImageNet-normalised images `(B, 3, H, W)`."""


class Tokenizer(nn.Module):
    """Token id of a patch = `argmax_i x . e_i` over the unit vectors `e_i` of a codebook.

    Args:
        codebook: `(V, D)`, made unit vectors here. Checkpoints and tokenizer.safetensors call it `words`.
        patch_norm: how patches are normalised first; one of PATCH_NORMS.
    """

    words: Tensor

    def __init__(self, codebook: Tensor, patch_norm: str = "none") -> None:
        super().__init__()
        check_choice("patch_norm", patch_norm, PATCH_NORMS)
        self.register_buffer("words", F.normalize(codebook.float(), dim=1))
        self.patch_norm = patch_norm

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.words.shape[0]

    def tokens_of(self, images: Tensor, patch_size: int) -> Tensor:
        """Returns int64 `(B, N)` in `[0, V)`, patches row by row, of ImageNet-normalised images `(B, 3, H, W)`."""
        return self(patchify(images, patch_size))

    @torch.no_grad()
    def forward(self, patches: Tensor) -> Tensor:
        """Returns int64 `(...)` in `[0, V)` for patches `(..., D)` of ImageNet-normalised pixels; in chunks."""
        flat = normalize_patches(patches, self.patch_norm).flatten(0, -2)
        with torch.autocast(flat.device.type, enabled=False):  # ties and near-ties must not depend on the precision
            token_ids = [nearest(rows.float(), self.words) for rows in flat.split(4096)]
        return torch.cat(token_ids).reshape(patches.shape[:-1])


def nearest(rows: Tensor, words: Tensor) -> Tensor:
    """Returns `argmax_i x . e_i` for float32 rows `(R, D)` and unit vectors `(V, D)`: int64 `(R,)`.

    On a GPU the product is made in TF32 (in float32 it takes 40 of the 179 ms of a ViT-S step at batch 512), and the
    best two are compared in float32. By TF32 alone 0.04 % of the token ids of COCO crops would be others.
    """
    if not rows.is_cuda:
        return (rows @ words.T).argmax(dim=1)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        scores = rows @ words.T
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return better_of_two(scores, rows, words)


def better_of_two(scores: Tensor, rows: Tensor, words: Tensor) -> Tensor:
    """Returns the index of the larger dot product, in float32, of the two largest of rounded scores: int64 `(R,)`.

    Args:
        scores: about `rows @ words.T`, `(R, V)`; changed in place.
        rows: float32 `(R, D)`.
        words: float32 `(V, D)`.
    """
    first = scores.argmax(dim=1, keepdim=True)
    second = scores.scatter_(1, first, -torch.inf).argmax(dim=1, keepdim=True)
    # The lower index first: of equals the first counts, as in argmax.
    both = torch.cat([first, second], dim=1).sort(dim=1).values
    exact = (rows[:, None] * words[both]).sum(dim=2)
    return both.gather(1, exact.argmax(dim=1, keepdim=True)).squeeze(1)


def random_projection(vocab_size: int, patch_dim: int, seed: int) -> Tensor:
    """Returns a codebook `(V, D)` with components uniform in (-1, 1); the sign is ours, the paper says "uniform".

    Components uniform in (0, 1) would all point the same way, and the token id would be little more than brightness.
    """
    return torch.from_numpy(np.random.default_rng([seed, 0x70]).uniform(-1.0, 1.0, (vocab_size, patch_dim))).float()


PatchSample = Callable[[int, int], Tensor]
"""`sample(num_images, patches_per_image) -> (num_images * patches_per_image, D)`, each row another patch."""


def random_patches(vocab_size: int, num_images: int, patches_per_image: int, sample: PatchSample) -> Tensor:
    """Returns V patches of the data as a codebook, each of another image as far as there are that many.

    Raises:
        ValueError: fewer patches than V, both named.
    """
    _check_enough("random_patches", vocab_size, num_images, patches_per_image)
    per_image, images = -(-vocab_size // num_images), min(num_images, vocab_size)
    drawn = sample(images, per_image)
    # A patch of every image before a second one of any.
    kept = torch.arange(len(drawn)).view(images, per_image).T.flatten()[:vocab_size]
    return drawn[kept.sort().values]


def kmeans_codebook(
    vocab_size: int,
    num_images: int,
    patches_per_image: int,
    sample: PatchSample,
    max_patches: int,
    iterations: int,
    seed: int,
    patch_norm: str,
) -> Tensor:
    """Returns V centroids of up to `max_patches` patches by spherical k-means (faiss); logs each iteration.

    Spherical, because token ids are an argmax of dot products with unit vectors. Patches are normalised as the
    tokenizer does.

    Args:
        vocab_size: V.
        num_images: images of the data.
        patches_per_image: patches that one crop has.
        sample: draws patches of its own, in place of which they are normalised.
        max_patches: 3 million in the paper.
        iterations: Lloyd iterations.
        seed: of the initial centroids.
        patch_norm: of the tokenizer.

    Raises:
        ValueError: fewer patches than V, both named.
    """
    import faiss

    _check_enough("kmeans", vocab_size, num_images, patches_per_image)
    per_image = min(patches_per_image, max(1, -(-max(max_patches, vocab_size) // num_images)))
    images = min(num_images, -(-max(max_patches, vocab_size) // per_image))
    drawn = sample(images, per_image)
    for part in drawn.split(_AT_ONCE):  # in place: three million patches are 9 GB
        part.copy_(F.normalize(normalize_patches(part, patch_norm), dim=1))
    patches = drawn.numpy()
    # Flat patches lose everything with their mean: as zero vectors they would only make empty clusters.
    there = np.concatenate([np.linalg.norm(part.numpy(), axis=1) > 0.5 for part in drawn.split(_AT_ONCE)])
    if not there.all():
        patches = patches[there]
    if len(patches) < vocab_size:
        raise UserError(
            f"--tokenizer kmeans needs --vocab-size patches that are not flat: {len(patches)} patches for a codebook "
            f"of {vocab_size}: use a smaller --vocab-size or more images"
        )
    centroids: np.ndarray | None = None
    for iteration in range(iterations):  # one at a time, to show progress
        kmeans = faiss.Kmeans(
            patches.shape[1],
            vocab_size,
            niter=1,
            seed=seed % 2**31,  # a C int
            spherical=True,
            min_points_per_centroid=1,
            max_points_per_centroid=2**31 - 1,
        )
        with _all_cores():
            kmeans.train(patches, init_centroids=centroids)
        centroids = np.array(kmeans.centroids)
        cosine = float(np.asarray(kmeans.obj)[-1]) / len(patches)
        logger.info("k-means iteration %d/%d: mean cosine %.4f", iteration + 1, iterations, cosine)
    return torch.as_tensor(centroids)


@contextlib.contextmanager
def _all_cores() -> Iterator[None]:
    """Lets faiss use what the other processes of the machine leave idle: torchrun gives each a single thread."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads_alone(before))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _check_enough(tokenizer: str, vocab_size: int, num_images: int, patches_per_image: int) -> None:
    available = num_images * patches_per_image
    if available < vocab_size:
        raise UserError(
            f"--tokenizer {tokenizer} needs --vocab-size patches: {num_images} images x {patches_per_image} patches = "
            f"{available} patches for a codebook of {vocab_size}: use --vocab-size {available} or less, more images, "
            "or --tokenizer random_projection"
        )


@dataclass(frozen=True)
class TokenStatistics:
    """How a tokenizer uses its codebook on the data (PAPER section 2 shows why to look); tokenizer.json has the names.

    Attributes:
        num_patches: patches looked at.
        words_used: different token ids among them.
        entropy_bits: of their distribution; `log2(V)` at most.
        top_word_share: share of the most frequent one, 0-1.
    """

    num_patches: int
    words_used: int
    entropy_bits: float
    top_word_share: float


def token_statistics(token_ids: Tensor, vocab_size: int) -> TokenStatistics:
    """Returns the statistics of int64 token ids of any shape."""
    counts = torch.bincount(token_ids.flatten(), minlength=vocab_size).double()
    shares = counts[counts > 0] / counts.sum()
    return TokenStatistics(
        num_patches=int(counts.sum()),
        words_used=len(shares),
        entropy_bits=float(-(shares * shares.log2()).sum()) + 0.0,
        top_word_share=float(shares.max()),
    )
