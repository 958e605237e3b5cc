"""Fixtures shared by all tests: a seeded generator, awkward grids, and the folder of real data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

# Workers of pytest -n share the cores: their threads, and those of the programs that they start, would wait
# for each other. Before torch is imported, which reads it once.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from scipy.spatial.transform import Rotation

from regkit.core.geometry import Grid
from regkit.features.unet import Architecture, UNet
from regkit.features.weights import save_weights

# The same examples in every run, and few; --hypothesis-profile wide draws others, and more. Time limits of an
# example would fail on a busy machine.
_DRAWN = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much],
}
settings.register_profile("repeatable", derandomize=True, max_examples=20, **_DRAWN)
settings.register_profile("wide", max_examples=500, **_DRAWN)
settings.load_profile("repeatable")

# Before Triton is imported, by whomever: without a GPU its interpreter runs the kernels of regkit.ops.gpu.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The files whose tests are marked "fast": the core, files, operations, features and the solver's parts. All
# together they take less than a minute of one core. .ci/fast runs them.
_FAST = """
    geometry jacobian warp metrics intensity points nifti foreign outputs segments contours guard chain
    filters resample folding equalise costvolume coarse fine linear evidence features weights unet network
    pretrain_losses
"""
FAST = {f"test_{name}.py" for name in _FAST.split()}

# Degrees about x, y, z; the axes that run backwards; mm. All sizes differ, so that a swapped axis shows.
_GRIDS = {
    "oblique": ((20, -35, 50), (), (1.0, 1.0, 1.0)),
    "anisotropic": ((4, -7, 12), (), (0.7, 1.3, 3.5)),
    "flipped-x": ((-25, 10, 5), (0,), (1.1, 0.9, 2.0)),
    "flipped-yz": ((10, 170, -60), (1, 2), (2.0, 0.8, 1.5)),
    "ras": ((0, 0, 0), (0, 1), (1.5, 1.5, 2.5)),
}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With "-m fast" the other files are not even imported, which takes longer than many tests."""
    others = collection_path.name.startswith("test_") and collection_path.name not in FAST
    return True if others and config.option.markexpr == "fast" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in FAST:
            item.add_marker("fast")


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with the same seed in every test."""
    return np.random.default_rng(20240611)


@pytest.fixture
def seeded() -> Iterator[None]:
    """torch's generator at the same seed in every test, and as it was afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(20240611)
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in an order that does not depend on how many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a small untrained network of stride 2, as a file."""
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(Architecture(out_channels=8, width=8, levels=2, stride=2))
    save_weights(path, network, {"data": "none", "channels": '[["features", 8, "unit", 1.0]]'})
    return path


@pytest.fixture(params=_GRIDS)
def oblique_grid(request: pytest.FixtureRequest) -> Grid:
    """Each of five 14 x 18 x 12 grids: turned, anisotropic, with axes running backwards, away from 0."""
    degrees, backwards, spacing = _GRIDS[request.param]
    direction = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    direction[:, list(backwards)] *= -1
    return Grid((14, 18, 12), spacing, (-41.5, 13.25, 208.0), tuple(direction.ravel()))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real data: ``$REGKIT_SHARED``, else ``../shared`` from the project root."""
    folder = Path(os.environ.get("REGKIT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"real data not found at {folder} (set REGKIT_SHARED)")
    return folder
