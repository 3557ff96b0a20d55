"""A config by its name: every way to write it is the same file, and a wrong one names the nearest."""

from pathlib import Path

import pytest

from tools.detection.config import CONFIG_DIR
from tools.finetuning.config_file import config_file, config_names
from tools.segmentation.config import CONFIG_FOLDER


@pytest.mark.parametrize("folder", [CONFIG_DIR, CONFIG_FOLDER], ids=lambda folder: folder.name)
def test_every_spelling_is_the_same_file(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "demo.py", f"{folder.name}/demo.py", str(folder / "demo.py")):
        assert config_file(name, folder) == folder / "demo.py"
    (tmp_path / "demo.py").touch()
    assert config_file("demo.py", folder) == Path("demo.py"), "one's own comes first"
    with pytest.raises(ValueError, match=rf"config demp does not exist: did you mean '{folder.name}/demo.py'"):
        config_file("demp", folder)
    assert f"{folder.name}/demo.py" in config_names(folder) and f"{folder.name}/__init__.py" not in config_names(folder)
