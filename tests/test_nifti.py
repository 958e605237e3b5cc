"""NIfTI, Analyze and MGH: every kind of file where ITK or nibabel puts it, every kind of damage refused."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid
from regkit.io.images import Volume, load_image
from regkit.io.nifti import open_nifti

SIZE, SPACING = (6, 7, 8), (2.0, 2.5, 3.0)
LAS = np.diag([-2.0, 2.5, 3.0, 1.0])
PIXDIM, SROW_X = 80, 280  # bytes of the header of a NIfTI-1


@pytest.fixture
def values(rng: np.random.Generator) -> np.ndarray:
    """(x, y, z)."""
    return (rng.normal(size=SIZE) * 100 + 500).astype(np.float32)


def patch(path: Path, at: int, new: np.ndarray) -> Path:
    content = bytearray(path.read_bytes())
    content[at : at + new.nbytes] = new.tobytes()
    path.write_bytes(content)
    return path


def load(path: Path) -> Volume:
    return load_image(path, "image")


def test_the_place_is_the_one_that_itk_takes(rng: np.random.Generator, tmp_path: Path) -> None:
    """Over sforms and qforms of all codes, equal, a little or wholly different, in all units."""

    def affine() -> np.ndarray:
        matrix = np.eye(4)
        turn = np.diag(rng.choice([-1.0, 1.0], 3))
        if rng.random() < 0.7:
            turn = Rotation.from_rotvec(rng.normal(size=3) * 2).as_matrix() @ turn
        matrix[:3] = np.c_[turn * spacing, rng.uniform(-100, 100, 3)]
        return matrix

    path, compared = tmp_path / "image.nii", 0
    for _ in range(150):
        spacing = rng.uniform(0.5, 4, 3)
        sform = affine()
        qform = [sform, affine(), sform.copy()][rng.integers(3)]
        if qform is not sform:
            sform[:3] += rng.normal(size=(3, 4)) * 10.0 ** -rng.integers(3, 8)
        image = nib.Nifti1Image(np.zeros(SIZE, np.float32), None)
        image.header.set_sform(sform, int(rng.integers(0, 5)))
        image.header.set_qform(qform, int(rng.integers(0, 5)))
        image.header["pixdim"][1:4] = spacing
        image.header.set_xyzt_units(["mm", "micron", "meter", "unknown"][rng.integers(4)])
        nib.save(image, path)
        itk = sitk.ImageFileReader()
        itk.SetFileName(str(path))
        try:
            itk.ReadImageInformation()
        except RuntimeError:  # what ITK refuses, regkit does or straightens
            continue
        wanted = Grid(itk.GetSize(), itk.GetSpacing(), itk.GetOrigin(), itk.GetDirection())
        with open_nifti(path) as found:
            assert Grid.from_ras_affine(found.shape, found.affine).same_as(wanted, 5e-3)
        compared += 1
    assert compared > 100


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("form", ["sform", "qform"])
def test_negative_pixdim_runs_as_its_sform_or_qform(
    values: np.ndarray, axis: int, form: str, tmp_path: Path
) -> None:
    image = nib.Nifti1Image(values, LAS)
    if form == "qform":
        image.header["sform_code"] = 0
        image.header.set_qform(LAS, 1)
    nib.save(image, tmp_path / "image.nii")
    right = load(tmp_path / "image.nii")
    patch(tmp_path / "image.nii", PIXDIM + 4 * axis, np.float32([-SPACING[axis]]))
    with pytest.warns(UserWarning, match=r"image\.nii': its pixdim is negative, which is ignored"):
        volume = load(tmp_path / "image.nii")
    assert volume.grid == right.grid
    np.testing.assert_array_equal(volume.array, right.array)


KINDS: dict[str, Callable[[np.ndarray, Path], object]] = {
    "2.nii": lambda a, p: nib.save(nib.Nifti2Image(a, LAS), p),
    "2.nii.gz": lambda a, p: nib.save(nib.Nifti2Image(a, LAS), p),
    "pair.hdr": lambda a, p: nib.save(nib.Nifti1Pair(a, LAS), p),
    "pair.img": lambda a, p: nib.save(nib.Nifti1Pair(a, LAS), p),
    "pair2.img": lambda a, p: nib.save(nib.Nifti2Pair(a, LAS), p),
    "pair.hdr.gz": lambda a, p: nib.save(nib.Nifti1Pair(a, LAS), p),
    "big.nii": lambda a, p: nib.save(nib.Nifti1Image(a, LAS, nib.Nifti1Header(endianness=">")), p),
    "big.hdr": lambda a, p: nib.save(nib.Nifti1Pair(a, LAS, nib.Nifti1Header(endianness=">")), p),
    "head.mgh": lambda a, p: nib.save(nib.MGHImage(a, LAS), p),
    "head.mgz": lambda a, p: nib.save(nib.MGHImage(a, LAS), p),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_comes_in_alike(values: np.ndarray, name: str, tmp_path: Path) -> None:
    KINDS[name](values, tmp_path / name)
    volume = load(tmp_path / name)
    np.testing.assert_array_equal(volume.array, values.T)
    assert volume.array.dtype.isnative
    assert volume.grid.same_as(Grid.from_ras_affine(SIZE, LAS), 1e-5)


def test_a_plain_file_with_the_name_of_a_compressed_one(values: np.ndarray, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(values, LAS), tmp_path / "image.nii")
    (tmp_path / "image.nii").rename(tmp_path / "plain.nii.gz")
    np.testing.assert_array_equal(load(tmp_path / "plain.nii.gz").array, values.T)
    (tmp_path / "packed.nii").write_bytes(gzip.compress((tmp_path / "plain.nii.gz").read_bytes()))
    np.testing.assert_array_equal(load(tmp_path / "packed.nii").array, values.T)


@pytest.mark.parametrize("oblique", [False, True])
def test_mgh_lies_where_nibabel_puts_it(values: np.ndarray, oblique: bool, tmp_path: Path) -> None:
    affine = LAS.copy()
    if oblique:
        affine[:3, :3] = Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix() * SPACING
        affine[:3, 3] = (13, -40, 8)
    for dtype in (np.uint8, np.int16, np.int32, np.float32):
        nib.save(nib.MGHImage(values.astype(dtype), affine), tmp_path / "head.mgz")
        volume = load(tmp_path / "head.mgz")
        assert volume.grid.same_as(Grid.from_ras_affine(SIZE, nib.load(tmp_path / "head.mgz").affine), 1e-4)
        np.testing.assert_array_equal(volume.array, values.astype(dtype).T)


def test_an_analyze_slope_of_spm_is_applied(tmp_path: Path) -> None:
    whole = np.arange(np.prod(SIZE)).reshape(SIZE)
    image = nib.Spm99AnalyzeImage(whole * 0.25, None)
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "spm.hdr")
    assert nib.load(tmp_path / "spm.hdr").dataobj.slope != 1
    with pytest.warns(UserWarning, match="which side is left"):
        volume = load(tmp_path / "spm.hdr")
    np.testing.assert_allclose(volume.array, whole.T * 0.25, atol=0.01)


def test_without_orientation_there_is_a_warning(values: np.ndarray, tmp_path: Path) -> None:
    image = nib.Nifti1Image(values, None)
    image.header.set_zooms(SPACING)
    nib.save(image, tmp_path / "codeless.nii")
    nib.save(nib.AnalyzeImage(values, LAS), tmp_path / "analyze.hdr")
    for name, said in (
        ("codeless.nii", "the code 0"),
        ("analyze.hdr", r"Analyze 7\.5"),
        ("analyze.img", "7.5"),
    ):
        with pytest.warns(
            UserWarning, match=f"image '.*{name}': .*{said}.* which side is left; it is taken for LPS"
        ):
            volume = load(tmp_path / name)
        assert volume.grid.same_as(Grid.from_sitk(sitk.ReadImage(str(tmp_path / name))), 1e-5)
        np.testing.assert_array_equal(volume.array, values.T)


@pytest.mark.parametrize("name", ["image.nii", "pair.hdr"])
def test_spacings_are_checked_in_pairs_as_in_single_files(
    values: np.ndarray, name: str, tmp_path: Path
) -> None:
    kind = nib.Nifti1Image if name.endswith(".nii") else nib.Nifti1Pair
    nib.save(kind(values, LAS), tmp_path / name)
    patch(tmp_path / name, PIXDIM, np.float32([4]))
    with pytest.raises(RegkitError, match=r"two things: spacing of \[4\.0, 2\.5, 3\.0\] in pixdim"):
        load(tmp_path / name)
    for spacing in (0, np.nan, np.inf):
        patch(tmp_path / name, PIXDIM, np.float32([spacing]))
        with pytest.raises(RegkitError, match=rf"{name}': its voxel spacing is \("):
            load(tmp_path / name)


@pytest.mark.parametrize("name", ["pair.img", "pair.img.gz"])
def test_a_pair_without_its_last_voxels_is_refused(values: np.ndarray, name: str, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(values, LAS), tmp_path / "whole.hdr")
    header = (tmp_path / "whole.hdr").read_bytes()
    half = (tmp_path / "whole.img").read_bytes()[:-600]
    pack = gzip.compress if name.endswith(".gz") else bytes
    (tmp_path / name.replace("img", "hdr")).write_bytes(pack(header))
    (tmp_path / name).write_bytes(pack(half))
    for given in (name, name.replace("img", "hdr")):
        with pytest.raises(RegkitError, match="truncated or damaged"):
            load(tmp_path / given)
    (tmp_path / name).unlink()
    with pytest.raises(RegkitError, match=r"pair\.hdr.* is one of a pair of files, and 'pair\.img'"):
        load(tmp_path / name.replace("img", "hdr"))


DAMAGE: dict[str, tuple[int, np.ndarray, str]] = {
    "endless sform": (
        SROW_X + 16,
        np.float32([1e10, -1.5, np.inf, 0]),
        "not finite",
    ),  # ITK never returns
    "voxels before the header": (108, np.float32([8]), "the voxels begin at byte 8"),
    "voxels at no byte": (108, np.float32([np.nan]), "the voxels begin at byte nan"),
    "voxels far away": (108, np.float32([1e30]), "the voxels begin at byte 1e"),
    "no axes": (40, np.int16([0]), "0 axes"),
    "many axes": (40, np.int16([70]), "70 axes"),
    "negative sides": (42, np.int16([-6]), "3 axes of"),
    "type of none": (70, np.int16([3]), "damaged"),
    "another magic": (344, np.frombuffer(b"n+9\0", np.uint8), "not an image"),
    "of a pair": (344, np.frombuffer(b"ni1\0", np.uint8), "one half of a pair"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_headers_are_refused(values: np.ndarray, case: str, tmp_path: Path) -> None:
    at, new, message = DAMAGE[case]
    nib.save(nib.Nifti1Image(values, LAS), tmp_path / "image.nii")
    patch(tmp_path / "image.nii", at, new)
    with pytest.raises(RegkitError, match=rf"^image '.*image\.nii'.*{message}"):
        load(tmp_path / "image.nii")


def test_the_damaged_header_that_hung_itk(shared_dir: Path) -> None:
    with pytest.raises(RegkitError, match="not finite"):
        load(shared_dir / "data" / "cases" / "hang_min.nii")


def test_large_whole_numbers_are_kept(tmp_path: Path) -> None:
    ids = np.resize(np.array([16777217, 3000000001, 2**40 + 1]), SIZE)
    nib.save(nib.Nifti1Image(ids, LAS, dtype=np.int64), tmp_path / "ids.nii.gz")
    with open_nifti(tmp_path / "ids.nii.gz") as found:
        np.testing.assert_array_equal(found.read(), ids)
