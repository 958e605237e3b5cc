"""The phantom: its images, labels and landmarks must be one anatomy, seen through the map that it states."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from regkit.core.errors import RegkitError
from regkit.core.geometry import transform_points
from regkit.evaluate import dice
from regkit.io.images import Volume
from regkit.synthesis.phantom import Phantom, torso
from regkit.warp import contains

# ml; a slim adult, some of whose organs leave the field of view.
_PLAUSIBLE = {
    "liver": (800, 1800), "spleen": (60, 250), "right kidney": (90, 200), "left kidney": (90, 200),
    "gallbladder": (15, 60), "stomach": (150, 400), "pancreas": (35, 110), "aorta": (40, 120),
    "vena cava": (50, 140), "vertebrae": (120, 350), "right psoas": (50, 200), "left psoas": (50, 200),
    "right lung": (250, 1200), "left lung": (250, 1200),
}  # fmt: skip


@pytest.fixture(scope="module", params=[0, 1])
def phantom(request: pytest.FixtureRequest) -> Phantom:
    return torso(request.param, spacing=4.0)


def lookup(volume: Volume, points: np.ndarray) -> np.ndarray:
    """Nearest voxel; the points must lie inside."""
    index = np.round(transform_points(volume.grid.world_to_index, points)).astype(int)
    index = np.clip(index, 0, np.asarray(volume.grid.size) - 1)
    return volume.array[index[..., 2], index[..., 1], index[..., 0]]


def through_the_map(phantom: Phantom) -> tuple[np.ndarray, np.ndarray]:
    """The moving labels at T(p) for each fixed voxel p, and where T(p) is in the moving field of view."""
    where = phantom.truth(phantom.fixed.grid.world_points())
    return lookup(phantom.moving_labels, where), contains(phantom.moving.grid, where)


def test_the_same_seed_gives_the_same_bits() -> None:
    one, again, other = torso(3, spacing=8.0), torso(3, spacing=8.0), torso(4, spacing=8.0)
    for name in ("fixed", "moving", "fixed_labels", "moving_labels"):
        a, b, c = (getattr(p, name) for p in (one, again, other))
        assert a.array.tobytes() == b.array.tobytes()
        assert a.grid == b.grid
        assert (a.array != c.array).any()
    assert one.landmarks_moving.tobytes() == again.landmarks_moving.tobytes()
    assert np.abs(one.landmarks_moving - other.landmarks_moving).max() > 5


def test_deep_inside_each_organ_the_labels_agree_without_exception(phantom: Phantom) -> None:
    moved, seen = through_the_map(phantom)
    fixed, grid = phantom.fixed_labels.array, phantom.fixed.grid
    assert seen.mean() > 0.8
    # Where the next other label is further than two voxel sides, no rounding to a voxel can reach it.
    checked = set()
    for label in (0, *phantom.names):
        deep = seen & (
            distance_transform_edt(fixed == label, sampling=grid.spacing[::-1]) > 2 * max(grid.spacing)
        )
        assert (moved[deep] == label).all(), phantom.names.get(label)
        checked |= {label} if deep.any() else set()
    assert len(checked) >= 9


def test_nearest_lookup_through_the_map_overlaps_up_to_voxel_rounding(phantom: Phantom) -> None:
    # Half a voxel of rounding costs a thin organ more: at 4 mm a perfect map scores 0.86 in the spine.
    moved, seen = through_the_map(phantom)
    scores = dice(np.where(seen, phantom.fixed_labels.array, 0), np.where(seen, moved, 0))
    assert sorted(scores) == sorted(phantom.names)
    by_name = {phantom.names[label]: score for label, score in scores.items()}
    assert min(by_name[name] for name in ("liver", "stomach", "left lung", "right lung")) > 0.94
    assert min(by_name.values()) > 0.84


def test_a_wrong_map_is_noticed(phantom: Phantom) -> None:
    fixed = phantom.fixed_labels
    wrong = phantom.truth(fixed.grid.world_points() + np.array([8.0, 0, 0]))
    moved, seen = lookup(phantom.moving_labels, wrong), contains(phantom.moving.grid, wrong)
    by_mistake = dice(np.where(seen, fixed.array, 0), np.where(seen, moved, 0))
    assert by_mistake[8] < 0.7  # the aorta is 20 mm wide


@pytest.mark.parametrize("seed", range(5))
def test_the_map_is_smooth_and_does_not_fold(seed: int) -> None:
    truth = torso(seed, spacing=12.0).truth
    axes = np.arange(-170, 171, 10.0), np.arange(-140, 141, 10.0), np.arange(-130, 131, 10.0)
    lattice = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    determinant = truth.determinant(lattice)
    assert determinant.min() > 0.2
    assert determinant.std() > 0.02
    assert 10 < np.linalg.norm(truth.bend(lattice), axis=-1).max() < 20
    assert np.linalg.norm(truth.translation) == pytest.approx(60)
    degrees = np.degrees(np.arccos((np.trace(truth.rotation) - 1) / 2))
    assert 4 < degrees < 15
    np.testing.assert_allclose(truth.inverse(truth(lattice)), lattice, atol=1e-6)


def test_the_determinant_is_that_of_finite_differences(phantom: Phantom, rng: np.random.Generator) -> None:
    points = rng.uniform(-100, 100, (20, 3))
    step = 1e-4
    columns = [
        (phantom.truth(points + step * axis) - phantom.truth(points - step * axis)) / (2 * step)
        for axis in np.eye(3)
    ]
    expected = np.linalg.det(np.stack(columns, axis=-1))
    np.testing.assert_allclose(phantom.truth.determinant(points), expected, atol=1e-7)


def test_the_grids_have_nothing_in_common(phantom: Phantom) -> None:
    fixed, moving = phantom.fixed.grid, phantom.moving.grid
    assert fixed.size != moving.size
    assert fixed.spacing != moving.spacing
    assert np.linalg.norm(fixed.centre - moving.centre) > 30
    directions = np.reshape(fixed.direction, (3, 3)).T @ np.reshape(moving.direction, (3, 3))
    assert np.abs(directions).max() < 0.999  # no axis of one is an axis of the other
    assert moving.direction[0] == moving.direction[4] == -1  # RAS
    for image, labels in ((phantom.fixed, phantom.fixed_labels), (phantom.moving, phantom.moving_labels)):
        assert image.grid == labels.grid
        assert image.array.dtype == np.int16
        assert labels.array.dtype == np.uint8


def test_spacing_scales_the_voxels_and_keeps_the_field_of_view() -> None:
    small, smaller = torso(0, spacing=8.0), torso(0, spacing=12.0)
    assert small.fixed.grid.spacing == pytest.approx((8, 8, 8 * 3 / 2.6))
    for name in ("fixed", "moving"):
        one, other = getattr(small, name).grid, getattr(smaller, name).grid
        assert one.centre == pytest.approx(other.centre)
        assert np.abs(one.extent - other.extent).max() < 12
    for spacing in (0.5, 13.0, float("nan")):
        with pytest.raises(RegkitError, match="1 to 12 mm"):
            torso(0, spacing=spacing)
    with pytest.raises(RegkitError, match="seed"):
        torso(-1)


@pytest.mark.parametrize("which", ["fixed", "moving"])
def test_every_organ_is_there_with_a_plausible_volume(phantom: Phantom, which: str) -> None:
    labels: Volume = getattr(phantom, f"{which}_labels")
    assert set(np.unique(labels.array)) == {0, *phantom.names}
    assert set(phantom.names.values()) == set(_PLAUSIBLE)
    ml = np.prod(labels.grid.spacing) / 1000
    for label, name in phantom.names.items():
        low, high = _PLAUSIBLE[name]
        assert low < (labels.array == label).sum() * ml < high, name


def test_organs_lie_where_a_patient_has_them(phantom: Phantom) -> None:
    points = phantom.fixed.grid.world_points()
    centre = {
        name: points[phantom.fixed_labels.array == label].mean(axis=0)
        for label, name in phantom.names.items()
    }
    # LPS: x grows to the left, y to the back, z to the head.
    assert centre["liver"][0] < -20 < 20 < centre["spleen"][0]
    assert centre["right kidney"][0] < centre["vena cava"][0] < centre["aorta"][0] < centre["left kidney"][0]
    assert centre["vertebrae"][1] > centre["aorta"][1] > centre["stomach"][1]
    assert centre["left lung"][2] > centre["spleen"][2] > centre["left psoas"][2]
    assert centre["right kidney"][2] < centre["left kidney"][2]


def test_landmarks_are_on_their_organs_in_both_images(phantom: Phantom) -> None:
    assert len(phantom.landmark_names) == len(phantom.landmarks_fixed) == len(phantom.landmarks_moving) >= 20
    assert len(set(phantom.landmark_names)) == len(phantom.landmark_names)
    np.testing.assert_allclose(phantom.landmarks_moving, phantom.truth(phantom.landmarks_fixed), atol=1e-9)
    numbers = {name: label for label, name in phantom.names.items()}
    found = 0
    for volume, points in (
        (phantom.fixed_labels, phantom.landmarks_fixed),
        (phantom.moving_labels, phantom.landmarks_moving),
    ):
        assert contains(volume.grid, points).all()
        reach = np.array(np.meshgrid(*[(-4, 0, 4)] * 3)).reshape(3, -1).T
        for name, point in zip(phantom.landmark_names, points, strict=True):
            organ = name.split(",")[0]
            if organ in numbers:
                assert numbers[organ] in lookup(volume, point + reach), name
                found += 1
    assert found >= 24


def test_the_modalities_differ_as_ct_and_t2_do(phantom: Phantom) -> None:
    def medians(image: Volume, labels: Volume) -> dict[str, float]:
        found = {}
        for label, name in phantom.names.items():
            inside = distance_transform_edt(labels.array == label) > 1.5
            found[name] = float(np.median(image.array[inside])) if inside.sum() > 20 else float("nan")
        return found

    ct, mr = medians(phantom.moving, phantom.moving_labels), medians(phantom.fixed, phantom.fixed_labels)
    assert ct["liver"] == pytest.approx(112, abs=6)
    assert ct["aorta"] == pytest.approx(182, abs=8)
    assert ct["left psoas"] == pytest.approx(58, abs=6)
    assert ct["right lung"] == pytest.approx(-835, abs=10)
    assert ct["aorta"] > ct["liver"] > ct["left psoas"] > ct["right lung"]
    assert mr["spleen"] > mr["liver"] > mr["left psoas"] > mr["aorta"]
    assert mr["aorta"] < 80  # flow void
    assert -1024 <= phantom.moving.array.min() < -950
    assert phantom.moving.array.max() > 400
    assert phantom.fixed.array.min() >= 0


def test_the_ct_has_its_noise_and_the_mr_rician_noise_in_air(phantom: Phantom) -> None:
    spleen = distance_transform_edt(phantom.moving_labels.array == 2) > 2.5
    assert spleen.sum() > 50
    assert 9 < phantom.moving.array[spleen].std() < 16
    corner = phantom.fixed.array[:, :4, :4]
    assert corner.mean() == pytest.approx(14 * np.sqrt(np.pi / 2), rel=0.1)  # Rayleigh of sigma 14
