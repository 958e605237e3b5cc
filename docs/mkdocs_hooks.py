"""What the docs link to outside their folder becomes a part of the site, under ``repo/``.

So a link leads somewhere both in the repository and on the site, and a link to nothing ends the build.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
FROM_NAVIGATION = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "models/README.md")
_LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    todo = [_in_repository(file.src_uri) for file in files.documentation_pages()] + list(FROM_NAVIGATION)
    visited = set(todo)
    for path in todo:
        if not path.startswith("docs/"):
            files.append(File.generated(config, _in_site(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            targets = _targets(path, (ROOT / path).read_text(encoding="utf-8"))
            todo += sorted(targets - visited)
            visited |= targets
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    path, folder = _in_repository(page.file.src_uri), posixpath.dirname(page.file.src_uri)

    def relinked(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[2]))
        return match[1] + posixpath.relpath(_in_site(target), folder or ".") + match[3]

    return _outside_fences(markdown, lambda text: _LINK.sub(relinked, text))


def _targets(path: str, markdown: str) -> set[str]:
    """The files of the repository outside docs/ that a page links to."""
    targets = set()
    for match in _LINK.finditer(_FENCE.sub("", markdown)):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[2]))
        if not (ROOT / target).is_file():
            raise PluginError(f"{path} links to {match[2]}, which is no file")
        if not target.startswith("docs/"):
            targets.add(target)
    return targets


def _outside_fences(markdown: str, change):
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])


def _in_repository(site_path: str) -> str:
    return site_path.removeprefix("repo/") if site_path.startswith("repo/") else f"docs/{site_path}"


def _in_site(path: str) -> str:
    return path.removeprefix("docs/") if path.startswith("docs/") else f"repo/{path}"
