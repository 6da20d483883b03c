"""Files and folders of ours: whole, in place, and never beyond their own tree."""

import os
import subprocess
from pathlib import Path

import pytest

from netlib.errors import KernelError, ObjectMissing
from netlib.kernel.files import Folder, TextFile
from netlib.kernel.handle import Kernel


def test_file_comes_with_its_mode_and_goes(kernel: Kernel, tmp_path: Path) -> None:
    file = TextFile(path=str(tmp_path / "hosts"), content="127.0.0.1 localhost\n")
    assert file.drift(kernel) == f"{file.path} is missing"
    old = os.umask(0o077)
    try:
        file.ensure(kernel)
    finally:
        os.umask(old)
    assert Path(file.path).read_text() == file.content
    assert Path(file.path).stat().st_mode & 0o777 == 0o644
    assert file.drift(kernel) is None
    assert os.listdir(tmp_path) == ["hosts"]
    file.remove(kernel)
    file.remove(kernel)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", ["", "short\n", "a much longer text than before\n" * 1000, "nämlich\n"])
def test_standing_file_is_rewritten_under_its_inode(kernel: Kernel, tmp_path: Path, content: str) -> None:
    path = tmp_path / "resolv.conf"
    TextFile(path=str(path), content="nameserver 127.0.0.11\n").ensure(kernel)
    inode = path.stat().st_ino
    with path.open() as reader:  # as a bind mount in a container sees it
        file = TextFile(path=str(path), content=content, mode=0o600)
        assert file.drift(kernel) == f"{path} has other content"
        file.ensure(kernel)
        assert reader.read() == content
    assert (path.stat().st_ino, path.stat().st_mode & 0o777) == (inode, 0o600)
    assert file.drift(kernel) is None


def test_unchanged_file_is_not_written(kernel: Kernel, tmp_path: Path) -> None:
    file = TextFile(path=str(tmp_path / "hosts"), content="x\n")
    file.ensure(kernel)
    os.utime(file.path, ns=(0, 0))
    file.ensure(kernel)
    assert os.stat(file.path).st_mtime_ns == 0
    os.chmod(file.path, 0o600)
    assert file.drift(kernel) == f"{file.path} has mode 600, not 644"


def test_file_never_writes_through_a_link_or_over_something_else(kernel: Kernel, tmp_path: Path) -> None:
    target = tmp_path / "passwd"
    target.write_text("root\n")
    link, folder, pipe = tmp_path / "link", tmp_path / "folder", tmp_path / "pipe"
    link.symlink_to(target)
    folder.mkdir()
    os.mkfifo(pipe)
    for path in (link, folder, pipe):
        file = TextFile(path=str(path), content="x\n")
        assert file.drift(kernel) == f"{path} is no regular file"
        with pytest.raises(KernelError, match=f"cannot write {path}"):
            file.ensure(kernel)
    assert target.read_text() == "root\n"
    TextFile(path=str(link), content="x\n").remove(kernel)
    assert target.read_text() == "root\n"


def test_file_without_its_folder(kernel: Kernel, tmp_path: Path) -> None:
    file = TextFile(path=str(tmp_path / "none" / "hosts"), content="x\n")
    with pytest.raises(ObjectMissing, match="cannot write"):
        file.ensure(kernel)
    file.remove(kernel)
    assert file.drift(kernel) == f"{file.path} is missing"


def test_folder_comes_with_its_parents_and_goes_with_what_is_in_it(kernel: Kernel, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    folder = Folder(path=str(path)).observed(kernel)
    assert folder.drift(kernel) == f"folder {path} is missing"
    folder.ensure(kernel)
    folder.ensure(kernel)
    assert path.stat().st_mode & 0o777 == 0o700
    assert path.parent.stat().st_mode & 0o777 == 0o755
    assert folder.drift(kernel) is None
    (path / "logs" / "old").mkdir(parents=True)
    (path / "logs" / "old" / "1").write_text("x")
    folder.remove(kernel)
    folder.remove(kernel)
    assert os.listdir(tmp_path) == ["a"]


def test_folder_that_was_there_before_stays(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    tmp_path.chmod(0o711)
    folder = Folder(path=str(tmp_path)).observed(kernel)
    assert folder.adopted
    folder.ensure(kernel)
    assert tmp_path.stat().st_mode & 0o777 == 0o711
    assert folder.drift(kernel) is None
    folder.remove(kernel)
    assert (tmp_path / "mine").read_text() == "x"


def test_folder_over_a_file_or_link_is_refused(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for name in ("file", "link"):
        folder = Folder(path=str(tmp_path / name))
        with pytest.raises(KernelError, match="cannot make folder"):
            folder.ensure(kernel)
        assert folder.drift(kernel) == f"{tmp_path / name} is no folder"


def test_deletion_does_not_follow_links(kernel: Kernel, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    folder = Folder(path=str(tmp_path / "ours"))
    folder.ensure(kernel)
    (tmp_path / "ours" / "link").symlink_to(outside)
    (tmp_path / "ours" / "hard").hardlink_to(outside / "precious")
    folder.remove(kernel)
    assert (outside / "precious").read_text() == "x"
    (tmp_path / "ours").symlink_to(outside)
    folder.remove(kernel)
    assert (outside / "precious").read_text() == "x"


@pytest.mark.parametrize("depth", ["", "deeper/and/deeper"])
def test_deletion_does_not_cross_a_mount(kernel: Kernel, tmp_path: Path, depth: str) -> None:
    outside, ours = tmp_path / "outside", tmp_path / "ours"
    outside.mkdir()
    (outside / "precious").write_text("x")
    folder = Folder(path=str(ours))
    folder.ensure(kernel)
    point = ours / depth / "mounted"
    point.mkdir(parents=True)
    subprocess.run(["mount", "--bind", str(outside), str(point)], check=True)  # the same device as around it
    try:
        with pytest.raises(KernelError, match=f"{point} is a mount; unmount it"):
            folder.remove(kernel)
        assert (outside / "precious").read_text() == "x"
    finally:
        subprocess.run(["umount", str(point)], check=True)
    folder.remove(kernel)
    assert not ours.exists()


def test_deletion_of_folders_nested_deeper_than_a_process_may_open(kernel: Kernel, tmp_path: Path) -> None:
    folder = Folder(path=str(tmp_path / "ours"))
    folder.ensure(kernel)
    fd = os.open(folder.path, os.O_RDONLY)
    for _ in range(3000):  # longer than any path may be
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    folder.remove(kernel)
    assert os.listdir(tmp_path) == []


def test_a_file_that_a_container_has_made_endless_is_rewritten(kernel: Kernel, tmp_path: Path) -> None:
    """resolv.conf is bound into the container, whose root writes what it likes; it is never read whole."""
    item = TextFile(path=str(tmp_path / "resolv.conf"), content="nameserver 127.0.0.11\n")
    item.ensure(kernel)
    os.truncate(item.path, 1 << 40)
    assert item.drift(kernel) == f"{item.path} has other content"
    item.ensure(kernel)
    assert item.drift(kernel) is None
    assert os.stat(item.path).st_size == len(item.content)
