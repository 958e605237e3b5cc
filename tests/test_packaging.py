"""What a user installs: versions, constraints, lazy imports, and the commands of the README."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_cases import run
from conftest import FAST
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import regkit
from regkit.core.errors import DISTRIBUTION, install

ROOT = Path(__file__).resolve().parents[1]
_SETUP = "python3 -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e"
COMMANDS = {
    "demo": f"{_SETUP} . && regkit demo --overwrite",
    "test": f'{_SETUP} ".[test]" && pytest -n auto --dist worksteal',
}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _python(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    words = [sys.executable, "-c", code]
    return subprocess.run(words, env=environment, check=True, capture_output=True, encoding="utf-8").stdout


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"]]
    + [
        [name, "--help"]
        for name in (
            "register",
            "propagate",
            "finetune",
            "segment",
            "evaluate",
            "features",
            "synthesize",
            "pretrain",
            "doctor",
        )
    ],
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys, regkit.cli\n"
        f"sys.argv = ['regkit', *{words}]\n"
        "try: regkit.cli.app()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'SimpleITK', 'nibabel', 'scipy', 'numpy', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert _python(code).splitlines()[-1] == "[]"


def test_pretraining_needs_torch_numpy_safetensors_and_rich_alone() -> None:
    """What is missing on a bare GPU machine: the help of the program runs all of its imports.

    Trunks are painted with scipy, and imported when one is.
    """
    code = (
        "import pkgutil, runpy, sys\n"
        "missing = ('SimpleITK', 'nibabel', 'scipy', 'typer', 'click', 'matplotlib')\n"
        "for name in missing: sys.modules[name] = None\n"
        "import regkit.pretrain, regkit.synthesis, regkit.training\n"
        "painted = ('__main__', '.anatomy', '.neck', '.painting', '.phantom', '.procedural_trunk',\n"
        "    '.trunk')\n"
        "for package in (regkit.pretrain, regkit.synthesis, regkit.training):\n"
        "    for module in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):\n"
        "        if not module.name.endswith(painted): __import__(module.name)\n"
        "sys.argv = ['pretrain', '--help']\n"
        "runpy.run_module('regkit.pretrain', run_name='__main__')"
    )
    assert "--config CONFIG" in _python(code)


def test_every_public_name_is_imported_when_used() -> None:
    code = (
        "import sys, regkit\n"
        "assert 'torch' not in sys.modules and 'SimpleITK' not in sys.modules\n"
        "for name in regkit.__all__: assert getattr(regkit, name) is not None\n"
        "assert set(regkit.__all__) <= set(dir(regkit))\n"
        "from regkit import *\n"
        "assert register is regkit.register and Warp.__module__ == 'regkit.warp'\n"
        "print('fine')"
    )
    assert _python(code) == "fine\n"
    with pytest.raises(AttributeError, match="no attribute 'rregister'"):
        _ = regkit.rregister


def test_names_for_type_checkers_are_those_that_exist() -> None:
    """The imports under TYPE_CHECKING, the names of __all__ and the lazy ones are one set."""
    source = (ROOT / "regkit" / "__init__.py").read_text(encoding="utf-8")
    block = source.split("if TYPE_CHECKING:")[1].split("__version__")[0]
    imported = {name.strip() for line in re.findall(r"import (.+)", block) for name in line.split(",")}
    assert imported == set(regkit._HOME) == set(regkit.__all__) - {"__version__"}


def test_the_version(project: dict[str, Any]) -> None:
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "regkit.core.version.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", regkit.__version__)
    assert run("--version").stdout == f"regkit {regkit.__version__}\n"
    assert _python(
        "import runpy, sys; sys.argv[1:] = ['--version']; runpy.run_module('regkit', run_name='__main__')"
    ) == (f"regkit {regkit.__version__}\n")


def test_messages_call_the_distribution_as_pip_does(project: dict[str, Any]) -> None:
    """``regkit`` on PyPI is another project: no message or page may send users there."""
    assert project["project"]["name"] == DISTRIBUTION
    assert metadata.version(DISTRIBUTION) == regkit.__version__
    for extra in project["project"]["optional-dependencies"]:
        assert install(extra) == f'pip install "{DISTRIBUTION}[{extra}]"'
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "regkit").rglob("*.py")]
    for path in texts:
        named = re.findall(r"pip\w* install [^`\n]*", path.read_text(encoding="utf-8"))
        assert not [words for words in named if re.search(r"\bregkit(?![\w-])", words.split("&&")[0])], path


def test_constraints_pin_every_dependency(project: dict[str, Any]) -> None:
    pins: dict[str, Requirement] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), line
            pins[canonicalize_name(pin.name)] = pin
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *extras["test"], *extras["dev"], *extras["docs"]]
    for requirement in map(Requirement, wanted):
        if requirement.name == "triton":  # a torch for a GPU brings the one that it was built with
            continue
        pin = pins[canonicalize_name(requirement.name)]
        version = str(pin.specifier).removeprefix("==")
        assert requirement.specifier.contains(version), f"{requirement} excludes the tested {version}"
    assert str(pins["torch"].specifier) == "==2.13.0"


def test_on_windows_clang_compiles_the_kernels(
    project: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of the compiler stands what its program and arguments are read from; clang takes these."""
    setuptools = pytest.importorskip("setuptools")
    commands: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda cmdclass: commands.update(cmdclass))
    runpy.run_path(str(ROOT / "setup.py"))
    flags = project["tool"]["setuptools"]["ext-modules"][0]["extra-compile-args"]
    extension = setuptools.Extension("k", ["k.c"], extra_compile_args=flags, extra_link_args=["-pthread"])
    build = commands["build_ext"](setuptools.Distribution({"ext_modules": [extension]}))
    build.finalize_options()
    build.compiler = SimpleNamespace(
        compiler_type="msvc", initialized=False, cc="cl.exe", initialize=lambda: None
    )
    monkeypatch.setattr(build, "build_extension", lambda extension: None)
    build.build_extensions()
    assert Path(build.compiler.cc).stem == "clang-cl"
    assert extension.extra_link_args == []
    assert extension.extra_compile_args == [f"/clang:{flag}" for flag in flags]

    clang = next(filter(None, map(shutil.which, ("clang-cl", "clang", "clang-19"))), None)
    if clang is None:
        pytest.skip("the arguments were not given to clang, which is not here")
    (tmp_path / "k.c").write_text("int k(int i) { return i; }")
    words = ["--driver-mode=cl", "--target=x86_64-pc-windows-msvc", "/nologo", "/O2", "/MD"]
    words += [*extension.extra_compile_args, "/c", "k.c", "/Fok.obj"]
    compiled = subprocess.run([clang, *words], cwd=tmp_path, capture_output=True, text=True)
    assert (compiled.returncode, compiled.stdout + compiled.stderr) == (0, "")


