"""Where the limits of this process's control group lie, and those of the groups around it. Free of torch."""

from contextlib import suppress
from pathlib import Path

MEMBERSHIP = Path("/proc/self/cgroup")
"""Lines of number:controllers:path, the controllers "" in version 2."""


def group_folders(mount: Path, controller: str = "", membership: Path | None = None) -> list[Path]:
    """Returns the folders of this process's group and of its parents: each may have a limit, and all of them hold.

    In a container the mount itself is its own group, and the path that the host knows leads nowhere.

    Args:
        mount: where control groups of version 2, or those of a controller of version 1, are mounted.
        controller: "memory" or "cpu" of version 1; "" for version 2.
        membership: what says in which group this process is, by default `MEMBERSHIP`.
    """
    own = ""
    with suppress(OSError, ValueError):
        for line in (membership or MEMBERSHIP).read_text(encoding="utf-8").splitlines():
            _, names, path = line.split(":", 2)
            if controller in names.split(","):
                own = path.strip("/")
    parts = [part for part in own.split("/") if part not in ("", "..")]
    return [mount.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]
