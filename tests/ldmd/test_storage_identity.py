"""What storage a volume is: from a kernel's tree of devices, and from real files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import define

from ldmd import storage_identity
from ldmd.storage_identity import Identity, NotKnown, is_open_in, key_of, probe
from tests.storage.scene import block, loop_device

NAA = "naa.600140512345678abcdef0123456789a"


@define
class Kernel:
    """A /sys/dev/block of a test's own, with devices as sysfs has them."""

    root: Path

    @property
    def sysfs(self) -> Path:
        return self.root / "dev" / "block"

    def add(self, number: str, parent: Path | None = None, **files: str) -> Path:
        """``files``: name with ``__`` for ``/`` -> content."""
        folder = (parent or self.root / "devices") / number.replace(":", "-")
        folder.mkdir(parents=True)
        self.sysfs.mkdir(parents=True, exist_ok=True)
        (self.sysfs / number).symlink_to(folder)
        for name, content in {"dev": number, **files}.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{content}\n")
        return folder

    def stack(self, number: str, uuid: str, *below: Path) -> Path:
        folder = self.add(number, dm__uuid=uuid)
        (folder / "slaves").mkdir()
        for device in below:
            (folder / "slaves" / device.name).symlink_to(device)
        return folder

    def text(self, number: str) -> str:
        major, minor = map(int, number.split(":"))
        text, base = storage_identity._device(os.makedev(major, minor), self.sysfs, None, 0)
        assert base is None
        return text


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


@pytest.mark.parametrize(
    "wwid", [NAA, "eui.0025385b71b0a1c2", "uuid.9d1fd5a2-7b1b-4d55-8a6b-0f2b6f0f6c11"]
)
def test_a_disk_is_its_wwn(kernel: Kernel, wwid: str) -> None:
    kernel.add("8:0", device__wwid=wwid)
    kernel.add("259:0", wwid=wwid)  # NVMe has it a level higher
    assert kernel.text("8:0") == kernel.text("259:0") == wwid


@pytest.mark.parametrize(
    ("wwid", "why"),
    [
        ("t10.ATA     QEMU HARDDISK                           QM00001", "given once only"),
        ("t10.IET     00010001", "given once only"),
        ("disk1", "given once only"),
        ("naa.1", "given once only"),
        ("", "no WWN"),
    ],
)
def test_a_name_that_others_may_have_is_none(kernel: Kernel, wwid: str, why: str) -> None:
    kernel.add("8:0", device__wwid=wwid)
    with pytest.raises(NotKnown, match=why):
        kernel.text("8:0")


def test_a_device_that_the_kernel_does_not_show(kernel: Kernel) -> None:
    with pytest.raises(NotKnown, match="does not say what device"):
        kernel.text("8:0")


def test_a_partition_is_its_place_on_the_disk(kernel: Kernel) -> None:
    disk = kernel.add("8:0", device__wwid=NAA)
    kernel.add("8:1", disk, partition="1", start="2048", size="4096")
    kernel.add("8:2", disk, partition="2", start="6144", size="4096")
    assert kernel.text("8:1") == f"partition 1 at 2048, 4096 sectors, of {NAA}"
    assert kernel.text("8:1") != kernel.text("8:2")


def test_a_logical_volume_is_more_than_its_uuid(kernel: Kernel) -> None:
    """Hosts that were installed from one image have the same uuid on disks of their own."""
    here = kernel.add("8:0", device__wwid=NAA)
    there = kernel.add("8:16", device__wwid=NAA[:-1] + "b")
    kernel.stack("253:0", "LVM-abc", here)
    kernel.stack("253:1", "LVM-abc", there)
    kernel.stack("253:2", "LVM-abc", here)
    assert kernel.text("253:0") == kernel.text("253:2") == f"dm LVM-abc on ({NAA})"
    assert kernel.text("253:0") != kernel.text("253:1")


def test_the_paths_of_a_multipath_device_are_one_disk(kernel: Kernel) -> None:
    paths = [kernel.add(f"8:{n * 16}", device__wwid=NAA) for n in range(4)]
    kernel.stack("253:0", f"mpath-{NAA}", *paths)
    kernel.stack("253:1", f"mpath-{NAA}", *paths[:1])
    kernel.stack("253:2", "LVM-x", kernel.sysfs.joinpath("253:0").resolve())
    assert kernel.text("253:0") == kernel.text("253:1") == f"dm mpath-{NAA} on ({NAA})"
    assert kernel.text("253:2") == f"dm LVM-x on (dm mpath-{NAA} on ({NAA}))"


