"""Each file format read by somebody else's code, on fixed and moving grids that agree in nothing."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import map_coordinates
from warp_cases import FIXED, MOVING, affine_map, blob, centre_of_mass, smooth_warp, texture

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid, transform_points
from regkit.io.formats import from_learn2reg, read_linear, to_learn2reg, write_linear, write_warp
from regkit.io.images import Volume
from regkit.warp import Warp, contains

# Every way to write a warp: file name and format.
FILES = [
    ("warp.nii", "itk"),
    ("warp.nii.gz", "itk"),
    ("warp.mha", "itk"),
    ("warp.nrrd", "itk"),
    ("warp.nii.gz", "dispvect"),
    ("warp.h5", "h5"),
    ("warp.npz", "l2r"),
    ("warp.nii.gz", "l2r"),
]
WITH_GRID = FILES[:6]


def _itk_transform(path: Path) -> sitk.Transform:
    """The file as a user of SimpleITK opens it, without regkit."""
    if path.suffix == ".h5":
        return sitk.ReadTransform(str(path))
    return sitk.DisplacementFieldTransform(sitk.ReadImage(str(path), sitk.sitkVectorFloat64))


def _learn2reg_array(path: Path) -> np.ndarray:
    """The file as the challenge's evaluation opens it."""
    if path.suffix == ".npz":
        archive = np.load(path)
        return archive[archive.files[0]]
    return nib.load(path).get_fdata()


def _warped_by_scipy(moving: np.ndarray, displacement: np.ndarray, order: int) -> np.ndarray:
    """moving (x, y, z) at i + d(i), as the challenge does it; (x, y, z)."""
    identity = np.stack(np.meshgrid(*[np.arange(n) for n in displacement.shape[:3]], indexing="ij"))
    return map_coordinates(
        moving.astype(np.float64), identity + np.moveaxis(displacement, -1, 0), order=order
    )


def _share_inside(warp: Warp, margin_mm: float) -> np.ndarray:
    """How much of a cube about each voxel's target lies in the moving image: 0 outside, 1 well inside."""
    target = warp.transform_points(FIXED.world_points())
    corners = margin_mm * (2 * np.array(list(np.ndindex(2, 2, 2))) - 1)
    return np.mean([contains(MOVING, target + corner) for corner in corners], axis=0)


# --- other programs read our files


@pytest.mark.parametrize(("name", "format"), WITH_GRID)
def test_simpleitk_resamples_through_the_file_as_apply_does(tmp_path: Path, name: str, format: str) -> None:
    warp, moving = smooth_warp(), MOVING.to_sitk(texture(MOVING))
    write_warp(warp, tmp_path / name, format)
    transform = _itk_transform(tmp_path / name)
    moved = sitk.GetArrayFromImage(sitk.Resample(moving, FIXED.blank(), transform, sitk.sitkLinear, -1000.0))
    ours = sitk.GetArrayFromImage(warp.apply(moving, default=-1000.0))
    # On the moving image's outer face a rounding by 1e-5 mm decides between a value and the default.
    share = _share_inside(warp, 0.01)
    decided = (share == 0) | (share == 1)
    assert (share == 1).mean() > 0.5 and decided.mean() > 0.99
    np.testing.assert_allclose(ours[decided], moved[decided], atol=1e-4 * 2000)


@pytest.mark.parametrize(("name", "format"), WITH_GRID)
def test_antspyx_resamples_through_the_file_as_apply_does(tmp_path: Path, name: str, format: str) -> None:
    ants: ModuleType = pytest.importorskip("ants")
    warp, moving = smooth_warp(), MOVING.to_sitk(texture(MOVING))
    sitk.WriteImage(moving, str(tmp_path / "moving.nii.gz"))
    sitk.WriteImage(FIXED.blank(), str(tmp_path / "fixed.nii.gz"))
    write_warp(warp, tmp_path / name, format)
    moved = ants.apply_transforms(
        ants.image_read(str(tmp_path / "fixed.nii.gz")),
        ants.image_read(str(tmp_path / "moving.nii.gz")),
        [str(tmp_path / name)],
        interpolator="linear",
    )
    ours = sitk.GetArrayFromImage(warp.apply(moving))
    inside = _share_inside(warp, 4) == 1
    assert inside.sum() > 1500
    np.testing.assert_allclose(moved.numpy().T[inside], ours[inside], atol=1e-4 * 2000)


