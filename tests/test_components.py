"""``regkit features``: common components of images, in place, in colours that do not depend on chance."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cli_cases import error_of, run, usage_error_of

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid, transform_points
from regkit.features.components import principal_components
from regkit.io.images import Volume
from regkit.io.outputs import save_image
from regkit.viz.components_figure import components_figure

GRID = Grid((36, 32, 28), (2.0, 2.0, 2.0), (-40, -30, 100))


def _ball(grid: Grid, radius: float = 20.0) -> Volume:
    """A bright ball in the middle, brighter towards the left; dark around."""
    points = grid.world_points() - grid.centre
    inside = np.linalg.norm(points, axis=-1) < radius
    return Volume((inside * (100 + points[..., 0])).astype(np.float32), grid, "ball")


def _extract(image: torch.Tensor, spacing: float = 1.0) -> torch.Tensor:
    """Five channels on cells of 2 voxels: the image, its square, and noise of less variance than either."""
    cells = F.avg_pool3d(image[None], 2)
    noise = torch.rand((3, *cells.shape[1:]), generator=torch.Generator().manual_seed(0))
    return torch.cat([4 * cells, 2 * cells**2, 0.05 * noise])


def test_components_lie_where_the_image_lies(oblique_grid: Grid) -> None:
    """On any grid: a spot of the image is one of the first component, at the same place in the world."""
    spot = oblique_grid.centre + 2.0
    squares = np.square(oblique_grid.world_points() - spot).sum(-1)
    volume = Volume((0.1 + np.exp(-squares / 30)).astype(np.float32), oblique_grid)
    (components,) = principal_components([volume], _extract, 2)
    assert len(components) == 3
    first = components[0]
    assert first.grid.spacing[0] == pytest.approx(2 * max(2.0, np.prod(oblique_grid.spacing) ** (1 / 3)))
    brightest = np.unravel_index(first.array.argmax(), first.array.shape)[::-1]
    found = transform_points(first.grid.index_to_world, np.asarray(brightest))
    assert np.linalg.norm(found - spot) < np.linalg.norm(first.grid.spacing)


def test_fine_images_are_seen_as_finely_as_the_features_know() -> None:
    ball = _ball(Grid((40, 40, 40), (0.6, 0.6, 0.6)), 10.0)
    spacings = [
        principal_components([ball], _extract, 2, finest)[0][0].grid.spacing[0] for finest in (2.0, 0.9, 0.3)
    ]
    assert spacings == pytest.approx([4.0, 1.8, 1.2])


def test_components_are_those_of_all_images_together() -> None:
    """As numpy's SVD finds them; an image has other colours in other company."""
    one, two = _ball(GRID), _ball(GRID, 12.0)
    together = principal_components([one, two], _extract, 2)
    alone = principal_components([one], _extract, 2)
    assert [len(images) for images in (*together, *alone)] == [3, 3, 3]
    assert np.abs(together[0][0].array - alone[0][0].array).max() > 1e-3
    again = principal_components([one, two], _extract, 2)
    for image, repeated in zip(together, again, strict=True):
        for a, b in zip(image, repeated, strict=True):
            assert np.array_equal(a.array, b.array)
            assert a.array.min() >= 0 and a.array.max() <= 1

    features, counted = [], []
    for volume in (one, two):
        array = volume.array
        inside = array[array != array.min()]
        low, high = 0.0, np.percentile(inside, 99.5)
        image = torch.from_numpy(np.clip((array - low) / (high - low), 0, 1).astype(np.float32))
        found = _extract(image).flatten(1).T.numpy().astype(np.float64)
        features.append(found)
        counted.append(found[F.avg_pool3d(image[None], 2).flatten().numpy() > 0.03])
    vectors = np.concatenate(counted)
    _, _, axes = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    for k in range(3):
        projected = (vectors - vectors.mean(0)) @ axes[k]
        low, high = np.percentile(projected, (1, 99))
        for image, values in zip(together, features, strict=True):
            expected = np.clip(((values - vectors.mean(0)) @ axes[k] - low) / (high - low), 0, 1)
            found = image[k].array.ravel()
            error = min(np.abs(found - expected).max(), np.abs(1 - found - expected).max())  # either sign
            assert error < 2e-2


def test_a_dark_image_has_components_too() -> None:
    (components,) = principal_components([Volume(np.eye(8)[None].repeat(8, 0), Grid((8, 8, 8)))], _extract, 2)
    assert all(np.isfinite(c.array).all() for c in components)


def test_fewer_channels_than_colours() -> None:
    (components,) = principal_components([_ball(GRID)], lambda image, _: F.avg_pool3d(image[None], 2), 2)
    assert len(components) == 3
    assert components[0].array.std() > 0.1
    assert all(np.array_equal(c.array, np.zeros_like(c.array)) for c in components[1:])


def test_the_picture_has_a_row_for_each_image(tmp_path: Path) -> None:
    """Colours beside greys: the left half is grey, the right one not."""
    heights = []
    for count in (1, 2):
        volumes = [_ball(GRID)] * count
        path = tmp_path / f"{count}.png"
        components_figure(volumes, principal_components(volumes, _extract, 2), path)
        picture = matplotlib.image.imread(path)[..., :3]
        heights.append(picture.shape[0])
        middle = picture.shape[1] // 2
        spread = picture.max(-1) - picture.min(-1)
        assert spread[:, :middle].max() < 0.1
        assert (spread[:, middle:] > 0.3).mean() > 0.1
    assert heights[1] > 1.6 * heights[0]
    with pytest.raises(RegkitError, match="must end in"):
        components_figure([], [], tmp_path / "picture.jpg")


def test_the_command(tmp_path: Path, random_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two, out = (tmp_path / name for name in ("one.nii.gz", "two.nii.gz", "out.png"))
    save_image(_ball(GRID).to_sitk(), one)
    thick = Grid((40, 40, 9), (1.5, 1.5, 6.0), (7, 8, 9), (0, 1, 0, 1, 0, 0, 0, 0, -1))
    save_image(_ball(thick).to_sitk(), two)
    words = ("features", one, two, "-o", out)
    result = run(*words, "--weights", random_weights)
    assert (result.stdout, result.stderr) == (f"wrote {out}\n", "")
    assert matplotlib.image.imread(out)[..., :3].std() > 0.1
    assert "add --overwrite" in error_of(*words, "--weights", random_weights)
    assert run(*words, "--weights", random_weights, "--overwrite", "-q").output == ""
    assert "no such file" in error_of(*words, "--overwrite", "--weights", tmp_path / "no.safetensors")
    assert "does not exist" in error_of(
        "features", tmp_path / "no.nii", "-o", tmp_path / "b.png", "--weights", random_weights
    )
    assert ".png" in error_of("features", one, "-o", tmp_path / "b.jpg", "--weights", random_weights)
    monkeypatch.setattr("regkit.features.weights._MODELS", (tmp_path / "models",))
    assert "missing from this installation" in error_of(*words, "--overwrite")
    assert "IMAGE" in usage_error_of("features", "-o", tmp_path / "b.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.nii.gz", "out.png", "two.nii.gz"]
