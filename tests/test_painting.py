"""Brushes against brute force: what lies where, and how far away it is."""

from __future__ import annotations

import numpy as np
import pytest

from regkit.synthesis.painting import Canvas, Texture, branches, coils, curve, cut, ellipsoid, join


def part(spacing: float = 2.0, shape: tuple[int, int, int] = (17, 22, 19)) -> Canvas:
    z, y, x = (np.float32(spacing) * (np.indices(shape, np.float32)[k] - shape[k] / 2) for k in range(3))
    image, labels = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    return Canvas(x, y, z, image, labels, {"dark": 10.0, "bright": 100.0}, {"organ": 7}, spacing)


def points(whole: Canvas) -> np.ndarray:
    return np.stack([whole.x, whole.y, whole.z], axis=-1).astype(np.float64)


@pytest.mark.parametrize("flatten", [1.0, 0.5])
def test_tubes_are_at_the_distance_of_their_nearest_sample(flatten: float, rng: np.random.Generator) -> None:
    whole = part()
    curves = [
        curve(
            [(*knot, radius) for knot, radius in zip(rng.uniform(-15, 15, (4, 3)), (2, 5, 3, 4), strict=True)]
        )
    ]
    curves += [curve([(-30, 8, 2, 1.5), (40, 5, -3, 1.5)])]  # leaves the volume
    found = whole.tube(curves, flatten)
    samples = np.concatenate(curves)
    scale = np.array([1, 1, flatten])
    apart = np.linalg.norm((points(whole)[..., None, :] - samples[:, :3]) * scale, axis=-1)
    nearest = apart.argmin(axis=-1)
    expected = apart.min(axis=-1) - samples[nearest, 3]
    near = expected < 0.6 * whole.edge  # as far as paint reaches
    assert 50 < near.sum() < 0.8 * near.size
    np.testing.assert_allclose(found[near], expected[near], atol=1e-4)
    assert (found[~near] > 0.6 * whole.edge - 1e-4).all()


def test_a_tube_far_from_the_part_paints_nothing() -> None:
    whole = part()
    far = curve([(500, 0, 0, 9), (600, 0, 0, 9)])
    assert (whole.tube([far]) > whole.edge).all()
    nothing = whole.within((490, -9, -9), (610, 9, 9))
    assert nothing.x.size == 0
    nothing.paint(nothing.tube([far]), "bright", "organ")
    assert not whole.labels.any()


def test_ellipsoids_are_negative_inside_and_first_order_outside() -> None:
    radii = (30.0, 20.0, 10.0)
    directions = np.random.default_rng(0).normal(size=(500, 3))
    on = directions / np.linalg.norm(directions, axis=1, keepdims=True) * radii
    normals = on / np.square(radii)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    for offset in (-0.5, 0.0, 0.5):
        x, y, z = (on + offset * normals).T
        np.testing.assert_allclose(ellipsoid(x, y, z, radii), offset, atol=0.05)


def test_an_ellipsoid_turns_and_leans_the_way_it_says() -> None:
    whole = part(1.0, (24, 41, 41))
    inside = points(whole)[whole.ellipsoid((0, 0, 0), (15, 4, 8), turn=30) < 0]
    slope = np.degrees(np.arctan2(inside[:, 0] @ inside[:, 1], inside[:, 0] @ inside[:, 0]))
    assert 20 < slope < 35
    inside = points(whole)[whole.ellipsoid((0, 0, 0), (4, 4, 9), lean=0.5) < 0]
    assert inside[:, 0] @ inside[:, 2] / (inside[:, 2] @ inside[:, 2]) == pytest.approx(0.5, abs=0.05)


def test_join_and_cut_are_union_and_intersection_but_for_the_fillet(rng: np.random.Generator) -> None:
    a, b = rng.normal(0, 10, (2, 1000))
    clear = np.abs(a - b) >= 4
    np.testing.assert_array_equal(join(a, b, 4)[clear], np.minimum(a, b)[clear])
    np.testing.assert_array_equal(cut(a, b, 4)[clear], np.maximum(a, b)[clear])
    assert (join(a, b, 4) <= np.minimum(a, b)).all()
    assert (cut(a, b, 4) >= np.maximum(a, b)).all()
    assert join(np.zeros(1), np.zeros(1), 4)[0] == pytest.approx(-1)  # a quarter of the blend


