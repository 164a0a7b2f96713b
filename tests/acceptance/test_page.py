"""The status page as people meet it: in a real browser, in front of a real daemon, in any state that there is."""

from __future__ import annotations

import json
import os
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from playwright.sync_api import Browser, Page

from backupd import times
from backupd.postgres.server import ThrowawayServer
from tests.acceptance.test_daemon import NOWHERE, filled_database, made
from tests.browser import DESKTOP, PHONE, browser, page, shot, violations
from tests.daemon import Running, daemon, until
from tests.filled import filling
from tests.postgres import NewDatabase
from tests.site import Site

NASTY = "<img src=x onerror=alert(1)>\"'&\x1b[31m‮"
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
SHOTS = os.environ.get("BACKUPD_SCREENSHOTS")  # a folder, for `make screenshots`


@dataclass
class World:
    """A daemon at work, its page, and a browser."""

    site: Site
    running: Running
    url: str
    browser: Browser

    def status(self, path: str = "") -> dict[str, object]:
        with urllib.request.urlopen(f"{self.url}/api/status{path}", timeout=10) as answer:  # noqa: S310
            found: dict[str, object] = json.load(answer)
            return found

    def states(self) -> dict[str, str]:
        rows = self.status()["databases"]
        assert isinstance(rows, list)
        return {row["database"]: row["state"] for row in rows}


def closed_window() -> str:
    """Hours of the day that are not now."""
    hour = (times.now() + 6 * HOUR).hour
    return f"{hour:02}:00-{(hour + 1) % 24:02}:00"


def site_of_all_kinds(folder: Path, dsn: str) -> Site:
    """shop is proven, billing was not tested, crm is late, analytics fails, media has no backup yet."""
    site = made(folder, {"shop": dsn, "billing": dsn, "crm": dsn, "analytics": NOWHERE, "media": dsn})
    site.set("schedule", '"@every 1h"', table="databases.shop.verify")
    site.set("retention", "{ daily = 30, weekly = 4 }", table="databases.shop")
    site.set("schedule", '"0 0 1 1 *"', table="databases.billing")
    for name in ("crm", "media"):
        site.set("window", f'"{closed_window()}"', table=f"databases.{name}")
    now = times.now()
    with filling(site) as filled:
        for days in range(20, 0, -1):
            size, seconds = 900_000_000 + 31_000_000 * (20 - days), 41 + (days * 7) % 13
            made_id = filled.backup(now - days * DAY, size=size, seconds=seconds)
            if days % 3 == 0:
                checks = (
                    {"name": "rows", "status": "failed" if days == 9 else "passed", "detail": "41 tables"},
                    {"name": "check: orders of the last day", "status": "passed", "detail": "true"},
                    *([{"name": NASTY, "status": "skipped", "detail": NASTY}] if not SHOTS else []),
                )
                status = "failed" if days == 9 else "passed"
                tested = now - days * DAY + HOUR
                filled.proof(made_id, tested, status=status, checks=checks, phases={"restore": 95.0})
        for hours in (26, 2):
            filled.backup(now - hours * HOUR, "billing", size=52_000_000_000, seconds=1340)
        for days in (8, 4):
            filled.backup(now - days * DAY, "crm", size=7_300_000_000, seconds=290)
        for hours in (50, 26):
            filled.backup(now - hours * HOUR, "analytics", size=310_000_000_000, seconds=6200)
    return site


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, pg15: ThrowawayServer) -> Iterator[World]:
    name = f"page_{os.getpid()}"
    with psycopg.connect(pg15.dsn(), autocommit=True) as connection:
        connection.execute(f"create database {name}".encode())
    site = site_of_all_kinds(tmp_path_factory.mktemp("page"), filled_database(pg15.dsn(name)))
    with daemon(site) as running, browser() as found:
        (told,) = running.wait(message="answers at")
        url = re.findall(r"http://[^ :]+:\d+", told["message"])[0]
        world = World(site, running, url, found)
        running.wait(database="shop", job="verify", status="done")
        running.wait(database="analytics", job="backup", message="not tried again", level="error")
        assert until(lambda: world.states().get("shop") == "proven", 30), world.status()
        yield world
        assert running.stop() == 0
    with psycopg.connect(pg15.dsn(), autocommit=True) as connection:
        connection.execute(f"drop database {name}".encode())