def test_learn2reg_files_warp_arrays_as_nibabel_gives_them(tmp_path: Path) -> None:
    warp, moving = smooth_warp(), texture(MOVING)
    nib.save(nib.Nifti1Image(moving.T, MOVING.ras_affine), tmp_path / "moving.nii.gz")
    array = nib.load(tmp_path / "moving.nii.gz").get_fdata()
    ours = warp.apply(Volume(moving, MOVING)).array
    inside = _share_inside(warp, 4) == 1
    for name in ("warp.npz", "warp.nii.gz"):
        write_warp(warp, tmp_path / name, "l2r")
        displacement = _learn2reg_array(tmp_path / name)
        assert displacement.shape == (26, 22, 17, 3)
        np.testing.assert_allclose(_warped_by_scipy(array, displacement, 1).T[inside], ours[inside], atol=0.1)
    archive = np.load(tmp_path / "warp.npz")
    assert len(archive.files) == 1 and archive[archive.files[0]].dtype == np.float32


@pytest.mark.parametrize(("name", "format"), FILES)
def test_a_known_shift_brings_a_blob_to_its_place(tmp_path: Path, name: str, format: str) -> None:
    shift = np.array([3.0, -5.0, 8.0])
    place = FIXED.centre + shift / 2
    moving = blob(MOVING, place, sigma=3)
    write_warp(Warp(np.broadcast_to(shift, (*FIXED.shape, 3)), FIXED, MOVING), tmp_path / name, format)
    if format == "l2r":
        moved = _warped_by_scipy(moving.T, _learn2reg_array(tmp_path / name), 1).T
    else:
        transform = _itk_transform(tmp_path / name)
        moved = sitk.GetArrayFromImage(sitk.Resample(MOVING.to_sitk(moving), FIXED.blank(), transform))
    np.testing.assert_allclose(centre_of_mass(moved, FIXED), place - shift, atol=0.05)


@pytest.mark.parametrize(
    ("format", "code", "sign"), [("itk", 1007, [1, 1, 1]), ("dispvect", 1006, [-1, -1, 1])]
)
def test_nifti_header_and_values(tmp_path: Path, format: str, code: int, sign: list[int]) -> None:
    warp = smooth_warp()
    write_warp(warp, tmp_path / "warp.nii.gz", format)
    image = nib.load(tmp_path / "warp.nii.gz")
    header = image.header
    assert header["dim"].tolist() == [5, 26, 22, 17, 1, 3, 1, 1]
    assert (header["intent_code"], header["intent_name"]) == (code, b"")
    assert (header["sform_code"], header["qform_code"], header["xyzt_units"]) == (1, 1, 10)
    assert header.get_data_dtype() == np.float32
    np.testing.assert_allclose(image.get_sform(), FIXED.ras_affine, atol=1e-4)
    np.testing.assert_allclose(image.get_qform(), FIXED.ras_affine, atol=1e-4)
    np.testing.assert_array_equal(image.get_fdata()[:, :, :, 0] * sign, warp.field.transpose(2, 1, 0, 3))


def test_h5_holds_a_composite_of_one_field(tmp_path: Path) -> None:
    write_warp(smooth_warp(), tmp_path / "warp.h5")
    transform = sitk.ReadTransform(str(tmp_path / "warp.h5"))
    assert isinstance(transform, sitk.CompositeTransform)
    assert [transform.GetNthTransform(n).GetName() for n in range(transform.GetNumberOfTransforms())] == [
        "DisplacementFieldTransform"
    ]


