"""Where the fine-tunings of a study differ in what they should share, as after a change of config. Free of torch."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pretrain.training.run_folder import CONFIG, flatten
from tools.reproduction.study import HEADS
from tools.running.job import RESULTS

# What differs by the seed, the row and the share of the labels.
OWN = ("seed", "labels", "steps", "embed_dim", "depth")


def mixed_values(output: Path, rows: Sequence[str]) -> list[str]:
    """Returns a sentence for each value that the finished fine-tunings on a data set do not have in common.

    Args:
        output: folder of the study.
        rows: of the table.
    """
    told = []
    for data, head in HEADS.items():
        seen: dict[str, dict[str, list[str]]] = {}  # name -> value -> runs
        for run in _finished(output, rows, data, head.tool):
            for name, value in _values(run).items():
                places = seen.setdefault(name, {}).setdefault(json.dumps(value), [])
                places.append(str(run.relative_to(output)))
        for name, values in seen.items():
            if len(values) > 1:
                each = " and ".join(f"{value} ({_shown(runs)})" for value, runs in values.items())
                told.append(f"The fine-tunings on {data} differ in {name}: {each}.")
    return told


def _finished(output: Path, rows: Sequence[str], data: str, tool: str) -> Iterator[Path]:
    for row in rows:
        for file in sorted(output.glob(f"{row}/{data}/seed*/{tool}*/{RESULTS}")):
            if (file.parent / CONFIG).exists():
                yield file.parent


def _values(run: Path) -> dict[str, Any]:
    """Returns the values of a run's config.json by their dotted names, without those that may differ."""
    try:
        config = json.loads((run / CONFIG).read_text(encoding="utf-8"))
        values = {**flatten(config.get("recipe_values", {})), **config.get("values", {})}
        data = config.get("data", {}).get("val")  # that of the training images goes by seed and share
        values |= {"the validation data": data} if isinstance(data, str) else {}
    except (ValueError, AttributeError, TypeError):
        return {}  # the tool says what is wrong with such a run
    return {name: value for name, value in values.items() if name.rpartition(".")[2] not in OWN}


def _shown(runs: Sequence[str]) -> str:
    return runs[0] if len(runs) == 1 else f"{runs[0]} and {len(runs) - 1} more"
