"""The proof that a file is one and the same: what convinces, and everything that must not."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ldmd import storage_proof
from ldmd.storage_identity import NotKnown
from ldmd.storage_proof import Token, has_lock, has_nonce, nonce_name, put

PROOF = "0123456789abcdef" * 2
OTHER_PROOF = "f" * 32
LABEL = "root@primary-vds0"


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "shared" / "root.img"
    path.parent.mkdir()
    path.write_bytes(bytes(4096))
    return path


def put_nonce(volume: Path, proof: str = PROOF) -> Token:
    token = put(volume, "host-a", proof, LABEL)
    assert token.nonce
    return token


def sees(volume: Path, token: Token, *, host: str = "host-a", proof: str = PROOF) -> bool:
    return has_nonce(volume, host, proof, token.nonce)


def the_nonce(volume: Path) -> Path:
    return volume.parent / nonce_name("host-a", PROOF, volume.name)


def test_the_same_file_is_the_same(volume: Path) -> None:
    token = put_nonce(volume)
    assert sees(volume, token)
    assert stat.S_IMODE(the_nonce(volume).stat().st_mode) == 0o600
    for _ in range(2):
        token.remove()
        assert os.listdir(volume.parent) == ["root.img"]
    assert not sees(volume, token)


def test_a_nonce_is_never_the_same_twice(volume: Path) -> None:
    first = put_nonce(volume)
    first.remove()
    second = put_nonce(volume)
    assert first.nonce != second.nonce
    assert not sees(volume, first)


def test_a_copied_folder_is_another(volume: Path) -> None:
    copy = volume.parent.with_name("copy")
    shutil.copytree(volume.parent, copy)
    token = put_nonce(volume)
    assert not sees(copy / volume.name, token)


def test_a_stale_nonce_does_not_count(volume: Path) -> None:
    stale = put_nonce(volume, OTHER_PROOF)
    copy = volume.parent.with_name("copy")
    shutil.copytree(volume.parent, copy)  # with what an earlier migration left
    token = put_nonce(volume)
    assert not sees(copy / volume.name, token)
    assert not sees(copy / volume.name, stale)


def test_a_nonce_beside_another_file_does_not_count(volume: Path) -> None:
    other = volume.with_name("other.img")
    other.write_bytes(bytes(4096))
    assert not sees(other, put_nonce(volume))


def test_a_nonce_of_another_host_does_not_count(volume: Path) -> None:
    assert not sees(volume, put_nonce(volume), host="host-c")


@pytest.mark.parametrize("how", ["symbolic", "hard", "folder", "fifo", "wrong", "long", "empty"])
def test_what_somebody_else_put_there_is_not_believed(
    volume: Path, how: str, tmp_path: Path
) -> None:
    token = put_nonce(volume)
    path = the_nonce(volume)
    real = tmp_path / "real"
    path.rename(real)
    match how:
        case "symbolic":
            path.symlink_to(real)
        case "hard":
            os.link(real, path)
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "wrong":
            path.write_text("0" * 64)
        case "long":
            path.write_text(token.nonce + "0")
        case "empty":
            path.touch()
    assert not sees(volume, token)


@pytest.mark.parametrize("how", ["file", "symbolic"])
def test_a_name_that_is_taken_is_not_written_through(
    volume: Path, tmp_path: Path, how: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    if how == "symbolic":
        the_nonce(volume).symlink_to(victim)
    else:
        the_nonce(volume).write_text("precious")
    token = put(volume, "host-a", PROOF, LABEL)
    assert not token.nonce, "a lock is used instead"
    token.remove()
    assert victim.read_text() == "precious"
    assert the_nonce(volume).read_text() == "precious"


def test_a_file_that_was_replaced_since_is_not_proved(volume: Path) -> None:
    volume.unlink()
    volume.symlink_to("/etc/passwd")
    with pytest.raises((NotKnown, OSError)):
        put(volume, "host-a", PROOF, LABEL)


def test_nobody_waits_any_more(volume: Path) -> None:
    with pytest.raises(NotKnown, match="too long"):
        put(volume, "host-a", PROOF, LABEL, wanted=lambda _: False)
    assert os.listdir(volume.parent) == ["root.img"]


IN_A_NAMESPACE = """
set -e
mount -t tmpfs none "$1"
mkdir "$1/shared" "$1/local"
truncate -s 4096 "$1/shared/root.img" "$1/local/root.img"
mount --bind "$1/local/root.img" "$1/shared/root.img"
exec "$2" -c "$3" "$1"
"""
TRY = """
import os, sys
from pathlib import Path
from ldmd.storage_proof import NotKnown, has_lock, has_nonce, put
volume = Path(sys.argv[1]) / "shared" / "root.img"
try:
    token = put(volume, "host-a", "0" * 32, "x")
    print("put", repr(token.nonce), has_lock(volume, "0" * 32, "x"))