def cells(opened: Page, name: str) -> list[str]:
    row = opened.get_by_role("row").filter(has=opened.get_by_role("rowheader", name=name, exact=True))
    return [each.inner_text() for each in row.get_by_role("cell").all()]


def test_the_worst_comes_first_and_in_words(world: World) -> None:
    with page(world.browser, world.url) as opened:
        assert opened.title() == "1 of 5 proven · backupd"
        names = [each.inner_text() for each in opened.get_by_role("rowheader").all()]
        assert names == ["analytics", "crm", "media", "billing", "shop"]
        failing, late, none, unproven, proven = (cells(opened, name) for name in names)
        assert failing[0].startswith("failing")
        assert "cannot connect" in failing[0]
        assert failing[1].startswith("1 d 2 h ago")
        assert late[0].startswith("late")
        assert "overdue by" in late[0]
        assert none[0].startswith("no backup")
        assert none[1:4] == ["none", "none", "not known"]
        assert unproven[0].startswith("backed up, not proven")
        assert unproven[1].startswith("2 h ago")
        assert proven[0] == "proven"
        assert "s ago" in proven[1]
        assert "s ago" in proven[2]
        assert re.match(r"[\d.]+ s", proven[3])
        assert re.search(r"backup in \d+ min", proven[5])
        if SHOTS:
            shot(opened, Path(SHOTS) / "status.png")


def test_a_database_tells_all_of_itself(world: World) -> None:
    with page(world.browser, world.url) as opened:
        opened.get_by_role("link", name="shop").click()
        assert opened.url == f"{world.url}/databases/shop"
        assert opened.get_by_role("heading", level=1).inner_text() == "shop"
        strip = opened.get_by_role("img", name=re.compile("Timeline of 21 backups.*: 1 failed, 6 passed, 14 untested"))
        assert strip.locator("circle, path").count() == len(world.site.backups("shop"))
        for plot in ("Stored size of", "Duration of"):
            assert opened.get_by_role("img", name=re.compile(plot)).locator("circle").count() >= 20
        backups = world.site.backups("shop")
        rows = opened.get_by_role("region", name="Backups").locator("tbody tr")
        assert rows.count() == len(backups)
        newest = rows.first.inner_text()
        assert backups[0]["id"] in newest
        assert "passed" in newest
        assert "the newest; the newest proven; daily " in newest
        command = rows.first.locator("code").inner_text()
        assert command == f"backupd --config {world.site.config} restore shop --at {backups[0]['id']}"
        assert "to be pruned" not in newest
        assert "daily 30, weekly 4" in opened.inner_text("main")
        assert opened.locator("details").first.get_by_role("row").count() > 3  # the checks of a real test restore
        if SHOTS:
            shot(opened, Path(SHOTS) / "database.png")
    # The command is a real one.
    words = command.replace("restore", "restore --dry-run", 1).split()
    world.site.run(*words[3:])


@pytest.mark.skipif(SHOTS is not None, reason="pictures show nothing nasty")
def test_names_of_others_stay_names(world: World) -> None:
    with page(world.browser, world.url, path="/databases/shop") as opened:
        for each in opened.locator("details").all():
            each.evaluate("each => each.open = true")
        assert opened.get_by_text("<img src=x onerror=alert(1)>").count() >= 2
        assert opened.locator("img").count() == 0
        text = opened.inner_text("main")
        assert "\\x1b[31m\\u202e" in text
        assert "\x1b" not in text
        assert "‮" not in text


