"""A file that was written is there whole, and still there after a power cut."""

from __future__ import annotations

import errno
import os
import stat

import pytest
from torch import nn

from fedadapt.backbones.weights import save_weights
from fedadapt.files import write_whole


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_whole(path, b"new"),
        lambda path: save_weights(nn.Linear(2, 2), path, {"backbone": "linear"}),
    ],
)
def test_content_and_then_name_are_brought_to_the_disk(tmp_path, monkeypatch, write):
    """The content while the old file is still there, and the name once the new one is."""
    path, synced, sync = tmp_path / "file", [], os.fsync
    path.write_bytes(b"old")

    def note(descriptor):
        sync(descriptor)
        what = "name" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "content"
        synced.append((what, path.read_bytes() == b"old"))

    monkeypatch.setattr(os, "fsync", note)
    write(path)
    assert synced == [("content", True), ("name", False)]
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_synced_is_taken_at_its_word(tmp_path, monkeypatch):
    """As on some network file systems; any other trouble is told."""
    sync = os.fsync

    def refuse(number):
        def refusing(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(number, os.strerror(number))
            sync(descriptor)

        return refusing

    monkeypatch.setattr(os, "fsync", refuse(errno.EINVAL))
    write_whole(tmp_path / "file", b"new")
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        write_whole(tmp_path / "file", b"newer")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("file", b"newer")]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path, monkeypatch):
    """And nothing beside it."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"new")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("file", b"old")]