def test_learn2reg_counts_voxels_of_the_moving_grid() -> None:
    warp = smooth_warp()
    displacement = to_learn2reg(warp)
    index = np.array([3, 17, 9])
    target = warp.transform_points(transform_points(FIXED.index_to_world, index))
    expected = transform_points(MOVING.world_to_index, target) - index
    np.testing.assert_allclose(displacement[3, 17, 9], expected, atol=1e-4)
    np.testing.assert_allclose(from_learn2reg(displacement, FIXED, MOVING).field, warp.field, atol=1e-4)


# --- reading


@pytest.mark.parametrize(("name", "format"), FILES)
@pytest.mark.parametrize(("second_name", "second_format"), FILES)
def test_round_trip_through_any_two_formats(
    tmp_path: Path, name: str, format: str, second_name: str, second_format: str
) -> None:
    warp = smooth_warp()
    write_warp(warp, tmp_path / name, format)
    once = Warp.load(tmp_path / name, FIXED, MOVING)
    (tmp_path / "second").mkdir()
    write_warp(once, tmp_path / "second" / second_name, second_format)
    twice = Warp.load(tmp_path / "second" / second_name, FIXED, MOVING)
    assert twice.grid == FIXED and twice.moving_grid == MOVING
    np.testing.assert_allclose(twice.field, warp.field, atol=1e-4)
    assert {p.name for p in tmp_path.iterdir()} == {name, "second"}  # no temporary file is left


@pytest.mark.parametrize(("name", "format"), WITH_GRID)
def test_files_with_a_grid_need_none_given(tmp_path: Path, name: str, format: str) -> None:
    warp = smooth_warp()
    write_warp(warp, tmp_path / name, format)
    again = Warp.load(tmp_path / name)
    assert again.grid.same_as(FIXED, 1e-3) and again.moving_grid is None
    np.testing.assert_allclose(again.field, warp.field, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "format"),
    [("w.nii.gz", "itk"), ("w.nrrd", "itk"), ("w.mha", "itk"), ("w.h5", "h5"), ("w.npz", "l2r")],
)
def test_the_suffix_sets_the_format(tmp_path: Path, name: str, format: str) -> None:
    warp = smooth_warp()
    write_warp(warp, tmp_path / name)
    write_warp(warp, tmp_path / f"said_{name}", format)
    for file in (name, f"said_{name}"):
        np.testing.assert_allclose(Warp.load(tmp_path / file, FIXED, MOVING).field, warp.field, atol=1e-4)


def test_another_fixed_grid_is_sampled_as_itk_does(tmp_path: Path) -> None:
    warp, other = smooth_warp(), FIXED.working(4.0)
    write_warp(warp, tmp_path / "warp.nii.gz")
    again = Warp.load(tmp_path / "warp.nii.gz", other)
    itk = warp.to_sitk()
    points = other.world_points()[::3, ::3, ::3].reshape(-1, 3)
    expected = [itk.TransformPoint(p) for p in points.tolist()]
    assert again.grid == other
    np.testing.assert_allclose(points + again.field[::3, ::3, ::3].reshape(-1, 3), expected, atol=1e-3)


def test_composites_apply_the_last_transform_first(tmp_path: Path) -> None:
    warp = smooth_warp(linear=np.eye(4), mm=5)
    matrix = affine_map(20, (7, -4, 6))
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(matrix[:3, :3].ravel().tolist())
    affine.SetTranslation(matrix[:3, 3].tolist())
    points = FIXED.world_points()
    sitk.WriteTransform(sitk.CompositeTransform([affine, warp.to_sitk()]), str(tmp_path / "ants.h5"))
    # As ANTs writes them: the field acts first, so it lies on the fixed grid and none need be given.
    expected = transform_points(matrix, warp.transform_points(points)) - points
    for fixed in (None, FIXED):
        again = Warp.load(tmp_path / "ants.h5", fixed)
        assert again.grid.same_as(FIXED)
        np.testing.assert_allclose(again.field, expected, atol=1e-3)

    sitk.WriteTransform(sitk.CompositeTransform([warp.to_sitk(), affine]), str(tmp_path / "reverse.tfm"))
    with pytest.raises(RegkitError, match=r"reverse.tfm: .*--fixed"):
        Warp.load(tmp_path / "reverse.tfm")
    again = Warp.load(tmp_path / "reverse.tfm", FIXED)
    moved = transform_points(matrix, points)
    inside = contains(FIXED, moved)  # ITK moves nothing beyond the field
    np.testing.assert_allclose(
        (points + again.field)[inside], warp.transform_points(moved)[inside], atol=1e-3
    )


