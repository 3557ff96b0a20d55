"""Imports yapf, which `import mmengine` needs, while other processes of a fresh machine write its cache.

yapf 0.43 renames its pickled grammar before it has flushed it: whoever starts a moment later, such as the other ranks
of a node, reads an empty file, and the import ends with EOFError.
"""

import pickle
import time

from splitmask_backbones.errors import UserError


def import_yapf(tries: int = 50, pause: float = 0.1) -> None:
    """Imports yapf, again if its cache is being written; does nothing where yapf is not installed.

    Args:
        tries: how often at most.
        pause: seconds between two of them.

    Raises:
        UserError: the cache stays unreadable.
    """
    for _ in range(tries):
        try:
            import yapf  # noqa: F401
        except ImportError:
            return
        except (EOFError, pickle.UnpicklingError):
            time.sleep(pause)
        else:
            return
    raise UserError("the cache of yapf, which mmengine imports, is damaged: delete its folder (on Linux ~/.cache/YAPF)")
