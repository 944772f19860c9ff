from __future__ import annotations

import os
import stat

import pytest

from xpcnn.files import atomic_write


def test_a_new_file_and_its_folders_are_made(tmp_path):
    target = tmp_path / "a" / "b" / "model.safetensors"
    with atomic_write(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary != target
        assert temporary.suffix == ".safetensors"
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert os.listdir(target.parent) == ["model.safetensors"]


def test_an_existing_file_is_replaced_whole(tmp_path):
    target = tmp_path / "x.json"
    target.write_text("old and long")
    with atomic_write(str(target)) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old and long"
    assert target.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_old_file_and_no_litter(tmp_path, error):
    target = tmp_path / "x.csv"
    target.write_text("old")

    def write():
        with atomic_write(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.csv"]


def test_a_target_that_cannot_be_replaced_leaves_no_litter(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "content").touch()
    with pytest.raises(OSError, match="folder"), atomic_write(target) as temporary:
        temporary.write_text("x")
    assert os.listdir(tmp_path) == ["folder"]


def test_two_writers_do_not_meet(tmp_path):
    target = tmp_path / "x.txt"
    with atomic_write(target) as one, atomic_write(target) as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert target.read_text() == "one"
    assert os.listdir(tmp_path) == ["x.txt"]


@pytest.mark.skipif(os.name != "posix", reason="permission bits are a POSIX matter")
def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "x") as temporary:
            temporary.write_text("x")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