def test_a_linear_file_becomes_a_warp_on_the_fixed_grid(tmp_path: Path) -> None:
    matrix = affine_map(15, (1, 2, 3))
    write_linear(matrix, tmp_path / "affine.tfm")
    points = FIXED.world_points()
    warp = Warp.load(tmp_path / "affine.tfm", FIXED)
    np.testing.assert_allclose(points + warp.field, transform_points(matrix, points), atol=1e-3)
    with pytest.raises(RegkitError, match="--fixed"):
        Warp.load(tmp_path / "affine.tfm")


def test_learn2reg_half_precision_at_full_resolution_is_read(tmp_path: Path) -> None:
    warp = smooth_warp()
    np.savez(tmp_path / "disp.npz", anything=to_learn2reg(warp).astype(np.float16))
    again = Warp.load(tmp_path / "disp.npz", FIXED, MOVING)
    assert again.field.dtype == np.float32
    np.testing.assert_allclose(again.field, warp.field, atol=0.1)


# --- what is refused


def _save_nifti(path: Path, shape: tuple[int, ...], intent: int) -> None:
    image = nib.Nifti1Image(np.zeros(shape, dtype=np.float32), np.eye(4))
    image.header["intent_code"] = intent
    nib.save(image, path)


@pytest.mark.parametrize(
    ("shape", "intent", "message"),
    [
        ((26, 22, 17, 1, 3), 0, "intent code 0, which does not tell LPS from RAS"),
        ((26, 22, 17, 1, 3), 1005, "set it to 1007 if they are LPS"),
        ((26, 22, 17, 3), 1007, "4-D field .* with intent code 1007"),
        ((26, 22, 17, 3), 1006, "4-D field .* with intent code 1006"),
        ((26, 22, 17), 0, r"shape \(26, 22, 17\), not a warp"),
        ((26, 22, 17, 2, 3), 1007, "not a warp"),
        ((26, 22, 16, 3), 0, r"has shape \(26, 22, 17, 3\), got \(26, 22, 16, 3\)"),
        ((3, 13, 11, 8), 0, "half-resolution layout of Learn2Reg 2020/21"),
    ],
)
def test_ambiguous_nifti_files_are_refused(
    tmp_path: Path, shape: tuple[int, ...], intent: int, message: str
) -> None:
    _save_nifti(tmp_path / "file.nii.gz", shape, intent)
    with pytest.raises(RegkitError, match=f"file.nii.gz: .*{message}"):
        Warp.load(tmp_path / "file.nii.gz", FIXED, MOVING)


@pytest.mark.parametrize("grids", [(None, None), (FIXED, None), (None, MOVING)])
@pytest.mark.parametrize("name", ["disp.npz", "disp.nii.gz"])
def test_learn2reg_files_need_both_grids(
    tmp_path: Path, name: str, grids: tuple[Grid | None, Grid | None]
) -> None:
    write_warp(smooth_warp(), tmp_path / name, "l2r")
    with pytest.raises(RegkitError, match=f"{name}: .*--fixed and --moving"):
        Warp.load(tmp_path / name, *grids)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros((3, 13, 11, 8), dtype=np.float16)}, "half-resolution layout"),
        ({"a": np.zeros((22, 26, 17, 3))}, r"has shape \(26, 22, 17, 3\), got \(22, 26, 17, 3\)"),
        ({"a": np.zeros((26, 22, 17))}, "got"),
        ({"a": np.zeros(3), "b": np.zeros(3)}, "exactly one array, got 2"),
        ({}, "exactly one array, got 0"),
        ({"a": np.array([{"code": "runs"}], dtype=object)}, "cannot be read as .npz"),
        ({"a": np.full((26, 22, 17, 3), np.nan)}, "not a number"),
    ],
)
def test_unusable_npz_files_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "disp.npz", **arrays)
    with pytest.raises(RegkitError, match=f"disp.npz: .*{message}"):
        Warp.load(tmp_path / "disp.npz", FIXED, MOVING)