def test_paint_covers_labels_and_smears_the_edge_over_one_voxel() -> None:
    whole = part(2.0, (9, 9, 21))
    surface = whole.x + 0.5  # centres lie at odd mm: the one at -1 is a quarter of a voxel inside
    whole.paint(surface, "bright", "organ")
    assert sorted(set(whole.image[4, 4].tolist())) == pytest.approx([0, 75, 100])
    np.testing.assert_array_equal(whole.labels, np.where(surface < 0, 7, 0))
    whole.paint(whole.x + 10, "dark", None, opacity=0.5)
    assert whole.image[4, 4, 0] == pytest.approx(55)
    assert whole.labels[4, 4, 0] == 7
    whole.paint(whole.x + 10, "dark", "")
    assert whole.image[4, 4, 0] == pytest.approx(10)
    assert whole.labels[4, 4, 0] == 0
    assert whole.labels[whole.x > -9].max() == 7


def test_a_box_holds_every_voxel_between_its_corners_and_shares_memory() -> None:
    whole = part()
    low, high = (-9.0, -3.0, 2.0), (4.0, 11.0, 8.0)
    box = whole.within(low, high)
    wanted = ((points(whole) >= low) & (points(whole) <= high)).all(axis=-1)
    held = np.zeros(whole.x.shape, bool)
    held[box.box] = True
    assert not (wanted & ~held).any()
    assert held.sum() < held.size
    box.paint(np.full(box.x.shape, -9, np.float32), "bright", "organ")
    np.testing.assert_array_equal(whole.labels == 7, held)
    np.testing.assert_array_equal(whole.image == 100, held)


def test_texture_is_standard_and_as_coarse_as_asked() -> None:
    texture = Texture(np.random.default_rng(0))
    whole = part(1.0, (40, 40, 40))

    def roughness(noise: np.ndarray) -> float:
        return float(np.diff(noise, axis=2).std() / noise.std())

    fine, coarse = texture(whole, 5), texture(whole, 20)
    assert abs(float(fine.mean())) < 0.3
    assert 0.6 < float(fine.std()) < 1.2
    assert roughness(fine) > 2 * roughness(coarse)
    assert np.abs(np.corrcoef(fine.ravel(), texture(whole, 5, 17).ravel())[0, 1]) < 0.3


def test_curves_are_sampled_closely_and_pass_their_knots() -> None:
    knots = np.array([(0, 0, 0, 1), (30, 0, 0, 4), (30, 40, 0, 2)], float)
    way = curve(knots)
    steps = np.linalg.norm(np.diff(way[:, :3], axis=0), axis=1)
    assert steps.max() < 1.6
    assert 70 <= len(way) <= 72
    for knot in knots:
        assert np.linalg.norm(way - knot, axis=1).min() < 1e-9
    assert way[:, 3].min() >= 1
    assert way[:, 3].max() <= 4


def test_coils_visit_every_node_once_in_short_steps() -> None:
    nodes = np.stack(np.meshgrid(*[np.arange(0.0, 80, 20)] * 3), axis=-1).reshape(-1, 3)
    loops = coils(nodes, (5, 6), 30, np.random.default_rng(0))
    samples = np.concatenate(loops)
    visited = [np.linalg.norm(samples[:, :3] - node, axis=1).min() < 1 for node in nodes]
    assert np.mean(visited) > 0.95  # a node left alone at the end has no loop
    assert (np.abs(samples[:, 3] - 5.5) <= 0.5).all()
    assert max(np.linalg.norm(np.diff(loop[:, :3], axis=0), axis=1).max() for loop in loops) < 2


def test_branches_thin_out() -> None:
    curves = branches(np.random.default_rng(0), (0, 0, 0), (0, 0, 60), 5, 2.0)
    assert len(curves) == 6
    assert all(twig[0, 3] > twig[-1, 3] > 0 for twig in curves)
