"""Fields and matrices of other tools, written by the tools' definitions on grids that agree in nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from warp_cases import FIXED, MOVING, affine_map, blob, centre_of_mass, smooth_warp

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid, transform_points
from regkit.io.formats import read_linear, write_linear, write_warp
from regkit.io.images import Volume
from regkit.warp import Warp

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
LPS_RAS = np.array([-1.0, -1.0, 1.0])


def mirrored(grid: Grid) -> Grid:
    """The same field of view with its first axis stored the other way round."""
    direction = np.reshape(grid.direction, (3, 3)).copy()
    direction[:, 0] *= -1
    last = transform_points(grid.index_to_world, (grid.size[0] - 1, 0, 0))
    return replace(grid, origin=tuple(last), direction=tuple(direction.ravel()))


def indices(grid: Grid) -> np.ndarray:
    """(x, y, z, 3), as nibabel's arrays have their axes."""
    return np.stack(np.meshgrid(*map(np.arange, grid.size), indexing="ij"), axis=-1)


def ras_at(grid: Grid) -> np.ndarray:
    """RAS mm of every voxel, (x, y, z, 3), by nibabel's affine."""
    return nib.affines.apply_affine(grid.ras_affine, indices(grid))


def save(
    path: Path,
    vectors: np.ndarray,
    grid: Grid = FIXED,
    *,
    intent: int = 1007,
    name: str = "",
    p1: float = 0,
    description: str = "",
    notes: bytes = b"",
    four: bool = False,
) -> Path:
    """A NIfTI field of vectors (x, y, z, 3)."""
    array = vectors if four else vectors[:, :, :, None]
    image = nib.Nifti1Image(array.astype(np.float32), grid.ras_affine)
    image.header["qform_code"] = 1
    image.set_qform(grid.ras_affine, 1)
    image.set_sform(grid.ras_affine, 1)
    image.header.set_xyzt_units("mm")
    image.header["intent_code"], image.header["intent_name"] = intent, name.encode()
    image.header["intent_p1"], image.header["descrip"] = p1, description.encode()
    if notes:
        image.header.extensions.append(nib.nifti1.Nifti1Extension(4, notes))
    nib.save(image, path)
    return path


def targets(warp: Warp) -> np.ndarray:
    """Where each voxel goes, RAS mm, (x, y, z, 3)."""
    there = warp.grid.world_points() + warp.field
    return (there * LPS_RAS).transpose(2, 1, 0, 3)


AFNI = b'<?xml version="1.0" ?><AFNI_attributes>"x_delta~y_delta~z_delta"</AFNI_attributes>'
PLUMB = replace(FIXED, direction=(1, 0, 0, 0, -1, 0, 0, 0, 1))
# Of each tool: the vectors for a warp by its definition, and the signs that the file has of it.
FIELDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "SPM": (targets, {"name": "Mapping", "description": "Deformation"}),
    "SPM inverse": (targets, {"intent": 0, "description": "Inverse Deformation"}),
    "NiftyReg positions": (targets, {"name": "NREG_TRANS", "p1": 0}),
    "NiftyReg displacements": (lambda w: targets(w) - ras_at(w.grid), {"name": "NREG_TRANS", "p1": 1}),
    "NIfTI": (lambda w: targets(w) - ras_at(w.grid), {"intent": 1006}),
    "ITK": (lambda w: (targets(w) - ras_at(w.grid)) * LPS_RAS, {}),
}


@pytest.mark.parametrize("tool", FIELDS)
def test_fields_come_in_as_the_tool_means_them(tool: str, tmp_path: Path) -> None:
    make, signs = FIELDS[tool]
    warp = smooth_warp()
    path = save(tmp_path / "field.nii.gz", make(warp), **signs)
    np.testing.assert_allclose(Warp.load(path).field, warp.field, atol=1e-3)
    again = Warp.load(path, FIXED, MOVING)
    assert again.grid == FIXED and again.moving_grid == MOVING