@pytest.mark.parametrize(
    "name",
    ["warp.nii.gz", "warp.nii", "warp.mha", "warp.nrrd", "warp.npz", "warp.h5", "warp.tfm", "warp.mat"],
)
@pytest.mark.parametrize("content", [b"", b"not what the name says, at all" * 20])
def test_damaged_files_are_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RegkitError, match=f"{name}: "):
        Warp.load(tmp_path / name, FIXED, MOVING)


@pytest.mark.parametrize(("name", "format"), FILES)
def test_truncated_files_are_refused(tmp_path: Path, name: str, format: str) -> None:
    write_warp(smooth_warp(), tmp_path / name, format)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RegkitError, match=f"{name}: "):
        Warp.load(tmp_path / name, FIXED, MOVING)


def test_a_gzip_cut_at_a_block_is_refused(tmp_path: Path) -> None:
    write_warp(smooth_warp(), tmp_path / "warp.nii", "itk")
    raw = (tmp_path / "warp.nii").read_bytes()
    (tmp_path / "warp.nii.gz").write_bytes(gzip.compress(raw[: len(raw) // 2]))
    with pytest.raises(RegkitError, match="truncated or damaged"):
        Warp.load(tmp_path / "warp.nii.gz")


def test_what_is_missing_or_no_warp_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegkitError, match=r"absent\.nii\.gz: no such file"):
        Warp.load(tmp_path / "absent.nii.gz")
    (tmp_path / "warp.pkl").write_bytes(b"1")
    with pytest.raises(RegkitError, match=r"'\.pkl' is not a suffix of a warp"):
        Warp.load(tmp_path / "warp.pkl")
    sitk.WriteImage(FIXED.blank(), str(tmp_path / "image.mha"))
    with pytest.raises(RegkitError, match=r"a 3-D image of 1 component"):
        Warp.load(tmp_path / "image.mha")
    sitk.WriteTransform(sitk.Euler2DTransform(), str(tmp_path / "flat.tfm"))
    with pytest.raises(RegkitError, match=r"flat\.tfm: a 2-D transform"):
        Warp.load(tmp_path / "flat.tfm", FIXED)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"left-posterior-superior", b"right-anterior-superior", "its space is 'right-anterior-superior'"),
        (b"kinds:", b"displacement field type:=modeling\nkinds:", "a 'modeling' displacement field"),
    ],
)
def test_nrrd_fields_of_another_meaning_are_refused(
    tmp_path: Path, old: bytes, new: bytes, message: str
) -> None:
    write_warp(smooth_warp(), tmp_path / "warp.nrrd")
    content = (tmp_path / "warp.nrrd").read_bytes()
    assert old in content
    (tmp_path / "warp.nrrd").write_bytes(content.replace(old, new, 1))
    with pytest.raises(RegkitError, match=message):
        Warp.load(tmp_path / "warp.nrrd")
    resampling = content.replace(b"kinds:", b"displacement field type:=resampling\nkinds:", 1)
    (tmp_path / "warp.nrrd").write_bytes(resampling)
    np.testing.assert_array_equal(Warp.load(tmp_path / "warp.nrrd").field, smooth_warp().field)


