"""The docs: examples run, commands and names exist, links lead somewhere, lines fit."""

from __future__ import annotations

import ast
import doctest
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from cli_cases import run

import regkit
from regkit.cli import app
from regkit.demo import FILES, write_phantom
from regkit.registration import register
from regkit.synthesis.phantom import torso

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "models" / "README.md"]
_RUN = ("index", "formats", "propagation", "python", "report", "verdict", "warps")
RUN = [*(DOCS / f"{name}.md" for name in _RUN), *sorted((DOCS / "howto").glob("*.md"))]
_BLOCK = re.compile(r"^(<!-- not run: .+ -->\n)?```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _blocks(page: Path, *languages: str) -> list[tuple[bool, str, str]]:
    """Whether it is to be run, language and text of each fenced block."""
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(not mark, language, text) for mark, language, text in found if language in languages]


def _commands(text: str) -> list[list[str]]:
    """The words of each command in a block of bash."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages begin with: the files of the demo, of coarser voxels, and a warp."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "regkit-demo").mkdir()
    files = {name: folder / "regkit-demo" / file for name, file in FILES.items()}
    write_phantom(torso(0, 6.0), files)
    register(files["fixed"], files["moving"]).warp.save(folder / "warp.nii.gz")
    return folder


@pytest.mark.parametrize("page", RUN, ids=_name)
def test_the_examples_run(
    page: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """One after the other, in one folder, as a reader would; those of Python share their names."""
    shutil.copytree(demo / "regkit-demo", tmp_path / "regkit-demo")
    if page.name != "index.md":
        shutil.copy(demo / "warp.nii.gz", tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    ran = 0
    for wanted, language, text in _blocks(page, "bash", "python"):
        if not wanted:
            continue
        if language == "python":
            exec(compile(text, _name(page), "exec"), names)
            ran += 1
            continue
        for program, *words in _commands(text):
            assert program == "regkit", f"'{program}' cannot be run here: mark the block as not run, and why"
            run(*words)
            ran += 1
    if not ran:
        pytest.skip("every example of the page says why it is not run")


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_and_their_options_exist(page: Path) -> None:
    root = typer.main.get_command(app)
    for _, _, text in _blocks(page, "bash"):
        for program, *words in _commands(text):
            if program != "regkit":
                continue
            command = root
            context = command.make_context("regkit", [], resilient_parsing=True)
            while hasattr(command, "commands") and words and not words[0].startswith("-"):
                assert words[0] in command.commands, words
                command = command.commands[words.pop(0)]
                context = type(context)(command, parent=context)
            command.make_parser(context).parse_args(list(words))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_names_of_the_interface_exist(page: Path) -> None:
    for _, _, text in _blocks(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.value.id != "regkit" or hasattr(regkit, node.attr), f"regkit.{node.attr}"


def test_the_reference_has_every_public_name() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    named = re.findall(r"^::: regkit\.(\w+)$", text, re.MULTILINE)
    assert sorted([*named, "ImageLike", "__version__"]) == regkit.__all__


def test_the_examples_of_docstrings_give_what_they_say() -> None:
    ran = 0
    for name in regkit.__all__:
        names = {"regkit": regkit, "np": np}
        tests = doctest.DocTestFinder(recurse=False).find(getattr(regkit, name), name, globs=names)
        for test in tests:
            report: list[str] = []
            result = doctest.DocTestRunner().run(test, out=report.append)
            assert result.failed == 0, "".join(report)
            ran += result.attempted > 0
    assert ran >= 5


def _slug(heading: str) -> str:
    """The anchor of a heading, on the site as in the repository's view."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for path, anchor in re.findall(r"\]\(([^)\s#:]*)(?:#([^)\s]+))?\)", text):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(_slug, headings), f"{path}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_prose_fits_the_column(page: Path) -> None:
    """But for tables, and for commands that have to stand in one line."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert not [line for line in text.splitlines() if len(line) > 110 and not line.startswith(("|", "    "))]