@pytest.mark.parametrize("tool", FIELDS)
def test_a_known_shift_brings_a_blob_to_its_place(tool: str, tmp_path: Path) -> None:
    make, signs = FIELDS[tool]
    shift = np.array([3.0, -5.0, 8.0])
    place = FIXED.centre + shift / 2
    moving = Volume(blob(MOVING, place, sigma=3), MOVING)
    vectors = make(Warp(np.broadcast_to(shift, (*FIXED.shape, 3)), FIXED, MOVING))
    moved = Warp.load(save(tmp_path / "field.nii", vectors, **signs)).apply(moving)
    np.testing.assert_allclose(centre_of_mass(moved.array, FIXED), place - shift, atol=0.05)


def test_afni_counts_in_lps_on_a_plumb_grid(tmp_path: Path) -> None:
    warp = smooth_warp(grid=PLUMB)
    vectors = (targets(warp) - ras_at(PLUMB)) * LPS_RAS
    for intent in (0, 1007, 1006):
        path = save(tmp_path / "WARP.nii", vectors, PLUMB, intent=intent, notes=AFNI)
        np.testing.assert_allclose(Warp.load(path).field, warp.field, atol=1e-3)
    more = np.concatenate([vectors, np.ones_like(vectors)], axis=-1)  # hexvol, BulkEn, ShearEn
    for four in (False, True):
        path = save(tmp_path / "WARP.nii", more, PLUMB, intent=0, notes=AFNI, four=four)
        np.testing.assert_allclose(Warp.load(path).field, warp.field, atol=1e-3)
    with pytest.raises(RegkitError, match="moving image's grid is oblique"):
        Warp.load(path, None, MOVING)
    path = save(tmp_path / "WARP.nii", vectors, FIXED, notes=AFNI)
    with pytest.raises(RegkitError, match="its grid is oblique"):
        Warp.load(path)