def test_types_and_licence_are_shipped(project: dict[str, Any]) -> None:
    setuptools = project["tool"]["setuptools"]
    assert setuptools["package-data"]["regkit"] == ["py.typed"]
    assert setuptools["package-data"]["regkit.viz"] == ["*.html.j2"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "regkit").rglob("__init__.py")}
    assert setuptools["packages"] == sorted([*(".".join(f.parts) for f in folders), "regkit.models"])
    assert setuptools["package-dir"] == {"regkit.models": "models"}
    assert "*.safetensors" in setuptools["package-data"]["regkit.models"]
    assert (ROOT / "regkit" / "py.typed").is_file()
    assert project["project"]["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_every_script_of_ci_is_there_and_documented() -> None:
    scripts = {path.name for path in (ROOT / ".ci").iterdir()}
    assert all(os.access(ROOT / ".ci" / name, os.X_OK) for name in scripts)
    named = set(re.findall(r"`\.ci/([\w-]+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
    assert named == scripts
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    (matrix,) = re.findall(r"script: \[(.*)\]", workflow)
    called = set(re.findall(r"\.ci/([\w-]+)", workflow)) | set(matrix.split(", "))
    assert called == scripts


def test_the_fast_tests_exist() -> None:
    assert {path.name for path in (ROOT / "tests").glob("test_*.py")} > FAST


def test_ci_runs_the_commands_of_the_readme(tmp_path: Path) -> None:
    """CI reads them from the README, in order and unchanged: here with a bash that only writes down."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, command in COMMANDS.items():
        block = readme.split(f"<!-- ci: {name} -->\n")[1].split("```")[1]
        assert block.split("\n", 1)[1].strip() == command
    bash = tmp_path / "bash"
    bash.write_text('#!/bin/sh\nfor last; do :; done\necho "RAN $last"\n')
    bash.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    result = subprocess.run(
        ["/bin/bash", script], env=environment, check=True, capture_output=True, text=True
    )
    assert [line for line in result.stdout.splitlines() if line.startswith("RAN ")] == [
        f"RAN {command}" for command in COMMANDS.values()
    ]
