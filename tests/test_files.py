from __future__ import annotations

import errno
import os
import stat

import pytest

from xpcnn import files
from xpcnn.files import FolderInUseError, atomic_write, locked, remove_leftovers


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


def test_an_error_of_the_system_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"No space left on device: '.*x.json'"), atomic_write(tmp_path / "x.json"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match=r"'.*other'"), atomic_write(tmp_path / "x.json"):
        (tmp_path / "other").read_text()
    assert os.listdir(tmp_path) == []


def test_file_and_folder_are_flushed_to_disk(tmp_path, monkeypatch):
    events = []

    def record(name):
        original = getattr(os, name)

        def call(first, *arguments):
            mode = os.fstat(first).st_mode if name == "fsync" else None
            events.append("folder" if mode and stat.S_ISDIR(mode) else name)
            return original(first, *arguments)

        monkeypatch.setattr(os, name, call)

    record("fsync")
    record("replace")
    with atomic_write(tmp_path / "x") as temporary:
        temporary.write_text("x")
    assert events == (["fsync", "replace"] if os.name == "nt" else ["fsync", "replace", "folder"])


def test_leftovers_of_a_killed_writer(tmp_path):
    with atomic_write(tmp_path / "one.two.json") as first, atomic_write(tmp_path / "x") as second:
        kept = tmp_path / "kept"
        kept.mkdir()
        for path in (first, second):
            (kept / path.name).touch()
            (tmp_path / path.name.replace(".tmp", ".tmp2")).touch()
    remove_leftovers(kept / "one.two.json")
    assert os.listdir(kept) == [second.name]
    remove_leftovers(kept)
    assert os.listdir(kept) == []
    remove_leftovers(tmp_path)
    assert len(os.listdir(tmp_path)) == 5
    remove_leftovers(tmp_path / "nowhere" / "x")


def test_a_locked_folder_belongs_to_one(tmp_path):
    folder = tmp_path / "a" / "b"
    with locked(folder):
        expected = rf"another training( \(process {os.getpid()}\))? is using .*b. Wait for its end, or choose another"
        with pytest.raises(FolderInUseError, match=expected), locked(folder):
            pass
        assert os.listdir(folder) == [".lock"]
    assert os.listdir(folder) == []
    with locked(folder):
        pass


def test_a_lock_file_that_nobody_holds_does_not_block(tmp_path):
    (tmp_path / ".lock").write_text("12345")
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


@pytest.mark.skipif(os.name != "posix", reason="Windows does not remove open files")
def test_a_lock_file_removed_by_its_last_owner_is_made_again(tmp_path, monkeypatch):
    """Between opening the file and locking it, its owner may go and take the file along."""
    original, calls = files._lock, []

    def lock(file):
        if not calls:
            os.unlink(file.name)
        calls.append(file)
        original(file)

    monkeypatch.setattr(files, "_lock", lock)
    with locked(tmp_path):
        assert len(calls) == 2
        assert os.listdir(tmp_path) == [".lock"]
    assert calls[0].closed


def test_an_error_inside_a_lock_unlocks(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path):
        pass
