"""Headless Chromium for tests of pages; where there is none, tests that need it are skipped."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no Chromium here: `bash tools/console_tools.sh` installs Debian's, or set CHROMIUM",
)


@asynccontextmanager
async def browsing(
    width: int = 1360, height: int = 900, scheme: str = "light"
) -> AsyncIterator[Page]:
    """Yields a page; fails the test when the page logs an error."""
    problems: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        page = await browser.new_page(
            viewport={"width": width, "height": height},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        try:
            yield page
        finally:
            await browser.close()
    assert not [text for text in problems if "Failed to load resource" not in text], problems


def shot_path(name: str) -> Path | None:
    """Returns where a screenshot goes, if SCREENSHOTS names a folder."""
    folder = os.environ.get("SCREENSHOTS")
    return Path(folder) / f"{name}.png" if folder else None