def test_writing_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    warp = smooth_warp()
    for name, format, message in [
        ("warp.nii.gz", "fsl", "'fsl' is unknown: use one of itk, dispvect, h5, l2r"),
        ("warp.npz", "itk", "must end in .nii or .nii.gz or .mha or .nrrd"),
        ("warp.mha", "dispvect", "must end in .nii or .nii.gz$"),
        ("warp.tfm", None, "must end in"),
        ("absent/warp.nii.gz", None, "is not a folder"),
    ]:
        with pytest.raises(RegkitError, match=message):
            write_warp(warp, tmp_path / name, format)
    with pytest.raises(RegkitError, match="--moving"):
        write_warp(smooth_warp(moving=None), tmp_path / "warp.npz")
    assert not list(tmp_path.iterdir())


# --- linear transforms


def _euler() -> sitk.Transform:
    return sitk.Euler3DTransform((10.0, -20.0, 30.0), 0.3, -0.2, 0.5, (4.0, 5.0, -6.0))


def _similarity() -> sitk.Transform:
    return sitk.Similarity3DTransform(1.3, (0.0, 0.6, 0.8), 0.7, (1.0, 2.0, 3.0), (50.0, 60.0, -70.0))


def _affine() -> sitk.Transform:
    return sitk.AffineTransform(
        [1.1, 0.2, 0, -0.1, 0.9, 0.3, 0.05, 0, 1.2], (3.0, -4.0, 5.0), (100.0, 0.0, -50.0)
    )


LINEAR: list[Callable[[], sitk.Transform]] = [
    _euler,
    _similarity,
    _affine,
    lambda: sitk.VersorRigid3DTransform((0.0, 0.6, 0.8), 0.4, (1.0, 2.0, 3.0), (9.0, 8.0, 7.0)),
    lambda: sitk.TranslationTransform(3, (1.0, -2.0, 300.0)),
    lambda: sitk.ScaleTransform(3, (0.5, 2.0, 1.5)),
    lambda: sitk.Transform(3, sitk.sitkIdentity),
    lambda: sitk.CompositeTransform([_euler(), _similarity(), _affine()]),
]


@pytest.mark.parametrize(
    ("make", "suffix"),
    # ITK writes no composite as .mat.
    [(m, s) for m in LINEAR for s in (".tfm", ".txt", ".h5", ".mat") if (m, s) != (LINEAR[-1], ".mat")],
)
def test_read_linear_maps_points_as_itk_does(
    tmp_path: Path, make: Callable[[], sitk.Transform], suffix: str, rng: np.random.Generator
) -> None:
    transform = make()
    sitk.WriteTransform(transform, str(tmp_path / f"linear{suffix}"))
    matrix = read_linear(tmp_path / f"linear{suffix}")
    points = rng.uniform(-300, 300, (20, 3))
    expected = [transform.TransformPoint(p) for p in points.tolist()]
    np.testing.assert_allclose(transform_points(matrix, points), expected, atol=1e-6)


def test_composites_of_linear_transforms_apply_the_last_first(tmp_path: Path) -> None:
    sitk.WriteTransform(sitk.CompositeTransform([_euler(), _affine()]), str(tmp_path / "both.tfm"))
    parts = []
    for part in (_euler(), _affine()):
        sitk.WriteTransform(part, str(tmp_path / "part.tfm"))
        parts.append(read_linear(tmp_path / "part.tfm"))
    np.testing.assert_allclose(read_linear(tmp_path / "both.tfm"), parts[0] @ parts[1], atol=1e-9)
    assert not np.allclose(parts[1] @ parts[0], parts[0] @ parts[1], atol=1)


def test_a_matlab_transform_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    # ITK would take what is missing from memory: another matrix in each process.
    sitk.WriteTransform(_affine(), str(tmp_path / "whole.mat"))
    content = (tmp_path / "whole.mat").read_bytes()
    for damaged in (content[:-20], content[:60], content[:15], content + b"\0\0"):
        (tmp_path / "cut.mat").write_bytes(damaged)
        with pytest.raises(RegkitError, match="damaged"):
            read_linear(tmp_path / "cut.mat")
    (tmp_path / "cut.mat").write_bytes(b"text\n" * 20)
    with pytest.raises(RegkitError, match="holds no transform"):
        read_linear(tmp_path / "cut.mat")


