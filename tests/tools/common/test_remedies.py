"""tools/common/remedies.py: errors of the system come with the path and what to do about them."""

from __future__ import annotations

import errno

import pytest

from splitmask_backbones.errors import UserError
from tools.common.remedies import describe


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UserError("a  b"), "a  b"),
        (OSError(errno.EROFS, "?", "/data/x"), "/data/x: the file system is read-only: choose another --output"),
        (OSError(errno.ESTALE, "?", "/data/x"), "/data/x: it was moved or replaced on the server while it was in use"),
        (OSError(errno.ENOTCONN, "?", "/data/x"), "/data/x: the network folder is not there any more: mount it again"),
        (OSError(errno.EIO, "?", "/data/x"), "/data/x: the disk or the network that it lies on has failed"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "/data/x"), "/data/x: Invalid cross-device link"),
        (OSError(errno.ENOSPC, "?", "/data/x"), "/data/x: the disk is full"),
        (
            RuntimeError("some_backward_cuda does not have a deterministic implementation, but you set 'torch.use_"),
            "--deterministic: some_backward_cuda has no algorithm that makes the same bytes each time: omit",
        ),
        (KeyError("x"), "KeyError: 'x'; run again with --debug"),
    ],
)
def test_cause_and_remedy(error: Exception, text: str) -> None:
    assert describe(error).startswith(text)
    assert "\n" not in describe(error)


def test_a_path_read_under_an_ascii_locale() -> None:
    path = "\u00f6".encode().decode("ascii", "surrogateescape")
    with pytest.raises(UnicodeEncodeError) as found:
        path.encode()
    assert "PYTHONUTF8=1" in describe(found.value)
