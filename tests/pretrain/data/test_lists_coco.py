"""COCO json as a list of images: its names, each once, and files that are not one."""

import pytest

from pretrain.data.lists import coco_names
from pretrain.data.sources import open_source
from splitmask_backbones.errors import UserError
from tests.helpers.image_files import touch, write_coco
from tests.helpers.paths import SHARED_DATA as SHARED


def test_coco_json(tmp_path):
    touch(tmp_path / "images", "b.jpg", "sub/a.jpg")
    file = write_coco(tmp_path / "instances.json", "sub/a.jpg", "b.jpg", "missing.jpg", "./b.jpg")
    source = open_source(file, tmp_path / "images")
    assert source.root == tmp_path / "images"
    assert source.names == ["b.jpg", "missing.jpg", "sub/a.jpg"]
    assert "1 repeated names skipped" in source.describe()
    assert source.subset(source.names).fingerprint() == source.fingerprint()


def test_coco_json_by_content(tmp_path):
    touch(tmp_path, "a.jpg")
    file = write_coco(tmp_path / "data", "a.jpg")
    file.write_bytes(b"\xef\xbb\xbf \n" + file.read_bytes())
    assert open_source(file, tmp_path).names == ["a.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [', r"c\.json is not valid JSON \(line 1, column 13"),
        ("", "not valid JSON"),
        ('{"annotations": []}', "no list 'images'"),
        ("[1, 2]", "no list 'images'"),
        ('{"images": {}}', "no list 'images'"),
        ('{"images": []}', "'images' is empty"),
        ('{"images": [{"file_name": "a.jpg"}, {"id": 3}]}', r"images\[1\] has no 'file_name'"),
        ('{"images": [{"file_name": 7}]}', r"images\[0\] has no 'file_name'"),
        ('{"images": ["a.jpg"]}', r"images\[0\] has no 'file_name'"),
        ('{"images": [{"file_name": "x/a.jpg"}, {"file_name": "q\\u0000.jpg"}]}', "none of the 2 images"),
        ('{"images": ' + "[" * 100_000, "not valid JSON"),
    ],
)
def test_coco_json_errors(tmp_path, content, message):
    touch(tmp_path, "a.jpg")
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(UserError, match=message):
        open_source(tmp_path / "c.json", tmp_path)


def test_coco_json_in_another_encoding(tmp_path):
    touch(tmp_path, "a.jpg")
    (tmp_path / "c.json").write_bytes('{"images": [{"file_name": "ä.jpg"}]}'.encode("latin-1"))
    with pytest.raises(UserError, match="UTF-8"):
        open_source(tmp_path / "c.json", tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the small real data is not beside the repository (../shared/data)")
def test_real_coco_json_lists_the_files_of_its_folder():
    root = SHARED / "coco_tiny"
    source = open_source(root / "annotations/instances_val2017.json", root / "val2017")
    assert source.names == open_source(root / "val2017").names
    assert source.fingerprint() == open_source(root / "val2017").fingerprint()


def test_what_is_read_from_a_json(tmp_path):
    touch(tmp_path, "sub/a.jpg")
    file = write_coco(tmp_path / "c.json", "z.jpg", "sub/a.jpg", "sub//a.jpg")
    assert coco_names(file, tmp_path) == (["sub/a.jpg", "z.jpg"], ("1 repeated names skipped",))