@pytest.mark.parametrize("suffix", [".tfm", ".txt", ".mat", ".h5"])
def test_written_matrices_come_back_and_itk_reads_them(tmp_path: Path, suffix: str) -> None:
    matrix = affine_map(33, (100, -200, 5)) @ np.diag([1.1, 0.9, 1.3, 1])
    write_linear(matrix, tmp_path / f"linear{suffix}")
    np.testing.assert_allclose(read_linear(tmp_path / f"linear{suffix}"), matrix, atol=1e-9)
    itk = sitk.ReadTransform(str(tmp_path / f"linear{suffix}"))
    np.testing.assert_allclose(
        itk.TransformPoint((10.0, 20.0, 30.0)), transform_points(matrix, [10, 20, 30]), atol=1e-9
    )


def test_matrices_of_ants_are_read_and_ours_are_read_by_ants(tmp_path: Path) -> None:
    ants: ModuleType = pytest.importorskip("ants")
    point = np.array([10.0, -40.0, 77.0])
    theirs = ants.create_ants_transform(
        transform_type="AffineTransform", matrix=np.array([[1.1, 0.2, 0], [-0.1, 0.9, 0.3], [0, 0.1, 1.2]]),
        translation=(3, -4, 5), center=(20, 30, 40),
    )  # fmt: skip
    ants.write_transform(theirs, str(tmp_path / "theirs.mat"))
    moved = transform_points(read_linear(tmp_path / "theirs.mat"), point)
    np.testing.assert_allclose(moved, theirs.apply_to_point(point.tolist()), atol=1e-3)
    matrix = affine_map(33, (100, -200, 5))
    for name in ("ours.mat", "ours.tfm"):
        write_linear(matrix, tmp_path / name)
        ours = ants.read_transform(str(tmp_path / name))
        np.testing.assert_allclose(
            ours.apply_to_point(point.tolist()), transform_points(matrix, point), atol=1e-3
        )


def test_linear_files_that_are_not_are_refused(tmp_path: Path) -> None:
    write_warp(smooth_warp(), tmp_path / "warp.h5")
    with pytest.raises(RegkitError, match=r"warp.h5: .*not linear; give a rigid or affine transform"):
        read_linear(tmp_path / "warp.h5")
    sitk.WriteTransform(
        sitk.CompositeTransform([_affine(), smooth_warp().to_sitk()]), str(tmp_path / "mixed.h5")
    )
    with pytest.raises(RegkitError, match="not linear"):
        read_linear(tmp_path / "mixed.h5")
    sitk.WriteTransform(sitk.ScaleTransform(3, (1.0, 0.0, 1.0)), str(tmp_path / "flat.tfm"))
    with pytest.raises(RegkitError, match=r"flat\.tfm: the matrix is singular"):
        read_linear(tmp_path / "flat.tfm")
    with pytest.raises(RegkitError, match="no such file"):
        read_linear(tmp_path / "absent.tfm")
    write_warp(smooth_warp(), tmp_path / "warp.nii.gz")
    with pytest.raises(RegkitError, match=r"is read from \.h5, .hdf5, .tfm, .txt, .mat"):
        read_linear(tmp_path / "warp.nii.gz")
    for matrix, message in [
        (np.eye(3), "4x4"),
        (np.full((4, 4), np.nan), "finite"),
        (np.ones((4, 4)), "affine"),
        (np.diag([1.0, 0, 1, 1]), "singular"),
    ]:
        with pytest.raises(RegkitError, match=message):
            write_linear(matrix, tmp_path / "out.tfm")
    with pytest.raises(RegkitError, match="must end in"):
        write_linear(np.eye(4), tmp_path / "out.lta")
