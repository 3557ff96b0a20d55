"""The libraries that conversions are proved with: optional extras, asked for by name where they are missing."""

from importlib import import_module

from splitmask_backbones.errors import UserError


def need(library: str, extra: str = "convert") -> None:
    """Raises ValueError where a library that proves a conversion is missing."""
    try:
        import_module(library)
    except ImportError as error:
        raise UserError(
            f"the conversion is proved with {library}, which cannot be imported ({error}): install the extra '{extra}'"
        ) from None
