"""Files are there whole or not at all."""

import os

import pytest

from qdrop.files import write_file


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


def test_the_data_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    names = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda d: (names.append({p.name for p in tmp_path.iterdir()}), sync(d)))
    write_file(tmp_path / "a", "x")
    assert "a" not in names[0] and names[-1] == {"a"}
