"""The peers of the benchmark recover a known map, and any command is a method."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_dilation
from scipy.spatial.transform import Rotation

from regkit.bench.dataset import Case, Side
from regkit.bench.external import External
from regkit.bench.method import Inputs, Method, MethodResult
from regkit.bench.peer import PeerImages
from regkit.bench.peers import PEERS, Elastix
from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid, transform_points
from regkit.io.images import save_image
from regkit.warp import Warp

# The peers use what their dependencies warn of.
pytestmark = pytest.mark.filterwarnings("ignore")
CENTRE = np.array([30.0, -80.0, 210.0])


def grid(size: tuple[int, int, int], spacing: tuple[float, float, float], degrees: list[int]) -> Grid:
    direction = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    direction[:, 1] *= -1
    origin = CENTRE - direction * spacing @ ((np.array(size) - 1) / 2)
    return Grid(size, spacing, tuple(origin), tuple(direction.ravel()))


FIXED = grid((48, 40, 36), (2.1, 2.5, 2.9), [20, -35, 50])
MOVING = grid((40, 46, 44), (2.6, 2.2, 2.3), [-15, 30, 5])


def linear() -> np.ndarray:
    """10 degrees about an oblique axis through CENTRE, and some mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec([4, 8, -4], degrees=True).as_matrix()
    matrix[:3, 3] = CENTRE - matrix[:3, :3] @ CENTRE + (9, -8, 10)
    return matrix


def tissue(points: np.ndarray) -> np.ndarray:
    """0 outside, 1 in the body, others in some organs; soft edges; LPS mm."""
    rng = np.random.default_rng(7)
    found = np.zeros(points.shape[:-1])
    shapes = [((0.0, 0.0, 0.0), (34.0, 28.0, 38.0), 1.0)]
    for _ in range(40):
        shapes.append((tuple(rng.uniform(-21, 21, 3)), tuple(rng.uniform(4, 9, 3)), rng.uniform(0.2, 3)))
    for centre, radii, value in shapes:
        distance = np.linalg.norm((points - CENTRE - centre) / radii, axis=-1)
        inside = 1 / (1 + np.exp((distance - 1) * 12))
        found += inside * (value - found)
    return found


@pytest.fixture(scope="module")
def known() -> Warp:
    """A bend of up to 3 mm along each axis, then :func:`linear`."""
    points = FIXED.world_points()
    bent = points + 3 * np.sin((points - CENTRE)[..., [1, 2, 0]] / 18 + (0.5, 1.5, -0.5))
    return Warp((transform_points(linear(), bent) - points).astype(np.float32), FIXED, MOVING)


def pair_of(known: Warp, folder: Path, contrast: tuple[float, ...]) -> Case:
    """A pair whose moving image shows the tissues 0, 0.2, 1 and 3 as bright as ``contrast`` says."""
    arrays = {
        "fixed": (tissue(FIXED.world_points() + known.field), FIXED),
        "moving": (np.interp(tissue(MOVING.world_points()), (0, 0.2, 1, 3), contrast), MOVING),
    }
    for name, (array, where) in arrays.items():
        save_image(where.to_sitk((1000 * array).astype(np.float32)), folder / f"{name}.nii.gz")
        # With a margin of outside: in a mask that ends with the body, mutual information leads elastix away.
        mask = binary_dilation(array > 0.1, iterations=4)
        save_image(where.to_sitk(mask.astype(np.uint8)), folder / f"{name}_mask.nii.gz")
    fixed, moving = (Side(folder / f"{name}.nii.gz") for name in arrays)
    return Case("blobs", "a2b", fixed, moving, {})