def test_one_unknown_disk_makes_all_unknown(kernel: Kernel) -> None:
    kernel.stack("253:0", "LVM-x", kernel.add("8:0", device__wwid=NAA), kernel.add("8:16"))
    with pytest.raises(NotKnown, match="no WWN"):
        kernel.text("253:0")


@pytest.mark.parametrize("uuid", ["", "LVM-x"])
def test_a_mapping_without_uuid_or_disks(kernel: Kernel, uuid: str) -> None:
    kernel.stack("253:0", uuid, *([kernel.add("8:0", device__wwid=NAA)] if not uuid else []))
    with pytest.raises(NotKnown, match="without a uuid, or with nothing below"):
        kernel.text("253:0")


def test_devices_without_end(kernel: Kernel) -> None:
    folder = kernel.stack("253:0", "LVM-x")
    (folder / "slaves" / "dm-0").symlink_to(folder)
    with pytest.raises(NotKnown, match="more than 8 devices"):
        kernel.text("253:0")


# ---- real files and devices --------------------------------------------------------------------------------


def identity_of(path: Path) -> Identity:
    return probe(path, read_only=True).identity


def test_a_file_and_every_way_to_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 8192)
    (tmp_path / "link").symlink_to(file)
    seen = probe(tmp_path / "link", read_only=False)
    assert (seen.size_bytes, seen.block_device) == (8192, False)
    assert seen.identity.base == file
    assert seen.identity.base_key == (file.stat().st_dev, file.stat().st_ino)
    assert seen.identity.text
    assert seen == probe(file, read_only=False)
    copy = tmp_path / "copy"
    copy.write_bytes(file.read_bytes())
    assert identity_of(copy).text != seen.identity.text


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "device", "read-only"])
def test_what_is_no_volume(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "volume"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "read-only":
        path = Path("/proc/version")
    with pytest.raises(OSError):  # noqa: PT011 -- in the system's own words
        probe(path, read_only=False)


def test_a_file_whose_name_is_gone_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    with path.open("rb") as file:
        path.unlink()
        assert "renamed or removed" in storage_identity.identify(file.fileno()).why
        path.write_bytes(b"y")
        assert not storage_identity.identify(file.fileno()).text


def test_what_a_process_has_open(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    assert not is_open_in(os.getpid(), key_of(path.stat()))
    with path.open("rb"):
        assert is_open_in(os.getpid(), key_of(path.stat()))
    assert not is_open_in(2**22 + 1, key_of(path.stat()))


@pytest.mark.loops
def test_loop_devices_are_their_place_on_the_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(2**21))
    with (
        loop_device(file) as one,
        loop_device(file) as other,
        loop_device(file, "--offset", "4096") as behind,
    ):
        assert identity_of(one) == identity_of(other)
        assert identity_of(one).base == file
        assert identity_of(one).text == f"loop at 0, limit 0, on {identity_of(file).text}"
        assert identity_of(behind).text != identity_of(one).text
        assert probe(one, read_only=True).key != probe(other, read_only=True).key
        # another file takes the name: the device is still on the first
        (tmp_path / "new").write_bytes(bytes(2**21))
        (tmp_path / "new").replace(file)
        assert not identity_of(one).text


@pytest.mark.loops
def test_a_write_protected_device_can_only_be_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(2**20))
    with loop_device(file) as device:
        assert probe(device, read_only=False).block_device
        block(device, fail=True)
        with pytest.raises(OSError, match="write-protected"):
            probe(device, read_only=False)
        assert probe(device, read_only=True).size_bytes == 2**20


IN_A_NAMESPACE = """
set -e
mount -t tmpfs none "$1"
mkdir "$1/lower" "$1/upper" "$1/work" "$1/merged" "$1/bound"
truncate -s 1M "$1/lower/file" "$1/other"
mount -t overlay none -o "lowerdir=$1/lower,upperdir=$1/upper,workdir=$1/work" "$1/merged"
mount --bind "$1/lower" "$1/bound"
exec "$2" -c "$3" "$1"
"""
LOOK = """
import sys
from pathlib import Path
from ldmd.storage_identity import probe
root = Path(sys.argv[1])
for name in ("lower/file", "bound/file", "merged/file"):
    print(probe(root / name, read_only=True).identity.text)
"""


@pytest.mark.mounts
def test_an_overlay_is_not_what_lies_below_it(tmp_path: Path) -> None:
    """Reading goes through to the file below, writing to a layer of its own."""
    command = ["unshare", "--mount", "sh", "-c", IN_A_NAMESPACE, "sh", str(tmp_path)]
    done = subprocess.run(
        [*command, sys.executable, LOOK], capture_output=True, text=True, check=True
    )
    lower, bound, merged = done.stdout.splitlines()
    assert lower == bound
    assert merged.startswith("overlay ")