@pytest.mark.parametrize(
    "dark, size",
    [
        pytest.param(False, DESKTOP, id="light-desktop"),
        pytest.param(True, PHONE, id="dark-phone"),
        pytest.param(True, DESKTOP, id="dark-desktop", marks=pytest.mark.large),
        pytest.param(False, PHONE, id="light-phone", marks=pytest.mark.large),
    ],
)
@pytest.mark.parametrize("path", ["/", "/databases/shop", "/databases/analytics", "/databases/media", "/nothing"])
def test_everybody_can_read_it(world: World, path: str, dark: bool, size: tuple[int, int]) -> None:
    status = 404 if path == "/nothing" else 200
    with page(world.browser, world.url, path=path, dark=dark, size=size, status=status) as opened:
        assert violations(opened) == []
        wide = opened.evaluate("() => [document.scrollingElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1]
        back = opened.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert back == ("rgb(17, 22, 28)" if dark else "rgb(255, 255, 255)")
        if SHOTS and size == PHONE and dark and path == "/":
            shot(opened, Path(SHOTS) / "phone.png")


def test_it_is_used_without_a_mouse(world: World) -> None:
    def focused(opened: Page) -> str:
        return str(opened.evaluate("() => document.activeElement.textContent.trim() || document.activeElement.id"))

    with page(world.browser, world.url) as opened:
        opened.keyboard.press("Tab")
        assert focused(opened) == "Skip to content"
        opened.keyboard.press("Enter")
        assert opened.evaluate("() => document.activeElement.id") == "main"
        opened.keyboard.press("Tab")
        opened.keyboard.press("Tab")
        assert focused(opened) == "analytics"
        outline = opened.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        opened.keyboard.press("Enter")
        opened.wait_for_url("**/databases/analytics")
        opened.keyboard.press("Tab")
        opened.keyboard.press("Tab")
        opened.keyboard.press("Tab")
        assert focused(opened) == "All databases"


def test_it_comes_up_to_date_by_itself(world: World) -> None:
    context = world.browser.new_context(base_url=world.url)
    try:
        opened = context.new_page()
        opened.clock.install(time=datetime(2026, 1, 1))  # noqa: DTZ001
        opened.goto("/")
        opened.evaluate("() => { document.querySelector('h1').textContent = 'old'; }")
        opened.clock.fast_forward(16_000)
        opened.wait_for_function("() => document.querySelector('h1').textContent !== 'old'")
        opened.get_by_role("link", name="shop").focus()  # somebody is at work in it
        asked: list[str] = []
        opened.on("request", lambda request: asked.append(request.url))
        opened.clock.fast_forward(16_000)
        opened.evaluate("() => fetch('/healthz').then((answer) => answer.text())")  # later than any of its own
        assert asked == [f"{world.url}/healthz"]
        opened.evaluate("() => document.activeElement.blur()")
        opened.route("**/", lambda route: route.abort())  # nobody answers
        opened.clock.fast_forward(16_000)
        opened.wait_for_function("() => document.documentElement.classList.contains('stale')")
        opened.unroute("**/")
        opened.clock.fast_forward(16_000)
        opened.wait_for_function("() => !document.documentElement.classList.contains('stale')")
    finally:
        context.close()


def test_a_job_at_work_is_shown_with_its_progress(
    tmp_path: Path, pg15: ThrowawayServer, new_database: NewDatabase, world: World
) -> None:
    dsn = new_database(pg15)
    with psycopg.connect(dsn) as connection:
        connection.execute("create table t as select g, md5(random()::text) as t from generate_series(1, 300000) g")
    site = made(tmp_path / "busy", {"busy": dsn})
    site.set("bandwidth_limit", '"1MB"', table="defaults")
    with daemon(site, name="busy") as running:
        (told,) = running.wait(message="answers at")
        url = re.findall(r"http://[^ :]+:\d+", told["message"])[0]
        with page(world.browser, url, path="/databases/busy") as opened:
            shown = re.compile(r"backup runs for [\d.]+ s: .*[1-9]\d? %, \d of 1 tables", re.DOTALL)

            def at_work() -> bool:
                opened.reload()
                line = opened.locator(".running")
                return bool(line.count() and shown.search(line.first.inner_text()))

            assert until(at_work, 30), opened.inner_text("main")
            assert violations(opened) == []
        assert running.stop() == 0
