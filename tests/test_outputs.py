"""Results are complete or absent: formats, full disks, interrupted writes, folders that take nothing."""

from __future__ import annotations

import gzip
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid
from regkit.io.atomic import _HOST, atomic_path, together
from regkit.io.images import load_image
from regkit.io.outputs import IMAGE_SUFFIXES, check_output, save_field, save_image
from regkit.io.provenance import version


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_saved_images_come_back(
    suffix: str, oblique_grid: Grid, rng: np.random.Generator, tmp_path: Path
) -> None:
    path = tmp_path / f"moved{suffix}"
    array = rng.normal(size=oblique_grid.shape).astype(np.float32)
    save_image(oblique_grid.to_sitk(array), path)
    np.testing.assert_array_equal(load_image(path, "image").array, array)
    vectors = rng.normal(size=(*oblique_grid.shape, 3)).astype(np.float32)
    save_image(oblique_grid.to_sitk(vectors, vector=True), path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(path)), vectors)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("pixel", [np.uint8, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("components", [1, 3])
def test_a_nifti_is_the_file_that_itk_writes(
    pixel: type[np.generic], components: int, oblique_grid: Grid, rng: np.random.Generator, tmp_path: Path
) -> None:
    shape = (*oblique_grid.shape, components) if components > 1 else oblique_grid.shape
    array = rng.normal(scale=50, size=shape).astype(pixel)
    image = oblique_grid.to_sitk(array, vector=components > 1)
    sitk.WriteImage(image, tmp_path / "image.nii")
    content = (tmp_path / "image.nii").read_bytes()
    expected = content[:148] + version().encode()[:79].ljust(80, b"\0") + content[228:]  # its descrip
    save_image(image, tmp_path / "image.nii.gz")
    save_image(image, tmp_path / "image.nii")
    assert (tmp_path / "image.nii").read_bytes() == expected
    assert gzip.decompress((tmp_path / "image.nii.gz").read_bytes()) == expected
    if components > 1 and pixel is np.float32:
        save_field(array, oblique_grid, tmp_path / "field.nii.gz")
        save_field(array, oblique_grid, tmp_path / "field.nii")
        assert gzip.decompress((tmp_path / "field.nii.gz").read_bytes()) == expected
        assert (tmp_path / "field.nii").read_bytes() == expected


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".nrrd"])
def test_saved_images_are_compressed(suffix: str, tmp_path: Path) -> None:
    save_image(sitk.Image([40, 40, 40], sitk.sitkFloat32), tmp_path / f"zeros{suffix}")
    assert (tmp_path / f"zeros{suffix}").stat().st_size < 40**3


@pytest.mark.parametrize("missing", [1, 10, 6000, 90_000])
@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_a_full_disk_leaves_the_old_file(
    suffix: str, missing: int, rng: np.random.Generator, tmp_path: Path
) -> None:
    path = tmp_path / f"moved{suffix}"
    image = sitk.GetImageFromArray(rng.normal(size=(30, 30, 30)).astype(np.float32))
    save_image(image, path)
    content = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) - missing, hard))
    try:
        with pytest.raises(RegkitError, match=rf"could not write .*'{path}'.*is the disk full\?"):
            save_image(image, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_atomic_path_replaces_only_on_success(tmp_path: Path) -> None:
    path = tmp_path / "points.mrk.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffixes == [".mrk", ".json"]
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_path_reports_what_the_system_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = pytest.raises(RegkitError, match=r"could not write '.*out\.csv': Not a directory")
    with refused, atomic_path(tmp_path / "file" / "out.csv") as temporary:
        temporary.write_text("")


def test_check_output_accepts_what_can_be_written(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "sub-01.v2.nii.gz", "a.mha"):
        assert check_output(tmp_path / name, IMAGE_SUFFIXES) == tmp_path / name
    (tmp_path / "a.mha").write_text("old")
    assert check_output(str(tmp_path / "a.mha"), IMAGE_SUFFIXES) == tmp_path / "a.mha"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.jpg", r"must end in \.nii\.gz or \.nii or \.nrrd or \.mha"),
        ("a.mhd", r"must end in .* \.mha"),
        ("a", "must end in"),
        (".nii.gz", "must end in"),
        ("missing/a.nii", "missing' is not a folder; create it first"),
        ("file/a.nii", "file' is not a folder; create it first"),
        ("folder.nii", "it is a folder; give the name of a file"),
    ],
)
def test_check_output_refuses_what_cannot_be_written(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(RegkitError, match=f"cannot write '{tmp_path / name}'.*{message}"):
        check_output(tmp_path / name, IMAGE_SUFFIXES)
    with pytest.raises(RegkitError, match=message):
        save_image(Grid((6, 7, 8)).blank(), tmp_path / name)


def test_check_output_refuses_a_folder_without_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:  # root may write everywhere, so only the answer of the system can be had
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RegkitError, match="no permission to write in the folder"):
            check_output(tmp_path / "a.nii", IMAGE_SUFFIXES)
    finally:
        tmp_path.chmod(0o700)


