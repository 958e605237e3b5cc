"""What this installation has, what it lacks, what that costs, and whether it registers correctly.

Nothing heavy is imported before :func:`examine` does it, so that a broken package is a finding and no
traceback.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regkit.core.errors import DISTRIBUTION, RegkitError, reason
from regkit.core.version import __version__
from regkit.io.provenance import commit

if TYPE_CHECKING:
    from packaging.requirements import Requirement

WITHOUT = {
    "dicom": "DICOM is neither read nor written",
    "segmentation": "'regkit finetune' and 'regkit segment' do not run",
    "meshes": "'regkit apply --points' takes no VTK, STL, PLY and OBJ",
    "report3d": "'regkit register --report-3d' does not run",
    "nipype": "regkit.integrations.nipype cannot be imported",
    "pydra": "regkit.integrations.pydra cannot be imported",
    "torchio": "regkit.integrations.torchio cannot be imported",
    "cluster": "'regkit batch' runs on this machine alone",
    "bids": "'regkit batch' reads no BIDS data sets",
    "bench": "'regkit bench' leaves out the methods whose packages are missing",
    "ants": "two tests that compare with ANTs are skipped",
    "test": "the tests do not run, or some are skipped",
    "dev": "the scripts in .ci/ do not run",
    "docs": "the site of the docs cannot be built",
}
"""Extra of pyproject.toml -> what a user does without."""

_MODULES = {"annotated-types": "annotated_types", "jinja2": "jinja2", "pillow": "PIL", "pyyaml": "yaml"}
"""Package in lower case -> its module, where that is called otherwise."""

# The self-test: a phantom of so coarse voxels that it takes seconds.
_SPACING, _SEED = 6.0, 0
# Mean over the voxels of all organs, mm. A right run ends at 4.1, the linear start alone at 6.0, the headers
# alone at 53: measured, with and without kernels.
_MAX_ERROR = 5.0
_MAX_FILE_ERROR = 0.01  # mm; the file holds float32
_FILE_POINTS = 500
_LITTLE_MEMORY = 2 * 2**30  # bytes

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Kernels:
    """The compiled kernels.

    Args:
        missing: why there are none; None where there are.
        instructions: of the processor that they use.
        fast_network: how the network runs faster than in float32: "bfloat16", "8 bits" or None.
    """

    missing: str | None
    instructions: str | None
    fast_network: str | None


@dataclass(frozen=True)
class Device:
    """Where ``--device auto`` computes.

    Args:
        name: "cpu" or "cuda".
        says: the GPU's name, or why it is the CPU.
        memory: bytes of the GPU.
        triton: whether the kernels for the GPU can run.
    """

    name: str
    says: str
    memory: int | None = None
    triton: bool | None = None


@dataclass(frozen=True)
class Extra:
    """Optional packages that are installed together.

    Args:
        name: in pyproject.toml.
        packages: distribution -> its version, None where it is missing.
        too_old: those of them that are there in a version that is not supported.
        without: what does not work without them.
    """

    name: str
    packages: dict[str, str | None]
    too_old: tuple[str, ...]
    without: str

    @property
    def complete(self) -> bool:
        """Whether all of it is there."""
        return not self.too_old and None not in self.packages.values()


@dataclass(frozen=True)
class SelfTest:
    """A registration of the phantom, held against its known warp.

    Args:
        seconds: that it took.
        before_mm, error_mm: mean distance from the known warp over the voxels of all organs, by the headers
            alone and as registered.
        folding_percent: of the voxels.
        verdict: PASS, WARN or FAIL.
        file_error_mm: largest distance between the warp and its file, as SimpleITK applies it.
        problems: what is wrong; nothing if the test was passed.
    """

    seconds: float
    before_mm: float | None = None
    error_mm: float | None = None
    folding_percent: float | None = None
    verdict: str | None = None
    file_error_mm: float | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Examination:
    """What :func:`examine` found.

    Args:
        versions: of regkit, Python, the platform and every package that regkit needs; None of one that is
            missing.
        kernels, device: None where torch cannot be imported.
        compiler: the C compiler that an installation would use, by its own account; None without one.
        weights: file name of the network that comes with regkit.
        extras: what is optional.
        threads: that torch computes with.
        processors: that this process may use.
        memory, available: bytes of the machine; None where the system does not tell.
        self_test: None where it was not asked for or could not begin.
        warnings: what works, but slowly or in part.
        problems: why regkit does not work.
    """

    versions: dict[str, str | None]
    kernels: Kernels | None
    compiler: str | None
    device: Device | None
    weights: str | None
    extras: tuple[Extra, ...]
    threads: int | None
    processors: int
    memory: int | None
    available: int | None
    self_test: SelfTest | None
    warnings: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether regkit works."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {"healthy": self.healthy, **asdict(self)}


def examine(test: bool = True, progress: Progress | None = None) -> Examination:
    """Look at this installation of regkit and the machine.

    Args:
        test: whether to register the phantom as well, which takes some ten seconds.
        progress: called with the stage and the share of the self-test that is done, 0 to 1.
    """
    warnings: list[str] = []
    versions, extras, problems = _packages()
    kernels, device, threads, weights, tested = None, None, None, None, None
    compiler = _compiler()
    processors = _processors()
    total, available = _memory()
    if available is not None and available < _LITTLE_MEMORY:
        warnings.append(
            f"only {available / 2**30:.1f} GiB of memory are available; "
            "a pair of 192x160x192 voxels takes 1.4 GB"
        )
    if not problems:
        import torch

        kernels, device, threads = _kernels(), _device(), torch.get_num_threads()
        if kernels.missing:
            warnings.append(_no_kernels(kernels.missing, compiler))
        if device.triton is False:
            warnings.append(
                "no kernels for the GPU, so that registration takes several times longer on it: "
                "pip install triton (triton-windows on Windows)"
            )
        try:
            weights = _weights()
        except RegkitError as error:
            problems.append(str(error))
    if test and not problems:
        tested = self_test(progress)
        problems += [f"self-test: {problem}" for problem in tested.problems]
    return Examination(
        versions,
        kernels,
        compiler,
        device,
        weights,
        extras,
        threads,
        processors,
        total,
        available,
        tested,
        tuple(warnings),
        tuple(problems),
    )


def self_test(progress: Progress | None = None) -> SelfTest:
    """Register the phantom with coarse voxels and compare with its known warp. Nothing is raised."""
    start = time.perf_counter()
    try:
        outcome = _registered(progress)
    except Exception as error:  # whatever it is, it is what the user wants to know
        outcome = {"problems": (f"registration failed: {type(error).__name__}: {reason(error)}",)}
    return SelfTest(seconds=time.perf_counter() - start, **outcome)


def _registered(progress: Progress | None) -> dict[str, Any]:
    import numpy as np
    import SimpleITK as sitk

    from regkit.registration import register
    from regkit.synthesis.phantom import torso
    from regkit.verdict import FAIL

    phantom = torso(_SEED, _SPACING)
    result = register(phantom.fixed, phantom.moving, seed=_SEED, progress=progress)
    points = phantom.fixed.grid.world_points()[phantom.fixed_labels.array > 0]
    truth = phantom.truth(points)
    before = float(np.linalg.norm(points - truth, axis=-1).mean())
    error = float(np.linalg.norm(result.warp.transform_points(points) - truth, axis=-1).mean())

    some = points[:: max(1, len(points) // _FILE_POINTS)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "warp.nii.gz"
        result.warp.save(file)
        field = sitk.Cast(sitk.ReadImage(str(file)), sitk.sitkVectorFloat64)
    itk = sitk.DisplacementFieldTransform(field)
    by_itk = np.array([itk.TransformPoint(point) for point in some.tolist()])
    apart = float(np.linalg.norm(by_itk - result.warp.transform_points(some), axis=-1).max())

    folding, verdict = result.smoothness.folding_percent, result.verdict.level
    problems = []
    if not error <= _MAX_ERROR:
        problems.append(f"the warp is {error:.1f} mm off on average; at most {_MAX_ERROR:g} mm are expected")
    if not apart <= _MAX_FILE_ERROR:
        problems.append(f"SimpleITK applies the warp's file differently, up to {apart:.3g} mm apart")
    if folding > 0:
        problems.append(f"{folding:.2g} % of the warp's voxels fold; none should")
    if verdict == FAIL:
        problems.append("the verdict on the registration is FAIL")
    return {
        "before_mm": before,
        "error_mm": error,
        "folding_percent": folding,
        "verdict": verdict,
        "file_error_mm": apart,
        "problems": tuple(problems),
    }


def _packages() -> tuple[dict[str, str | None], tuple[Extra, ...], list[str]]:
    """Versions of what regkit needs, its extras, and what is wrong with the former."""
    own = commit()
    versions: dict[str, str | None] = {
        "regkit": f"{__version__} (commit {own})" if own else __version__,
        "Python": platform.python_version(),
        "platform": f"{platform.platform()} {platform.machine()}",
    }
    problems: list[str] = []
    try:
        from packaging.requirements import Requirement

        needed = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
    except metadata.PackageNotFoundError:
        return versions, (), ["regkit is not installed, only its folder is there: run pip install -e ."]
    except ImportError:
        return versions, (), ["the package 'packaging' is missing: pip install packaging"]

    names = [
        name for name in metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or () if name != "all"
    ]
    for requirement in needed:
        if _wanted(requirement, ""):
            versions[requirement.name] = _version(requirement.name)
            if problem := _problem(requirement, versions[requirement.name]):
                problems.append(problem)
    extras = []
    for extra in names:
        of_it = [r for r in needed if _wanted(r, extra) and not _wanted(r, "")]
        installed = {r.name: _version(r.name) for r in of_it}
        old = [
            r.name
            for r in of_it
            if (v := installed[r.name]) and not r.specifier.contains(v, prereleases=True)
        ]
        extras.append(Extra(extra, installed, tuple(old), WITHOUT.get(extra, "what needs them does not run")))
    return versions, tuple(extras), problems


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _wanted(requirement: Requirement, extra: str) -> bool:
    """Whether a package is wanted here with an extra; with "" whether it is wanted without any."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _problem(requirement: Requirement, version: str | None) -> str | None:
    """What is wrong with a package that regkit needs, and what to do."""
    name, specifier = requirement.name, f"'{requirement.name}{requirement.specifier}'"
    if version is None:
        return f"{name} is missing: pip install {specifier}"
    if not requirement.specifier.contains(version, prereleases=True):
        return f"{name} {version} is not supported: pip install {specifier}"
    try:
        import_module(_MODULES.get(name.lower(), name))
    except Exception as error:  # a library of C that does not load, a module of another version
        why = reason(error)
        return f"{name} {version} cannot be imported ({why}): pip install --force-reinstall {specifier}"
    return None


