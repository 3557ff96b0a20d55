"""The notebooks: committed without outputs, and their cells run one after the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

from splitmask_backbones import create_encoder, save_encoder
from tests.helpers import det_data
from tests.helpers.paths import ROOT

NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_there_is_one() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_has_no_outputs(path: Path) -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code_cells(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_cells_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    torch.manual_seed(0)
    save_encoder(create_encoder("vit_tiny", img_size=64, depth=4), tmp_path / "runs" / "mine" / "encoder.safetensors")
    det_data.write_split(tmp_path / "MY_IMAGES", "pictures", det_data.coco_json(1))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(path)):
        exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), namespace)
    plt.close("all")
    attention, prefix = namespace["attention"], namespace["prefix"]
    assert prefix == 0
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(attention.shape[:2]))
    # The same block by its own kernel: what the attention gives for the values is what the block adds.
    block, qkv = namespace["block"], namespace["seen"]["qkv"]
    heads = attention.shape[0]
    value = qkv[0].reshape(attention.shape[1], 3, heads, -1)[:, 2].transpose(0, 1)
    mixed = (attention @ value).transpose(0, 1).flatten(1)
    seen: dict[str, torch.Tensor] = {}
    handle = block.attn.register_forward_hook(lambda module, args, output: seen.update(out=output))
    with torch.no_grad():
        namespace["encoder"](namespace["images"])
        handle.remove()
        torch.testing.assert_close(block.attn.proj(mixed), seen["out"][0], rtol=1e-4, atol=1e-5)
    assert set(namespace["found"]) == {"boxes", "labels", "scores", "masks"}