def test_files_of_one_run_appear_together_or_not_at_all(tmp_path: Path) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.nii.gz"
    one.write_text("old")
    with pytest.raises(RuntimeError), together():
        with atomic_path(one) as temporary:
            temporary.write_text("new")
        assert one.read_text() == "old"
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["one.csv"]
    assert one.read_text() == "old"
    with together():
        for path in (one, two):
            with atomic_path(path) as temporary:
                temporary.write_text("new")
        assert one.read_text() == "old" and not two.exists()
    assert one.read_text() == two.read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(RegkitError, match=r"could not write '.*gone/a\.csv'"), together():
        (tmp_path / "gone").mkdir()
        with atomic_path(one) as temporary:
            temporary.write_text("newer")
        with atomic_path(tmp_path / "gone" / "a.csv") as temporary:
            temporary.write_text("newer")
        temporary.unlink()
        (tmp_path / "gone").rmdir()
    with atomic_path(one) as temporary:  # after a group, files get their names at once again
        temporary.write_text("last")
    assert one.read_text() == "last"


def test_what_killed_runs_left_is_removed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from regkit.io.atomic import atomic_path\n"
        "with atomic_path(Path(sys.argv[1]) / 'out.nii.gz') as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".regkit-")
    other = tmp_path / left.name.replace(left.name.split("-")[1], "0badhost")  # another machine's
    other.write_text("half")
    alive = tmp_path / re.sub(r"-\d+-", f"-{os.getppid()}-", left.name)
    alive.write_text("half")
    with atomic_path(tmp_path / "next.csv") as temporary:
        temporary.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["next.csv", other.name, alive.name])


@pytest.mark.parametrize("after", range(8))
def test_a_run_that_is_killed_while_it_renames_is_finished_by_the_next(after: int, tmp_path: Path) -> None:
    names = ["one.nii.gz", "two.csv", "three.nrrd"]
    for name in names[:2]:
        (tmp_path / name).write_text("old")
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from regkit.io.atomic import atomic_path, together\n"
        "real, left = os.replace, [int(sys.argv[2])]\n"
        "def replace(*paths):\n"
        "    if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    left[0] -= 1; real(*paths)\n"
        "os.replace = replace\n"
        "with together():\n"
        "    for name in sys.argv[3:]:\n"
        "        with atomic_path(Path(sys.argv[1]) / name) as temporary: temporary.write_text('new')\n"
        "    with atomic_path(Path(sys.argv[1]) / 'folder') as temporary: temporary.mkdir()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(after), *names])
    assert done.returncode == (0 if after > 6 else -9)
    with atomic_path(tmp_path / "next.csv") as temporary:
        temporary.write_text("next")
    found = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
    # Before the list of what is to be renamed is there, nothing of it happens; from then on all of it.
    wanted = dict.fromkeys(names[:2], "old") if after == 0 else dict.fromkeys(names, "new")
    assert found == wanted | {"next.csv": "next"}
    assert (tmp_path / "folder").is_dir() == (after > 0)


def test_files_that_cannot_all_be_renamed_are_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.csv").write_text("old")
    real = os.replace

    def replace(old: Path, new: Path) -> None:
        if Path(new).name == "three.csv":
            raise OSError(28, "No space left on device")
        real(old, new)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(RegkitError, match=r"could not write '.*three\.csv': No space left"), together():
        for name in ("one.csv", "two.csv", "three.csv"):
            with atomic_path(tmp_path / name) as temporary:
                temporary.write_text("new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"one.csv": "old"}


def test_a_list_of_names_renames_nothing_but_a_dead_run_s_own(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for text in ('{"mine.txt": "a.csv"}', '{"x": "../b.csv"}', "[1]", "{", '{"mine.txt": 1}'):
        name = f".regkit-{_HOST}-{dead.pid}-0123456789ab"
        (tmp_path / "folder" / "mine.txt").write_text("mine")
        (tmp_path / "folder" / f"{name}.commit").write_text(text.replace('"x"', f'"{name}.csv"'))
        (tmp_path / "folder" / f"{name}.csv").write_text("left")
        with atomic_path(tmp_path / "folder" / "next.csv") as temporary:
            temporary.write_text("next")
        assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["mine.txt", "next.csv"]
        assert not (tmp_path / "b.csv").exists()