def _compiler() -> str | None:
    """The first line of what the compiler that setuptools would call says of itself."""
    command_line = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    for word in (command_line.split()[0], "gcc", "clang", "cl"):
        path = shutil.which(word)
        if path is None:
            continue
        with suppress(OSError, subprocess.SubprocessError):
            process = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10)
            lines = (process.stdout or process.stderr).strip().splitlines()
            if process.returncode == 0 and lines:
                return lines[0]
    return None


def _kernels() -> Kernels:
    from regkit.ops import native

    missing = native.why_missing()
    if missing:
        return Kernels(missing, None, None)
    fast = "bfloat16" if native.fast_bfloat16() else "8 bits" if native.fast_eightbit() else None
    return Kernels(None, native.instructions(), fast)


def _no_kernels(why: str, compiler: str | None) -> str:
    do = (
        "install regkit again (in a checkout: pip install --no-deps -e .)"
        if compiler
        else "install a C compiler (gcc or clang), then regkit again"
    )
    return f"no compiled kernels, so that registration takes several times longer: {why}; {do}"


def _device() -> Device:
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Device("cuda", properties.name, properties.total_memory, find_spec("triton") is not None)
    if sys.platform == "darwin":
        return Device("cpu", "regkit computes on GPUs of NVIDIA's alone")
    if torch.version.cuda is None:
        return Device("cpu", "this torch is built for the CPU alone")
    return Device("cpu", "torch finds no GPU of NVIDIA's, or no driver for it")


def _weights() -> str:
    from regkit.features.weights import bundled_weights

    return bundled_weights().name


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> tuple[int | None, int | None]:
    """Bytes that the machine has, and that are available."""
    with suppress(OSError, ValueError, KeyError), open("/proc/meminfo") as stream:
        kib = dict(line.split(":") for line in stream)
        return int(kib["MemTotal"].split()[0]) * 1024, int(kib["MemAvailable"].split()[0]) * 1024
    with suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), None
    return None, None
