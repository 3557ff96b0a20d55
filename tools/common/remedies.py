"""One line of cause and remedy for whatever reaches the top of a tool."""

import errno

from pretrain.training.shortage import shortage_of
from splitmask_backbones.errors import UserError

_OF_THE_SYSTEM = {
    errno.EDQUOT: "the disk quota is used up: free some room or choose another --output, then --resume",
    errno.EROFS: "the file system is read-only: choose another --output",
    errno.EACCES: "no permission: change the permissions or choose another path",
    errno.EPERM: "no permission: change the permissions or choose another path",
    errno.ENOENT: "it does not exist: check the path",
    errno.ENOTDIR: "a part of the path is a file: choose another path",
    errno.EISDIR: "it is a folder: name a file",
    errno.EEXIST: "it exists already: choose another path",
    errno.EFBIG: "the file is larger than allowed here: raise the limit or choose another --output",
    errno.EIO: "the disk or the network that it lies on has failed: check it, then --resume",
    errno.ESTALE: "it was moved or replaced on the server while it was in use: check the path, then --resume",
    errno.ENOTCONN: "the network folder is not there any more: mount it again, then --resume",
    errno.EPIPE: "what reads the output has gone: send the output to a file, then --resume",
}


def describe(error: BaseException) -> str:
    """Returns the one-line cause and remedy for any exception that reaches the top of a tool."""
    if isinstance(error, UserError):
        return str(error)
    short = shortage_of(error)
    if short is not None:
        return short
    if isinstance(error, OSError) and error.errno is not None:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{_OF_THE_SYSTEM.get(error.errno) or error.strerror}"
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        return "a path has letters that this process, started with an ASCII locale, cannot read: set PYTHONUTF8=1"
    if isinstance(error, ModuleNotFoundError):
        return (
            f"the package '{error.name}' is not installed: make venv installs all, an extra such as "
            "splitmask-backbones[pretrain] what one tool needs"
        )
    text = " ".join(str(error).split())
    if isinstance(error, RuntimeError) and "does not have a deterministic implementation" in text:
        return (
            f"--deterministic: {text.split()[0]} has no algorithm that makes the same bytes each time: omit the option "
            "or use --device cpu"
        )
    return f"{type(error).__name__}: {text[:500]}; run again with --debug for the traceback"
