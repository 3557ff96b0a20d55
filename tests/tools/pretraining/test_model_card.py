"""MODEL_CARD.md: its head, what stands in it, and whose it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from splitmask_backbones import create_encoder, save_encoder
from splitmask_backbones.convert import convert
from tests.helpers.in_process import run_tool
from tools import pretrain
from tools.pretraining.model_card import model_card, write_model_card

LINEAGE = [{"file": "deit.pth", "sha256": "ab12", "family": "deit"}]


def write_run(folder: Path, num_steps: int = 50) -> None:
    config = {
        "recipe": "small",
        "values": {"model": "vit_tiny", "method": "splitmask", "base_lr": 0.004, "lr": None, "mask": "a|b"},
        "data": {"num_files": 12, "fingerprint": "c0ffee", "unreadable": ["x.png"]},
        "free": {"data": "/somewhere/private/nuclei", "torch": "2.15.0", "device": "cpu"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    steps = [
        {"step": n, "loss": 9.0 - n / 10, "loss_inpaint": 1.5, "loss_match": None} for n in range(1, num_steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in steps))
    (folder / "tokenizer.json").write_text(json.dumps({"vocab_size": 64, "entropy_bits": 4.25}))


def test_the_hub_reads_its_head(tmp_path: Path) -> None:
    write_run(tmp_path)
    card = ModelCard(model_card(tmp_path, LINEAGE), ignore_metadata_errors=False)
    head = card.data.to_dict()
    assert head["license"] == "unknown"
    assert head["library_name"] == "splitmask_backbones"
    assert head["pipeline_tag"] == "image-feature-extraction"
    assert {"splitmask", "vit_tiny"} <= set(head["tags"])
    assert card.text.strip().startswith("# vit_tiny, pre-trained with splitmask")
    config = json.loads((tmp_path / "config.json").read_text())
    config["values"]["depth"] = 6
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "\n# vit_tiny (6 blocks), pre-trained with splitmask\n" in model_card(tmp_path, LINEAGE)


def test_what_stands_in_it(tmp_path: Path) -> None:
    write_run(tmp_path)
    text = model_card(tmp_path, LINEAGE)
    for row in ("| images | 12 |", "| of them unreadable | 1 |", "| fingerprint | c0ffee |", "| base_lr | 0.004 |"):
        assert row in text
    assert "| name of the folder or list | nuclei |" in text
    assert "private" not in text  # paths of the machine stay there
    assert "| mask | a\\|b |" in text
    assert "deit.pth (deit), sha256 `ab12`" in text
    assert "| entropy_bits | 4.25 |" in text
    curve = [line for line in text.splitlines() if line.endswith("| 1.5 |")]
    assert len(curve) == 10  # of 50 steps, the first and the last among them
    assert curve[0].startswith("| 1 | 8.9 |")
    assert curve[-1].startswith("| 50 | 4 |")
    assert "loss_match" not in text  # it has no value


def test_an_edited_card_stays(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_model_card(tmp_path, [])
    assert "From random initialisation." in (tmp_path / "MODEL_CARD.md").read_text()
    (tmp_path / "MODEL_CARD.md").write_text("mine")
    write_model_card(tmp_path, LINEAGE)
    assert (tmp_path / "MODEL_CARD.md").read_text() == "mine"


@pytest.fixture
def run(tmp_path: Path, image_folder: Path) -> tuple[Path, list[str]]:
    """Returns the folder of a run of two steps, and its command without --resume."""
    output = tmp_path / "run"
    words = ["--recipe", "tiny", "--data", str(image_folder), "--output", str(output), "--steps", "2"]
    words += ["--workers", "0", "--device", "cpu", "--save-every", "1"]
    done = run_tool(pretrain.main, *words)
    assert done.returncode == 0, done.stderr
    return output, words


def test_a_run_writes_it_and_a_resume_leaves_it_alone(run: tuple[Path, list[str]]) -> None:
    output, words = run
    card = output / "MODEL_CARD.md"
    text = card.read_text()
    fingerprint = json.loads((output / "config.json").read_text())["data"]["fingerprint"]
    assert f"| fingerprint | {fingerprint} |" in text
    card.write_text(text.replace("license: unknown", "license: cc0-1.0"))
    (output / "encoder.safetensors").unlink()  # as if it had been killed between the two
    done = run_tool(pretrain.main, *words, "--resume")
    assert done.returncode == 0, done.stderr
    assert (output / "encoder.safetensors").exists()
    assert "license: cc0-1.0" in card.read_text()


def test_a_folder_for_the_hub_takes_it_along(tmp_path: Path) -> None:
    write_run(tmp_path)
    write_model_card(tmp_path, [])
    torch.manual_seed(0)
    save_encoder(
        create_encoder("vit_tiny", img_size=64, depth=1, use_class_token=True), tmp_path / "encoder.safetensors"
    )
    convert(tmp_path / "encoder.safetensors", tmp_path / "hub", to="hf")
    card = tmp_path / "hub" / "README.md"
    assert ModelCard.load(card).data.library_name == "transformers"
    card.write_text("mine")
    convert(tmp_path / "encoder.safetensors", tmp_path / "hub", to="hf", overwrite=True)
    assert card.read_text() == "mine"
