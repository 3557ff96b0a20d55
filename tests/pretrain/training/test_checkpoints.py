"""Checkpoints: exact, self-verifying, at least two, and the one before a damaged one is used."""

import logging

import pytest
import torch
from torch import nn

from pretrain.training.checkpoints import checkpoint_files, newest_checkpoint, read_checkpoint, restore, save_checkpoint


def build(width=4):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def train(model, optimizer, steps):
    for step in range(steps):
        torch.manual_seed(100 + step)
        model(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_restored_training_continues_to_the_same_bytes(tmp_path):
    model, optimizer = build()
    train(model, optimizer, 3)
    save_checkpoint(tmp_path, 3, model, optimizer)
    train(model, optimizer, 3)
    again, again_optimizer = build()
    state, tensors = newest_checkpoint(tmp_path)
    restore(state, tensors, again, again_optimizer)
    assert state["step"] == 3
    train(again, again_optimizer, 3)
    for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_newest_two_are_kept(tmp_path):
    model, optimizer = build()
    for step in (1, 2, 30):
        save_checkpoint(tmp_path, step, model, optimizer)
    assert [p.name for p in checkpoint_files(tmp_path)] == ["step_00000002.safetensors", "step_00000030.safetensors"]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "header"])
def test_damaged_newest_is_named_and_the_one_before_used(tmp_path, damage, caplog):
    model, optimizer = build()
    train(model, optimizer, 1)
    for step in (1, 2):
        save_checkpoint(tmp_path, step, model, optimizer)
    newest = tmp_path / "step_00000002.safetensors"
    content = bytearray(newest.read_bytes())
    if damage == "truncate":
        content = content[:-10]
    elif damage == "flip":
        content[-20] ^= 1
    elif damage == "empty":
        content = bytearray()
    else:
        content[20] ^= 1
    newest.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        state, _ = newest_checkpoint(tmp_path)
    assert state["step"] == 1
    assert "step_00000002" in caplog.text
    (tmp_path / "step_00000001.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="no checkpoint .* can be read"):
        newest_checkpoint(tmp_path)


def test_damaged_newer_files_do_not_count(tmp_path):
    """After a resume past a damaged file, two good ones are kept all the same."""
    model, optimizer = build()
    (tmp_path / "step_00000009.safetensors").write_bytes(b"junk")
    for step in (4, 5, 6):
        save_checkpoint(tmp_path, step, model, optimizer)
    assert [read_checkpoint(path)[0]["step"] for path in checkpoint_files(tmp_path)] == [5, 6]


def test_no_checkpoint_yet(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "missing") is None


def test_checkpoint_of_another_model(tmp_path):
    path = save_checkpoint(tmp_path, 1, *build())
    with pytest.raises(ValueError, match="another model"):
        restore(*read_checkpoint(path), *build(5))


def test_failed_write_keeps_the_old_one(tmp_path, monkeypatch):
    model, optimizer = build()
    save_checkpoint(tmp_path, 1, model, optimizer)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, 2, model, optimizer)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001.safetensors"]
    assert newest_checkpoint(tmp_path)[0]["step"] == 1
