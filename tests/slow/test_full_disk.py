"""A site whose disk is full sits out, and comes back when there is room."""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chaos import hold_against_replay, recipe
from nodes import Federation

from fedadapt.runs.records import Outcome

ROUNDS = 10


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    """A file system of its own at `place`; skips the test where none can be mounted."""
    place.mkdir(parents=True)
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None:
        pytest.skip("there is no mount command here")
    command = [mount, "-t", "tmpfs", "-o", f"size={size},mode=0700", "none", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        # Lazily: a process that was just stopped may still hold a file open.
        subprocess.run([umount, "--lazy", str(place)], check=True)


def fill(file: Path) -> None:
    """Writes until no byte more fits."""
    with file.open("wb", buffering=0) as opened:
        for size in (2**20, 4096, 1):
            try:
                while opened.write(bytes(size)) == size:
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC


@pytest.mark.slow
@pytest.mark.flower
@pytest.mark.timeout(3600)
def test_a_site_with_a_full_disk_takes_part_again_once_there_is_room(tmp_path):
    """Its updates fail with that reason and the others go on; with room it counts again, from what it last kept."""
    place = tmp_path / "site2" / "fedadapt-site"
    text = recipe(ROUNDS, 60).replace("quorum = 1", "quorum = 2")
    with Federation(tmp_path, text) as federation, small_disk(place, "32m"):
        federation.serve()
        for client in federation.sites:
            federation.join(client)
        federation.wait_until_said("server", f"round 2 of {ROUNDS}", 900)
        fill(place / "ballast")
        federation.wait_until_said("server", "client 2 failed: ", 900)
        federation.wait_until_said("server", f"round 5 of {ROUNDS}", 900)
        (place / "ballast").unlink()
        assert federation.finish(3000) == 0, federation.said("server")
        federation.stop("site2")
    _, records, _ = hold_against_replay(federation.run)
    assert {r.outcome for r in records if r.client != 2} == {Outcome.ACCEPTED}
    outcomes = [r.outcome for r in records if r.client == 2]
    assert outcomes[:2] == [Outcome.ACCEPTED] * 2
    assert outcomes[-2:] == [Outcome.ACCEPTED] * 2
    missed = [r.reason for r in records if r.client == 2 and r.outcome is not Outcome.ACCEPTED]
    assert missed
    assert all("No space left on device" in reason for reason in missed)
