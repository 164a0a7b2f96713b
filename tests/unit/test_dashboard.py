"""The dashboard is what its code makes, asks only for metrics that there are, and every query is one."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from tests.programs import program

FOLDER = Path(__file__).parents[2] / "config" / "grafana"
DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "backupd.json").read_text())


def queries() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        yield from (each["expr"] for each in panel.get("targets", ()))


def names(query: str) -> set[str]:
    return set(re.findall(r"\bbackupd_\w+", query))


def test_it_is_what_its_code_makes() -> None:
    spec = importlib.util.spec_from_file_location("build", FOLDER / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (FOLDER / "backupd.json").read_text() == module.build(), "run: python config/grafana/build.py"
    assert module.build() == module.build()


def test_every_metric_exists() -> None:
    documented = set(
        re.findall(r"`(backupd_\w+)`", DOCS.read_text())
    )  # tests/acceptance/test_metrics.py: all and no more
    used = {re.sub(r"_bucket$", "", name) for query in queries() for name in names(query)}
    assert used <= documented
    assert len(used) > 18


def test_every_panel_has_its_place_and_its_source() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    places = [(p["gridPos"]["x"], p["gridPos"]["y"], p["gridPos"]["w"], p["gridPos"]["h"]) for p in DASHBOARD["panels"]]
    for (x, y, w, h), (x2, y2, w2, h2) in combinations(places, 2):
        assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
    assert all(x + w <= 24 for x, _, w, _ in places)
    for panel in DASHBOARD["panels"]:
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["description"]
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["targets"]


def test_every_query_is_one(tmp_path: Path) -> None:
    """As Prometheus reads it, once Grafana has put its variables in."""
    filled = [query.replace("$database", ".*").replace("$__rate_interval", "5m") for query in queries()]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(filled)]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        [program("promtool"), "check", "rules", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(filled)} rules found" in done.stdout