@pytest.fixture(scope="module")
def case(known: Warp, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Of two contrasts, whose relation is not monotonous."""
    return pair_of(known, tmp_path_factory.mktemp("pair"), (0, 2, 1, 0.3))


@pytest.fixture(scope="module")
def alike(known: Warp, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Of one contrast, for the methods that correlate: across the other one they go astray."""
    return pair_of(known, tmp_path_factory.mktemp("alike"), (0, 0.2, 1, 3))


CORRELATE = ("ants-cc", "greedy-wncc")


def inputs(case: Case, folder: Path, start: np.ndarray | None = None) -> Inputs:
    return Inputs(case, start, 1, "cpu", 1, folder)


def inside() -> np.ndarray:
    """Points of the fixed image in the body."""
    points = FIXED.world_points()[::3, ::3, ::3].reshape(-1, 3)
    away = (points - transform_points(np.linalg.inv(linear()), CENTRE)) / (30, 25, 34)
    return points[(away**2).sum(axis=1) < 1]


def error(warp: Warp, known: Warp) -> float:
    """Mean distance of where two warps take the points inside, mm."""
    points = inside()
    apart = warp.transform_points(points) - known.transform_points(points)
    return float(np.linalg.norm(apart, axis=1).mean())


def check(outcome: MethodResult, known: Warp) -> float:
    assert outcome.warp.grid is not None and outcome.warp.grid.same_as(FIXED)
    assert outcome.warp.moving_grid is not None and outcome.warp.moving_grid.same_as(MOVING)
    assert list(outcome.seconds) == ["load", "register", "warp"]
    return error(outcome.warp, known)


def of_matrix(matrix: np.ndarray) -> Warp:
    points = FIXED.world_points()
    return Warp((transform_points(matrix, points) - points).astype(np.float32), FIXED, MOVING)


def installed(name: str) -> Method:
    """The peer, or the test is skipped; elastix takes fewer iterations, for time."""
    if reason := PEERS[name].missing():
        pytest.skip(reason)
    if name == "elastix":
        quick = Elastix()
        quick.iterations = 48
        return quick
    return PEERS[name]


@pytest.mark.parametrize("name", ["ants", "greedy", "elastix"])
def test_finds_a_map_from_the_headers(
    name: str, case: Case, known: Warp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = installed(name)
    started_in = tmp_path / "here"
    started_in.mkdir()
    monkeypatch.chdir(started_in)
    before = error(of_matrix(np.eye(4)), known)
    after = check(method.register(inputs(case, tmp_path)), known)
    assert before > 12 and after < 0.4 * before
    assert not list(started_in.iterdir())  # what it writes lies in the folder it is given


@pytest.mark.parametrize("name", PEERS)
def test_goes_on_from_a_start(name: str, case: Case, alike: Case, known: Warp, tmp_path: Path) -> None:
    method, case = installed(name), alike if name in CORRELATE else case
    before = error(of_matrix(linear()), known)
    after = check(method.register(inputs(case, tmp_path, linear())), known)
    assert before > 3 and after < 0.5 * before  # an axis or a sign of the start gone wrong makes it 10 mm


@pytest.mark.parametrize("name", PEERS)
def test_masks_are_used(name: str, case: Case, alike: Case, known: Warp, tmp_path: Path) -> None:
    method, case = installed(name), alike if name in CORRELATE else case
    fixed, moving = (
        replace(side, mask=side.image.with_name(f"{role}_mask.nii.gz"))
        for role, side in (("fixed", case.fixed), ("moving", case.moving))
    )
    whole, masked = (
        method.register(inputs(each, tmp_path, linear())).warp
        for each in (case, replace(case, fixed=fixed, moving=moving))
    )
    assert np.abs(whole.field - masked.field).max() > 0.01
    assert error(masked, known) < 0.7 * error(of_matrix(linear()), known)


@pytest.mark.parametrize("name", ["ants", "greedy", "convexadam"])
def test_repeats_with_the_same_seed(name: str, case: Case, tmp_path: Path) -> None:
    method = installed(name)
    if name == "ants" and os.environ.get("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS") != "1":
        pytest.skip("ANTs repeats on one thread, which it is told by the environment before it starts")
    start = linear() if name == "convexadam" else None
    fields = [method.register(inputs(case, tmp_path, start)).warp.field for _ in range(2)]
    assert np.array_equal(*fields)


def test_a_ct_is_clipped(case: Case, tmp_path: Path) -> None:
    array = np.linspace(-1000, 1500, np.prod(FIXED.shape)).reshape(FIXED.shape).astype(np.float32)
    save_image(FIXED.to_sitk(array), tmp_path / "ct.nii.gz")
    ct = Side(tmp_path / "ct.nii.gz")
    pair = PeerImages.load(replace(case, fixed=ct))
    assert pair.window == (-450, 450)
    assert (pair.fixed.array.min(), pair.fixed.array.max()) == (-450, 450)
    assert pair.moving.array.max() > 1900
    assert PeerImages.load(replace(case, fixed=ct, moving=ct)).window == (-950, 450)
    assert PeerImages.load(case).window is None


def test_convexadam_says_that_it_needs_a_start(case: Case, tmp_path: Path) -> None:
    method = installed("convexadam")
    away = np.eye(4)
    away[:3, 3] = 1000
    with pytest.raises(RegkitError, match="do not overlap"):
        method.register(inputs(case, tmp_path, away))


def test_elastix_says_why_it_failed(case: Case, tmp_path: Path) -> None:
    method = installed("elastix")
    away = np.eye(4)
    away[:3, 3] = 1000
    with pytest.raises(RegkitError, match=r"elastix failed: .*outside moving image buffer"):
        method.register(inputs(case, tmp_path, away))


@pytest.mark.parametrize("name", PEERS)
def test_a_missing_package_names_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    assert 'pip install "regkit-imaging[bench]"' in (PEERS[name].missing() or "")


def test_itk_without_elastix_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", lambda module: object())
    monkeypatch.setattr(importlib.metadata, "version", version)
    assert "itk-elastix is not installed" in (PEERS["elastix"].missing() or "")


@pytest.mark.parametrize("name", PEERS)
def test_tells_its_version(name: str) -> None:
    assert re.fullmatch(rf"{PEERS[name].distribution} \d+\.\d+.*", installed(name).version())  # type: ignore[attr-defined]


SCRIPT = """
import sys
import numpy as np
from regkit.io.formats import read_linear, write_warp
from regkit.core.geometry import transform_points
from regkit.io.images import load_grid
from regkit.warp import Warp
fixed, moving, start, out = sys.argv[1:5]
fixed, moving = load_grid(fixed, "fixed"), load_grid(moving, "moving")
points = fixed.world_points()
field = transform_points(read_linear(start), points) - points + (1, 2, 3)
write_warp(Warp(field.astype(np.float32), fixed, moving), out)
print(*sys.argv[5:], file=open("said", "w"))
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The words that run SCRIPT, which lies where the benchmark is started, and the work folder "work"."""
    (tmp_path / "tool.py").write_text(SCRIPT)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    return f"x={shlex.quote(sys.executable)} tool.py {{fixed}} {{moving}} {{start}}"


@pytest.mark.parametrize("out", ["{warp}", "{warp}.nii.gz", "{warp}.npz", "{warp}.h5", "{warp}_1.nii.gz"])
def test_an_external_warp_of_any_format(script: str, out: str, case: Case, tmp_path: Path) -> None:
    method = External.parse(f"{script} {out}")
    outcome = method.register(inputs(case, tmp_path / "work", linear()))
    shifted = linear()
    shifted[:3, 3] += (1, 2, 3)
    assert check(outcome, of_matrix(shifted)) < 1e-3


def test_an_external_command_is_given_the_rest(script: str, case: Case, tmp_path: Path) -> None:
    masks = [case.fixed.image.with_name(f"{role}_mask.nii.gz") for role in ("fixed", "moving")]
    masked = replace(
        case, fixed=replace(case.fixed, mask=masks[0]), moving=replace(case.moving, mask=masks[1])
    )
    method = External.parse(
        script + " {warp} {fixed_mask} {moving_mask} {folder}/a -t={threads} {seed} {device} '{}' 'a  b'"
    )
    outcome = method.register(inputs(masked, tmp_path / "work"))
    shift = np.eye(4)
    shift[:3, 3] = 1, 2, 3
    assert check(outcome, of_matrix(shift)) < 1e-3  # without a start it is the identity
    said = (tmp_path / "work" / "said").read_text().strip()
    assert said == f"{masks[0]} {masks[1]} {tmp_path / 'work'}/a -t=1 1 cpu {{}} a  b"
    assert method.missing() is None and "tool.py" in method.version() and "tool.py" in method.note


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a=", "is empty"),
        ("=tool {fixed} {moving} {warp}", "name of a method"),
        ("a/b=tool {fixed} {moving} {warp}", "name of a method"),
        ("a b=tool {fixed} {moving} {warp}", "name of a method"),
        ("a=tool {fixed} {moving}", r"lacks \{warp\}"),
        ("a=tool", r"lacks \{fixed\}, \{moving\}, \{warp\}"),
        ("a=tool {fixed} {moving} {warp} {gpu}", r"unknown placeholder \{gpu\}.*\{device\}"),
        ("a=tool {fixed} {moving} {warp} 'open", "cannot be read"),
    ],
)
def test_a_malformed_command(text: str, message: str) -> None:
    with pytest.raises(RegkitError, match=message):
        External.parse(text)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('no\\nmemory')", "ended with code 1: no / memory"),
        ("import os; os._exit(3)", "code 3: it said nothing"),
        ("print('only here'); raise SystemExit(2)", "code 2: only here"),
        ("pass", "wrote no file to {warp}"),
        ("[open('warp' + end, 'w') for end in ('.npz', '.h5')]", "several files.*warp.h5, warp.npz"),
        ("open('warp.nii.gz', 'w').write('no')", "is not an image"),
    ],
)
def test_a_command_that_fails(code: str, message: str, case: Case, tmp_path: Path) -> None:
    command = f"x={shlex.quote(sys.executable)} -c {shlex.quote(code)} {{fixed}} {{moving}} {{warp}}"
    with pytest.raises(RegkitError, match=message):
        External.parse(command).register(inputs(case, tmp_path))


def test_a_mask_that_is_not_there(case: Case, tmp_path: Path) -> None:
    method = External.parse("x=tool {fixed} {moving} {warp} {moving_mask}")
    with pytest.raises(RegkitError, match=r"wants \{moving_mask\}, but the case has none"):
        method.register(inputs(case, tmp_path))


def test_a_program_that_is_not_there(case: Case, tmp_path: Path) -> None:
    method = External.parse("x=no-such-program {fixed} {moving} {warp}")
    assert "'no-such-program' is not on the PATH" in (method.missing() or "")
    with pytest.raises(RegkitError, match="cannot be run"):
        method.register(inputs(case, tmp_path))
