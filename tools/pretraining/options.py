"""What the command line of tools/pretrain.py says beside the values of the recipe. Free of torch."""

import difflib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pretrain.own_recipe import OWN
from pretrain.recipes import Recipe
from pretrain.training.options import AUTO, OFF, RunOptions
from splitmask_backbones.errors import UserError
from tools import monitoring

KEPT = ("init", "tokenizer_weights", "include", "exclude", *monitoring.OPTIONS)
"""Options beside the recipe's that a resume keeps where they are omitted."""
FREE = ("data", "cache", "workers", "save_every", "log_every", "max_bad_fraction", *KEPT)
"""Options that a resume may change."""


@dataclass(frozen=True)
class PretrainOptions(monitoring.MonitorOptions, RunOptions):
    """What the command line says beside the values of the recipe.

    Attributes:
        data: image folders, text lists, COCO jsons, or ADE20K roots.
        images: image folder of a COCO json.
        include: globs of the images to take; None for all.
        exclude: globs of images to leave out.
        range: values of images with more than 8 bits that become 0 and 255; None for those of the data.
        tokenizer_weights: safetensors of DALL-E's encoder.
        init: encoder file or folder to begin with; None for random initialisation.
        cache: where decoded images are kept: a folder, or AUTO or OFF.
        plan: whether the run is only planned.
        hours: that the training may take; None for no bound of the user's.
    """

    data: list[str]
    images: str | None
    include: list[str] | None
    exclude: list[str] | None
    range: tuple[float, float] | None
    tokenizer_weights: str | None
    init: str | None
    cache: str
    plan: bool = False
    hours: float | None = None

    def settled(self, recipe: Recipe, previous: dict[str, Any] | None) -> "PretrainOptions":
        """Returns the options of a run: where a resume omits those of KEPT, --hours or --deterministic, they stay.

        Args:
            recipe: all values of the run.
            previous: config.json of a run that is resumed.

        Raises:
            ValueError: they contradict each other or the recipe.
        """
        record = previous or {}
        before = record.get("free", {})
        self.check_monitoring(before.get("monitor_every"))
        omitted = [name for name in KEPT if getattr(self, name) is None]
        options = replace(self, **{name: before.get(name) for name in omitted})
        if options.hours is None:
            options = replace(options, hours=record.get("--hours"))
        recipe.check_tokenizer_weights(options.tokenizer_weights)
        options.check_cache(recipe.reduced_jpeg)
        return replace(options, deterministic=options.is_deterministic(previous))

    def check_plan(self, recipe: str, given: dict[str, Any]) -> None:
        """Raises ValueError for options that contradict each other; `given` are the values given beside a recipe."""
        for name in ("resume", "rehearse"):
            if self.plan and getattr(self, name):
                raise UserError(f"--plan and --{name} exclude each other: a plan is of a run that begins; omit one")
        if self.rehearse and self.hours is not None and recipe != OWN:
            raise UserError(
                f"--hours has no effect with --rehearse, which says how long all steps of --recipe {recipe} take: "
                "omit one, or use --plan"
            )
        for name in ("position_init", "rescale_residuals"):
            if self.init is not None and given.get(name) not in (None, "normal", False):
                option = f"--{name.replace('_', '-')} {given[name]}"
                raise UserError(f"{option} has no effect with --init, whose weights are the beginning: omit one")
        for name in ("steps", "epochs"):
            if self.hours is not None and given.get(name) is not None:
                raise UserError(f"--hours and --{name} exclude each other: give one of them")

    def check_output(self) -> None:
        """Raises ValueError where the run would write, and draw, among the images that it reads."""
        output = self.output.parent if self.rehearse else self.output
        if any(Path(path).resolve() == output.resolve() for path in self.data):
            raise UserError(
                f"--output {output} is a folder of --data, and what the run draws would be among its images: "
                "choose a folder of its own, which may lie in it"
            )

    def check_cache_word(self) -> None:
        """Raises ValueError for a misspelt `auto` or `off`, which would be a folder here."""
        alike = difflib.get_close_matches(self.cache, (AUTO, OFF), n=1, cutoff=0.65)
        if alike and self.cache not in (AUTO, OFF) and not Path(self.cache).exists():
            raise UserError(
                f"--cache {self.cache}: did you mean {alike[0]}? A new folder of that name is ./{self.cache}"
            )

    def check_cache(self, reduced_jpeg: bool) -> None:
        """Raises ValueError where images are to be kept in full and to be decoded in part."""
        if reduced_jpeg and self.cache != OFF:
            raise UserError(
                f"--cache {self.cache} keeps whole images, and --reduced-jpeg true decodes them anew at the size that "
                "each crop needs: omit one of the two"
            )