def fsl_mm(grid: Grid, index: np.ndarray) -> np.ndarray:
    """FSL's coordinates of voxels, by the FAQ of FLIRT."""
    index = np.array(index, dtype=float)
    if np.linalg.det(grid.ras_affine[:3, :3]) > 0:
        index[..., 0] = grid.size[0] - 1 - index[..., 0]
    return index * grid.spacing


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("fixed", [FIXED, mirrored(FIXED)])
@pytest.mark.parametrize("moving", [MOVING, mirrored(MOVING)])
def test_fnirt_counts_in_fsl_mm_of_both_images(
    fixed: Grid, moving: Grid, absolute: bool, tmp_path: Path
) -> None:
    warp = smooth_warp(grid=fixed, moving=moving)
    there = fsl_mm(moving, nib.affines.apply_affine(np.linalg.inv(moving.ras_affine), targets(warp)))
    vectors = there if absolute else there - fsl_mm(fixed, indices(fixed))
    path = save(tmp_path / "warp.nii.gz", vectors, fixed, intent=2006, four=True)
    np.testing.assert_allclose(Warp.load(path, None, moving).field, warp.field, atol=1e-3)
    with pytest.raises(RegkitError, match="give the moving image too"):
        Warp.load(path)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "spline": ({"intent": 2007, "four": True}, "cubic spline coeff.* FNIRT: .*fnirtfileutils"),
    "DCT": ({"intent": 2008, "four": True}, "DCT coefficients of FSL's FNIRT"),
    "quadratic": ({"intent": 2009, "four": True}, "quadratic spline coefficients of FSL's FNIRT"),
    "TOPUP spline": ({"intent": 2016, "four": True}, "FSL's TOPUP"),
    "TOPUP quadratic": ({"intent": 2017, "four": True}, "FSL's TOPUP"),
    "TOPUP field": ({"intent": 2018, "four": True}, "off-resonance field of FSL's TOPUP"),
    "FSL without intent": ({"intent": 0, "four": True, "description": "FSL5.0"}, "4-D file of FSL without"),
    "MRtrix": ({"intent": 0, "four": True, "description": "MRtrix version: 3.0.4"}, "4-D file of MRtrix"),
    "NiftyReg control points": ({"name": "NREG_TRANS", "p1": 2}, "points of NiftyReg.*reg_transform -def"),
    "NiftyReg velocity": ({"name": "NREG_TRANS", "p1": 3}, "a velocity field of NiftyReg"),
    "NiftyReg velocities": ({"name": "NREG_TRANS", "p1": 4}, "a velocity field of NiftyReg"),
    "NiftyReg velocity points": ({"name": "NREG_TRANS", "p1": 5}, "velocity control points of NiftyReg"),
    "NiftyReg of another kind": ({"name": "NREG_TRANS", "p1": 77}, "something of kind 77 of NiftyReg"),
    "old NiftyReg": ({"name": "NREG_CPP_FILE"}, "'NREG_CPP_FILE' of an old NiftyReg"),
    "Dartel": ({"description": "Flow Field"}, "'Flow Field' of SPM, no warp"),
    "Shoot": ({"description": "Velocity"}, "'Velocity' of SPM, no warp"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_known_and_not_converted_is_refused_by_name(case: str, tmp_path: Path) -> None:
    signs, message = REFUSED[case]
    path = save(tmp_path / "field.nii", np.zeros((*FIXED.size, 3)), **signs)
    with pytest.raises(RegkitError, match=rf"^.*field\.nii: .*{message}"):
        Warp.load(path, FIXED, MOVING)


@pytest.mark.parametrize("signs", [np.ones(3), LPS_RAS])
@pytest.mark.parametrize("name", ["field.nii.gz", "field.mha", "field.nhdr"])
def test_positions_without_a_signature_are_refused(name: str, signs: np.ndarray, tmp_path: Path) -> None:
    positions = (FIXED.world_points() + smooth_warp().field) * signs
    write_warp(Warp(positions.astype(np.float32), FIXED), tmp_path / "field.mha")
    if name.endswith(".nii.gz"):
        write_warp(Warp(positions.astype(np.float32), FIXED), tmp_path / name)
    elif name.endswith(".nhdr"):
        sitk.WriteImage(sitk.ReadImage(tmp_path / "field.mha"), tmp_path / name)
    with pytest.raises(RegkitError, match=rf"{name}: its vectors are not displacements but positions in"):
        Warp.load(tmp_path / name)


@pytest.mark.parametrize("suffix", ["mhd", "nhdr", "hdr", "img"])
def test_fields_in_two_files_are_read(suffix: str, tmp_path: Path) -> None:
    warp = smooth_warp()
    path = tmp_path / f"deformationField.{suffix}"
    if suffix in ("hdr", "img"):
        write_warp(warp, tmp_path / "warp.nii")
        single = nib.load(tmp_path / "warp.nii")
        nib.save(nib.Nifti1Pair(np.asarray(single.dataobj), None, single.header), path)
    else:
        sitk.WriteImage(FIXED.to_sitk(warp.field, vector=True), path)
    np.testing.assert_allclose(Warp.load(path).field, warp.field, atol=1e-5)


def test_nifti_2_fields_are_read(tmp_path: Path) -> None:
    warp = smooth_warp()
    write_warp(warp, tmp_path / "one.nii")
    one = nib.load(tmp_path / "one.nii")
    header = nib.Nifti2Header.from_header(one.header)
    header["intent_code"] = 1007
    nib.save(nib.Nifti2Image(np.asarray(one.dataobj), one.affine, header), tmp_path / "two.nii.gz")
    np.testing.assert_allclose(Warp.load(tmp_path / "two.nii.gz").field, warp.field, atol=1e-5)


@pytest.mark.parametrize("pixdim", [0.0, 4.0])
def test_spacings_of_fields_are_checked_as_those_of_images(pixdim: float, tmp_path: Path) -> None:
    path = save(tmp_path / "field.nii", np.zeros((*FIXED.size, 3)))
    content = bytearray(path.read_bytes())
    content[80:84] = np.float32(pixdim).tobytes()
    path.write_bytes(content)
    with pytest.raises(RegkitError, match=r"field\.nii: its (voxel spacing is|header says two things)"):
        Warp.load(path)


# --- linear transforms

MATRIX = affine_map(25, (12, -20, 7)) @ np.diag([1.1, 0.9, 1.05, 1.0])  # LPS, fixed -> moving
RAS = FLIP @ MATRIX @ FLIP


def lta(kind: int, valid: int = 1) -> str:
    """FreeSurfer's file of MATRIX: it takes the source, which moves, to the destination."""
    matrix = np.linalg.inv(RAS)
    if kind == 0:
        matrix = np.linalg.inv(FIXED.ras_affine) @ matrix @ MOVING.ras_affine
    lines = [f"type      = {kind}", "nxforms   = 1", "mean      = 0.0 0.0 0.0", "sigma     = 1.0", "1 4 4"]
    lines += [" ".join(f"{v:.15e}" for v in row) for row in matrix]
    for name, grid in (("src", MOVING), ("dst", FIXED)):
        axes = grid.ras_affine[:3, :3] / grid.spacing
        centre = grid.ras_affine @ [*(np.array(grid.size) / 2), 1]
        lines += [f"{name} volume info", f"valid = {valid}  # volume info valid", f"filename = {name}.mgz"]
        lines += ["volume = " + " ".join(map(str, grid.size))]
        lines += ["voxelsize = " + " ".join(f"{s:.15e}" for s in grid.spacing)]
        for row, axis in zip("xyz", axes.T):
            lines.append(f"{row}ras   = " + " ".join(f"{v:.15e}" for v in axis))
        lines.append("cras   = " + " ".join(f"{v:.15e}" for v in centre[:3]))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("kind", [0, 1])
def test_freesurfers_lta(kind: int, tmp_path: Path) -> None:
    (tmp_path / "reg.lta").write_text(lta(kind))
    np.testing.assert_allclose(read_linear(tmp_path / "reg.lta"), MATRIX, atol=1e-6)
    warp = Warp.load(tmp_path / "reg.lta", FIXED)
    points = FIXED.world_points()
    np.testing.assert_allclose(points + warp.field, transform_points(MATRIX, points), atol=1e-3)


def test_ltas_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    for text, message in (
        (lta(14), r"type 14; only 0 \(voxels\) and 1 \(RAS\)"),
        (lta(0, valid=0), "does not describe its src volume"),
        (lta(1).replace("nxforms   = 1", "nxforms   = 2"), "holds 2 transforms"),
        (lta(1).replace("1 4 4\n", "1 4 4\nx"), "is damaged: 16 numbers"),
        (lta(1).replace("1 4 4", ""), "it has no matrix"),
    ):
        (tmp_path / "reg.lta").write_text(text)
        with pytest.raises(RegkitError, match=rf"reg\.lta: .*{message}"):
            read_linear(tmp_path / "reg.lta")


@pytest.mark.parametrize("fixed", [FIXED, mirrored(FIXED)])
@pytest.mark.parametrize("moving", [MOVING, mirrored(MOVING)])
def test_flirt_takes_the_source_to_the_reference_in_fsl_mm(
    fixed: Grid, moving: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Four points of the source and where they lie in the reference tell its matrix.
    corners = np.array([[0, 0, 0], [20, 0, 0], [0, 20, 0], [0, 0, 20]], float)
    world = nib.affines.apply_affine(moving.ras_affine, corners)
    there = nib.affines.apply_affine(np.linalg.inv(fixed.ras_affine) @ np.linalg.inv(RAS), world)
    source, reference = (np.c_[fsl_mm(g, p), np.ones(4)].T for g, p in ((moving, corners), (fixed, there)))
    np.savetxt(tmp_path / "flirt.mat", reference @ np.linalg.inv(source), fmt="%.15e")
    found = read_linear(f"fsl:{tmp_path / 'flirt.mat'}", fixed, moving)
    np.testing.assert_allclose(found, MATRIX, atol=1e-6)
    monkeypatch.chdir(tmp_path)
    np.testing.assert_allclose(read_linear("fsl:flirt.mat", fixed, moving), found)
    warp = Warp.load("fsl:flirt.mat", fixed, moving)
    points = fixed.world_points()
    np.testing.assert_allclose(points + warp.field, transform_points(MATRIX, points), atol=1e-3)
    with pytest.raises(RegkitError, match=r"flirt\.mat: .*give both \(--fixed and --moving\)"):
        read_linear("fsl:flirt.mat", fixed)


def test_plain_matrices_need_their_meaning(tmp_path: Path) -> None:
    for rows in (4, 3):
        np.savetxt(tmp_path / "aladin.txt", RAS[:rows], fmt="%.15e")
        np.testing.assert_allclose(read_linear(f"ras:{tmp_path / 'aladin.txt'}"), MATRIX, atol=1e-9)
        np.savetxt(tmp_path / "lps.txt", MATRIX[:rows], fmt="%.15e")
        np.testing.assert_allclose(read_linear(f"lps:{tmp_path / 'lps.txt'}"), MATRIX, atol=1e-9)
        with pytest.raises(RegkitError, match=r"plain 4x4 matrix, .* fsl:FILE .*, ras:FILE"):
            read_linear(tmp_path / "aladin.txt", FIXED, MOVING)
    for text, message in (
        ("1 0 0 0\n0 1 0 0\n0 0 0 0\n0 0 0 1\n", "singular or not finite"),
        ("1 0 0 nan\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "singular or not finite"),
        ("1 0 0\n", "no plain 4x4 matrix"),
        ("hello\n", "no plain 4x4 matrix"),
        ("1 0 0 0\n0 1 0 0\n0 0 1 0\n\0", "no plain 4x4 matrix"),
    ):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(RegkitError, match=rf"bad\.txt: holds .*{message}"):
            read_linear(f"ras:{tmp_path / 'bad.txt'}")


def elastix(kind: str, values: list[float], centre: list[float] | None, **more: str) -> str:
    """A parameter file as elastix writes it."""
    lines = [f'(Transform "{kind}")', f"(NumberOfParameters {len(values)})"]
    lines.append(f"(TransformParameters {' '.join(f'{v:.15f}' for v in values)})")
    more = {"InitialTransformParametersFileName": '"NoInitialTransform"'} | more
    more |= {
        "HowToCombineTransforms": '"Compose"',
        "FixedImageDimension": "3",
        "UseDirectionCosines": '"true"',
    }
    lines += [f"({name} {value})" for name, value in more.items()]
    if centre:
        lines.append(f"(CenterOfRotationPoint {' '.join(map(str, centre))})")
    return "\n".join(["// elastix", *lines]) + "\n"


def test_elastix_linear_transforms(tmp_path: Path) -> None:
    centre, angles, shift = [30.0, -80.0, 210.0], [0.2, -0.3, 0.4], [5.0, 6.0, -7.0]
    euler = sitk.Euler3DTransform(centre, *angles, shift)
    zyx = sitk.Euler3DTransform(centre, *angles, shift)
    zyx.SetComputeZYX(True)
    matrix = MATRIX[:3, :3].ravel().tolist()
    versor = sitk.Similarity3DTransform(1.2, (0.0, 0.6, 0.8), 0.7, shift, centre)
    cases = [
        ("EulerTransform", [*angles, *shift], centre, euler, {}),
        ("EulerTransform", [*angles, *shift], centre, zyx, {"ComputeZYX": '"true"'}),
        ("AffineTransform", [*matrix, *shift], centre, sitk.AffineTransform(matrix, shift, centre), {}),
        ("SimilarityTransform", list(versor.GetParameters()), centre, versor, {}),
        ("TranslationTransform", shift, None, sitk.TranslationTransform(3, shift), {}),
    ]
    path = tmp_path / "TransformParameters.0.txt"
    for kind, values, about, wanted, more in cases:
        path.write_text(elastix(kind, values, about, **more))
        for point in ((0.0, 0.0, 0.0), (31.0, -60.0, 190.0)):
            found = transform_points(read_linear(path), point)
            np.testing.assert_allclose(found, wanted.TransformPoint(point), atol=1e-6)

    # The initial transform acts first: elastix composes T1(T0(x)).
    second = tmp_path / "TransformParameters.1.txt"
    path.write_text(elastix("EulerTransform", [*angles, *shift], centre))
    first = '"C:/gone/TransformParameters.0.txt"'
    second.write_text(
        elastix("AffineTransform", [*matrix, *shift], centre, InitialTransformParametersFileName=first)
    )
    point = (31.0, -60.0, 190.0)
    wanted = cases[2][3].TransformPoint(euler.TransformPoint(point))
    np.testing.assert_allclose(transform_points(read_linear(second), point), wanted, atol=1e-6)
    path.unlink()
    with pytest.raises(RegkitError, match=r"preceded by 'TransformParameters\.0\.txt'"):
        read_linear(second)


def test_elastix_transforms_that_are_not_linear_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "TransformParameters.0.txt"
    path.write_text(elastix("BSplineTransform", [0.0] * 9, None))
    with pytest.raises(RegkitError, match=r"elastix' BSplineTransform, .* 'transformix -def all'"):
        Warp.load(path, FIXED)
    path.write_text(elastix("EulerTransform", [0.0] * 5, [0.0] * 3))
    with pytest.raises(RegkitError, match="6 numbers were expected"):
        read_linear(path)


def test_spline_transforms_of_itk_and_slicer(tmp_path: Path) -> None:
    spline = sitk.BSplineTransformInitializer(FIXED.blank(), [4, 5, 3], 3)
    numbers = np.random.default_rng(0).normal(size=len(spline.GetParameters())) * 3
    spline.SetParameters(numbers.tolist())
    for name in ("spline.tfm", "spline.h5"):
        sitk.WriteTransform(sitk.CompositeTransform([sitk.AffineTransform(3), spline]), str(tmp_path / name))
        warp = Warp.load(tmp_path / name, FIXED)
        np.testing.assert_allclose(warp.field, Warp.from_transform(spline, FIXED).field, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("morph.m3z", b"x", "a morph of FreeSurfer"),
        ("warp.mif", b"x", "of MRtrix"),
        ("talairach.xfm", b"x", "a transform of MNI"),
        ("anat+tlrc.HEAD", b"x", "3dAFNItoNIFTI"),
        ("mat.aff12.1D", b"x", "a matrix of AFNI"),
        ("spm.mat", b"MATLAB 5.0 MAT-file" + bytes(200), "MATLAB 5, such as SPM's"),
    ],
)
def test_files_of_other_tools_are_refused_by_name(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RegkitError, match=message):
        Warp.load(tmp_path / name, FIXED, MOVING)


def test_a_file_with_a_colon_in_its_name_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_linear(MATRIX, "run:1.tfm")
    np.testing.assert_allclose(read_linear("run:1.tfm"), MATRIX, atol=1e-9)


def test_a_field_that_does_not_say_where_it_lies_is_doubted(tmp_path: Path) -> None:
    path = save(tmp_path / "field.nii", np.zeros((*FIXED.size, 3)))
    content = bytearray(path.read_bytes())
    content[252:256] = bytes(4)  # qform_code and sform_code
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"field\.nii: its qform and sform have the code 0"):
        Warp.load(path)
