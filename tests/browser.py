"""A real browser without a window: Chromium, steered by Playwright."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from tests.programs import program

# Nothing but our server is asked for anything; root has no sandbox.
_OPTIONS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--force-color-profile=srgb"),
)
DESKTOP, PHONE = (1280, 900), (390, 844)


@contextmanager
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program("chromium"), args=[*_OPTIONS])
        try:
            yield found
        finally:
            found.close()


@contextmanager
def page(
    found: Browser, url: str, *, size: tuple[int, int] = DESKTOP, dark: bool = False, path: str = "/", status: int = 200
) -> Iterator[Page]:
    """An open page. At its end nothing was asked of anybody else, and nothing was complained of."""
    context = found.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light", base_url=url
    )
    try:
        opened = context.new_page()
        asked: list[str] = []
        complaints: list[str] = []
        opened.on("request", lambda request: asked.append(request.url))
        opened.on("console", lambda message: complaints.append(message.text))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("dialog", lambda dialog: complaints.append(dialog.message))
        answer = opened.goto(path)
        assert answer is not None
        assert answer.status == status
        yield opened
        assert {each for each in asked if not each.startswith(url + "/")} == set()
        assert [text for text in complaints if status == 200 or f"status of {status}" not in text] == []
    finally:
        context.close()


def violations(opened: Page) -> list[str]:
    """What axe finds against WCAG and good practice."""
    found = Axe().run(opened).response["violations"]
    return [f"{each['id']}: {each['help']}: {[node['html'] for node in each['nodes']][:3]}" for each in found]


def shot(opened: Page, path: Path) -> None:
    """What the window shows, as a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opened.screenshot(path=path, animations="disabled")
