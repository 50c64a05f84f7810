"""Files are there whole or not at all."""

import os
from pathlib import Path

import pytest

from qdrop.files import check_writable, expanded, remove_leftovers, write_file


def test_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/a b") == tmp_path / "a b" and expanded("a~b") == Path("a~b")
    with pytest.raises(FileNotFoundError, match="no such home folder: '~no-such-user/x'"):
        expanded("~no-such-user/x")


def test_writes_text_and_bytes_and_leaves_nothing_else(tmp_path):
    write_file(tmp_path / "a", "größer")
    write_file(tmp_path / "b", b"\0\1")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "größer"
    assert (tmp_path / "b").read_bytes() == b"\0\1"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_a_failure_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    write_file(tmp_path / "a", "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_two_processes_that_write_one_file_do_not_disturb_each_other(tmp_path, monkeypatch):
    sync, ours = os.fsync, os.getpid()

    def other_process_comes_in_between(descriptor):
        monkeypatch.setattr(os, "fsync", sync)
        monkeypatch.setattr(os, "getpid", lambda: ours + 1)
        check_writable(tmp_path / "a")
        write_file(tmp_path / "a", "longer, and first")
        monkeypatch.setattr(os, "getpid", lambda: ours)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", other_process_comes_in_between)
    write_file(tmp_path / "a", "last")
    assert (tmp_path / "a").read_text() == "last"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_check_does_not_disturb_whoever_writes(tmp_path, monkeypatch):
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (check_writable(tmp_path / "a"), sync(descriptor)))
    write_file(tmp_path / "a", "content")
    assert (tmp_path / "a").read_text() == "content"


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    other = (".a.tmp", ".a.b.12.tmp", ".ab.12.tmp", "a.12.tmp", ".a.12.probe")
    for name in ("[a]", *other, ".[a].12.tmp", ".[a].3456.tmp"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "[a]")
    assert {path.name for path in tmp_path.iterdir()} == {"[a]", *other}
    remove_leftovers(tmp_path / "absent" / "a")


def test_the_data_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    names = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: (names.append({p.name for p in tmp_path.iterdir()}), sync(d)))
    write_file(tmp_path / "a", "x")
    assert "a" not in names[0] and names[-1] == {"a"}


@pytest.mark.parametrize("check", [check_writable, lambda path: write_file(path, "x")], ids=["check", "write"])
@pytest.mark.parametrize("name", ["folder", "absent/file", ".", "file/below"])
def test_an_error_names_what_was_asked_for(tmp_path, monkeypatch, check, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        check(Path(name))
    assert str(caught.value.filename) in (name, "absent", "file") and caught.value.filename2 is None
    assert ".tmp" not in str(caught.value)
    assert {path.name for path in tmp_path.rglob("*")} == {"folder", "file"}


def test_checking_leaves_nothing_and_the_old_file(tmp_path):
    check_writable(tmp_path / "new")
    assert not list(tmp_path.iterdir())
    write_file(tmp_path / "old", "content")
    check_writable(tmp_path / "old")
    assert (tmp_path / "old").read_text() == "content" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written_to_is_known_before_the_work(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", denied)  # the tests may run as root, whom no mode stops
    with pytest.raises(PermissionError) as caught:
        check_writable(tmp_path / "file")
    assert caught.value.filename == str(tmp_path / "file")
