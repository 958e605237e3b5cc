"""A browser for the tests of pages: the Chromium or Chrome that is there, without a window."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Page

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_MACOS = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
# The graphics of the 3-D page are drawn by the processor, as there may be no GPU.
_FLAGS = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
SECONDS = 300  # that a page may take on a busy machine


def browser() -> str | None:
    """The program, or None where there is none."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    return found or (_MACOS if sys.platform == "darwin" and os.path.exists(_MACOS) else None)


needs_browser = pytest.mark.skipif(
    browser() is None or importlib.util.find_spec("playwright") is None,
    reason="needs Chromium or Chrome on the PATH, and the package playwright",
)


class Opened:
    """A page in the browser, and what it complained of or asked for."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda said: self._heard(said.type, said.text))
        page.on("pageerror", lambda error: self._heard("error", str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def _heard(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(f"{kind}: {text}")

    @property
    def from_elsewhere(self) -> list[str]:
        """What it loaded beside itself: whatever is neither the file nor within it."""
        return [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))]


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """A file in a window of 1280 x 900 pixels."""
    from playwright.sync_api import sync_playwright

    # As root, as in a container, Chromium starts without its sandbox alone.
    flags = [*_FLAGS, *(["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else [])]
    with sync_playwright() as driver:
        program = driver.chromium.launch(
            executable_path=browser(), args=flags, timeout=1000 * SECONDS, headless=True
        )
        try:
            page = program.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(1000 * SECONDS)
            found = Opened(page)
            page.goto(path.resolve().as_uri())
            yield found
        finally:
            program.close()