except NotKnown as error:
    print("put:", error)
try:
    print("look", has_nonce(volume, "host-a", "0" * 32, "1" * 64))
except NotKnown as error:
    print("look:", error)
print(os.listdir(volume.parent))
"""


@pytest.mark.mounts
def test_a_file_that_is_mounted_by_itself_is_not_proved_by_its_folder(tmp_path: Path) -> None:
    """The folder is shared, and each host has a file of its own mounted over the name in it."""
    command = ["unshare", "--mount", "sh", "-c", IN_A_NAMESPACE, "sh", str(tmp_path)]
    done = subprocess.run(
        [*command, sys.executable, TRY], capture_output=True, text=True, check=True
    )
    wrote, looked, left = done.stdout.splitlines()
    assert wrote == "put '' True", "a lock, which is on the file itself"
    assert "mounted by itself" in looked
    assert left == "['root.img']"


# ---- the lock ----------------------------------------------------------------------------------------------


@pytest.fixture
def lock(volume: Path, monkeypatch: pytest.MonkeyPatch) -> Token:
    """As where the folder cannot be written; root can write every folder, so writing is what is refused."""

    def refuse(*_: object) -> Token:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(storage_proof, "_put_nonce", refuse)
    token = put(volume, "host-a", PROOF, LABEL)
    assert not token.nonce
    return token


def test_a_lock_is_seen_on_the_same_file_alone(volume: Path, lock: Token) -> None:
    copy = volume.with_name("copy.img")
    shutil.copy2(volume, copy)
    link = volume.with_name("hard.img")
    os.link(volume, link)
    assert has_lock(volume, PROOF, LABEL)
    assert has_lock(link, PROOF, LABEL), "another name of the same file"
    assert not has_lock(copy, PROOF, LABEL)
    assert not has_lock(volume, OTHER_PROOF, LABEL)
    assert not has_lock(volume, PROOF, "other@primary-vds0"), "two volumes are not mixed up"
    lock.remove()
    assert not has_lock(volume, PROOF, LABEL)
    assert volume.read_bytes() == bytes(4096)


def test_a_lock_on_everything_is_no_proof(volume: Path) -> None:
    """Somebody else's, who locks whole files."""
    import fcntl

    with volume.open("rb") as file:
        whole = storage_proof._FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, whole)
        assert not has_lock(volume, PROOF, LABEL)


# ---- leftovers ---------------------------------------------------------------------------------------------


def test_leftovers_of_this_host_go_and_no_others(volume: Path) -> None:
    name = nonce_name("host-a", PROOF, volume.name)
    living = nonce_name("host-a", OTHER_PROOF, volume.name)
    others = [
        nonce_name("host-b", PROOF, volume.name),
        nonce_name("host-a-2", PROOF, volume.name),
        name + "0",
        ".ldmd-host-a-",
    ]
    for each in (name, living, *others):
        (volume.parent / each).touch()
    removed = storage_proof.sweep(volume, "host-a", lambda each: each == living)
    assert removed == [volume.parent / name]
    assert sorted(os.listdir(volume.parent)) == sorted([living, *others, "root.img"])
