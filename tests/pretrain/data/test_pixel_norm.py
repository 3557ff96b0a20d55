"""From bytes to what an encoder reads, and back."""

import torch

from pretrain.data.pixel_norm import PixelNorm


def test_by_hand_and_back():
    norm = PixelNorm()
    image = torch.tensor([0, 128, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    found = norm(image)
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    torch.testing.assert_close(found.flatten(), torch.tensor(expected))
    torch.testing.assert_close(norm.undo(found), image / 255)
    assert norm.state_dict() == {}
