"""Images kept out of training: told by their names, whatever lies beside them."""

import hashlib

import pytest

from pretrain.data.sources import open_source, split_holdout


def test_holdout_is_told_by_names(image_folder):
    images = open_source(image_folder)
    trained, kept = split_holdout(images, 0.4)
    assert sorted(trained.names + kept.names) == images.names
    expected = [n for n in images.names if int(hashlib.sha256(n.encode()).hexdigest()[:16], 16) / 2**64 < 0.4]
    assert kept.names == expected and kept.root == images.root
    fewer = images.subset(images.names[::2])
    assert set(split_holdout(fewer, 0.4)[1].names) == set(kept.names) & set(fewer.names)
    for share in (1e-9, 1.0):
        with pytest.raises(ValueError, match=r"--holdout .* the 12 images out of training"):
            split_holdout(images, share)
