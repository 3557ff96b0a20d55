"""splitmask_backbones.convert.torch_files: what is no file of tensors is said in one sentence, and what it is."""

from __future__ import annotations

import io
import os
import pickle
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from splitmask_backbones.convert import torch_files
from splitmask_backbones.convert.read import read_weights
from splitmask_backbones.convert.torch_files import load_torch
from splitmask_backbones.errors import UserError

STATE = {"a": torch.arange(1000.0), "b": torch.ones(3, dtype=torch.int64)}


def saved(content: Any, **kwargs: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **kwargs)
    return buffer.getvalue()


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_torch(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"epoch,loss\n1,0.3\n", "is text ('epoch,loss"),
        (b"cos\nsystem\n(S'ls'\ntR.", 'is text ("cos'),  # a pickle of protocol 0, which torch never writes
        ("Gewichte für später".encode(), "is text"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n",
            "Git LFS pointer and not the file itself: run git",
        ),
        (b"\n<!DOCTYPE html><html>", "is a web page, probably of a failed download"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "begins with the bytes ff d8 ff e0"),
        (b"\x1f\x8b\x08\x00abc", "is compressed (gzip): unpack it first"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as Keras writes it"),
        (b"PK\x03\x04 and no more", "is damaged or cut off"),
        (b"\x80\x02]q\x00.", "is not a readable weights file"),
        (b"\x80\x04\x95", "is not a readable weights file"),
    ],
)
def test_what_is_no_weights_file(content, said, tmp_path):
    message = refusal(tmp_path / "a.pth", content)
    assert message.startswith(f"{tmp_path / 'a.pth'} ") and said in message and "\n" not in message
    assert "would run code" not in message


def test_a_pickle_that_runs_code_is_named_as_such(tmp_path):
    class Evil:
        def __reduce__(self) -> Any:
            return print, ("code was run",)

    message = refusal(tmp_path / "a.pth", saved({"model": STATE, "args": Evil()}))
    assert "would run code when it is read (print)" in message
    assert "would run code" in refusal(tmp_path / "b.pth", pickle.dumps(Evil(), protocol=2))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickled_arrays_of_a_model_zoo_are_read(protocol, tmp_path):
    state = {"model": {"backbone.net.a": np.arange(6.0, dtype=np.float32).reshape(2, 3)}, "__author__": "third party"}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(state, protocol=protocol))
    found = load_torch(tmp_path / "model.pkl")["model"]["backbone.net.a"]
    assert torch.equal(torch.as_tensor(found), torch.arange(6.0).reshape(2, 3))


def test_torchscript_is_named(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "a.pt")
    with pytest.raises(UserError, match="is a TorchScript program and no file of tensors: load it with torch.jit.load"):
        load_torch(tmp_path / "a.pt")


def test_other_archives_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", kernel=np.zeros(3))
    with pytest.raises(UserError, match=r"is a NumPy archive, as Google publishes ViTs: load it with timm"):
        load_torch(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("weights/dino.pth", b"abc")
    with pytest.raises(UserError, match=r"is a zip archive of other files \(weights/dino\.pth\): unpack it"):
        load_torch(tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("facebook/dinov2-small", "hf download facebook/dinov2-small --local-dir DIR"),
        ("https://example.org/a.pth", "download it first"),
        ("weights.pth", "does not exist: the folder .* is empty"),
    ],
)
def test_names_that_are_no_files(name, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=match):
        read_weights(name)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_child_does_not_wait_for_the_parents_thread(tmp_path):
    (tmp_path / "a.pth").write_bytes(saved(STATE))
    with torch_files._ONE_AT_A_TIME:
        child = os.fork()
        if child == 0:
            os._exit(0 if torch_files._ONE_AT_A_TIME.acquire(timeout=5) else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_a_flipped_bit_among_the_weights_is_found(tmp_path):
    """`torch.load` itself reads it without a word: the weight is another one."""
    content = bytearray(saved({"model": STATE}))
    place = bytes(content).find(STATE["a"].numpy().tobytes())
    assert place > 0
    content[place + 100] ^= 4
    loaded = torch.load(io.BytesIO(bytes(content)), weights_only=True)["model"]["a"]
    assert (loaded != STATE["a"]).sum() == 1
    message = refusal(tmp_path / "a.pth", bytes(content))
    assert "is damaged (the checksum of " in message and message.endswith("copy it again")


@pytest.mark.parametrize("kwargs", [{}, {"_use_new_zipfile_serialization": False}])
def test_good_files_are_read_whole(kwargs, tmp_path):
    (tmp_path / "a.pth").write_bytes(saved({"model": STATE, "epoch": 3}, **kwargs))
    content = load_torch(tmp_path / "a.pth")
    assert torch.equal(content["model"]["a"], STATE["a"]) and content["epoch"] == 3


def test_files_are_told_by_content_and_not_by_suffix(tmp_path):
    (tmp_path / "weights.bin").write_bytes(save(STATE, {"format": "pt"}))
    (tmp_path / "weights").write_bytes(saved(STATE))
    for name in ("weights.bin", "weights"):
        assert torch.equal(read_weights(tmp_path / name).tensors["a"], STATE["a"])
    assert read_weights(tmp_path / "weights.bin").metadata == {"format": "pt"}
    (tmp_path / "torch.safetensors").write_bytes(saved(STATE))
    with pytest.raises(UserError, match="is not a readable safetensors file"):
        read_weights(tmp_path / "torch.safetensors")


def test_what_is_no_plain_tensor_is_refused_by_name(tmp_path):
    torch.save({"a": torch.eye(3).to_sparse()}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="a is sparse, quantized or without values"):
        read_weights(tmp_path / "a.pth")


def test_many_threads_read_at_once(tmp_path):
    """The types that torch may load are one list for the process: no thread takes them from another."""
    import argparse

    (tmp_path / "a.pth").write_bytes(saved({"model": STATE, "args": argparse.Namespace(lr=0.1)}))
    failures: list[BaseException] = []

    def read() -> None:
        try:
            for _ in range(20):
                load_torch(tmp_path / "a.pth")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert argparse.Namespace not in torch.serialization.get_safe_globals()
