"""splitmask_backbones._yapf_cache, each in a new process with a cache of its own."""

import os
import subprocess
import sys
import time

import pytest

pytest.importorskip("yapf", reason="the extra 'segmentation' is not installed")

READ = "from splitmask_backbones._yapf_cache import import_yapf\nimport sys\nimport_yapf(tries=int(sys.argv[1]))\n"


def start(cache, code: str, *argv: str) -> subprocess.Popen[str]:
    environment = os.environ | {"HOME": str(cache), "XDG_CACHE_HOME": str(cache)}
    return subprocess.Popen([sys.executable, "-c", code, *argv], env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def grammar(tmp_path):
    assert start(tmp_path, READ, "1").wait() == 0
    found = [path for path in tmp_path.rglob("*.pickle") if path.name.startswith("Grammar")]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("kept", [0, 1000], ids=["empty", "half"])
def test_a_cache_that_is_being_written_is_read_again(tmp_path, grammar, kept):
    whole = grammar.read_bytes()
    grammar.write_bytes(whole[:kept])
    assert start(tmp_path, "import yapf").wait() == 1  # what mmengine's import would meet
    reader = start(tmp_path, READ + "assert 'yapf' in sys.modules", "600")
    time.sleep(0.5)
    assert reader.poll() is None
    grammar.write_bytes(whole)
    assert reader.wait(60) == 0, reader.communicate()


def test_a_cache_that_stays_damaged_is_named(tmp_path, grammar):
    grammar.write_bytes(b"")
    said = start(tmp_path, READ, "2").communicate()[1]
    assert "UserError: the cache of yapf, which mmengine imports, is damaged: delete its folder" in said
