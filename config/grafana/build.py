"""Writes backupd.json, the dashboard for Grafana: `python config/grafana/build.py`. In code, so that each query has its
selectors and each panel its place; tests/unit/test_dashboard.py holds it against the metrics that there are.

The JSON is Grafana's dashboard model (schema version 39, Grafana 11): https://grafana.com/docs/grafana/latest/dashboards/
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_ALL = 'database=~"$database"'
Json = dict[str, Any]


def newest(metric: str, more: str = "") -> str:
    """Of each database, as the host says that knows the latest: several may look at one repository."""
    return f"max by (database) (backupd_{metric}{{{_ALL}{more}}})"


def kind(metric: str, job: str) -> str:
    """Of a metric with our label `job`, which Prometheus calls exported_job unless it honours labels."""
    one = f'backupd_{metric}{{{_ALL},exported_job="{job}"}}'
    other = f'backupd_{metric}{{{_ALL},exported_job="",job="{job}"}}'
    return f"max by (database) ({one} or {other})"


AGE = f"time() - {newest('backup_last_success_timestamp_seconds')}"
PROOF_AGE = f"time() - {newest('verify_last_success_timestamp_seconds')}"
LATE = f"{newest('backup_overdue_seconds')} > 0"
FAILED = f"min by (database) (backupd_verify_last_status{{{_ALL}}}) == 0 or {newest('backup_last_status')} == 0"
PROVEN = f"({newest('verify_last_status')} == 1) unless ({LATE}) unless ({newest('verify_overdue_seconds')} > 0)"


def target(query: str, legend: str = "{{database}}", *, ref: str = "A", instant: bool = False) -> Json:
    return {
        "datasource": _SOURCE,
        "expr": query,
        "legendFormat": legend,
        "refId": ref,
        "instant": instant,
        "range": not instant,
        "format": "table" if instant else "time_series",
    }


def panel(
    kind: str, title: str, about: str, targets: list[Json], place: tuple[int, int, int, int], **more: Any
) -> Json:
    x, y, width, height = place
    return {
        "type": kind,
        "title": title,
        "description": about,
        "datasource": _SOURCE,
        "gridPos": {"x": x, "y": y, "w": width, "h": height},
        "targets": targets,
        **more,
    }


def steps(*given: tuple[float | None, str]) -> Json:
    return {"mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in given]}


def stat(title: str, about: str, query: str, place: tuple[int, int, int, int], thresholds: Json) -> Json:
    one = target(f"count({query}) or vector(0)", title)
    return panel(
        "stat",
        title,
        about,
        [one],
        place,
        fieldConfig={"defaults": {"thresholds": thresholds, "unit": "none"}, "overrides": []},
        options={"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background", "textMode": "value"},
    )


def series(
    title: str, about: str, queries: dict[str, str], unit: str, place: tuple[int, int, int, int], **custom: Any
) -> Json:
    """`queries`: legend to query."""
    targets = [target(query, legend, ref=chr(65 + n)) for n, (legend, query) in enumerate(queries.items())]
    return panel(
        "timeseries",
        title,
        about,
        targets,
        place,
        fieldConfig={"defaults": {"unit": unit, "min": 0, "custom": {"fillOpacity": 8, **custom}}, "overrides": []},
        options={
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    )


def row(title: str, y: int) -> Json:
    place = {"x": 0, "y": y, "w": 24, "h": 1}
    return {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": place}


def overview(y: int) -> Json:
    """A row for each database."""
    columns = {
        "Newest backup, age": (AGE, "s"),
        "Late by": (newest("backup_overdue_seconds"), "s"),
        "Newest proof, age": (PROOF_AGE, "s"),
        "Test restore passed": (newest("verify_last_status"), "bool_yes_no"),
        "A restore takes": (newest("proven_restore_seconds"), "s"),
        "Stored": (newest("backup_stored_bytes"), "bytes"),
        "Backups": (newest("retained_backups"), "none"),
        "Next backup": (f"{kind('next_run_timestamp_seconds', 'backup')} * 1000", "dateTimeFromNow"),
    }
    targets = [
        target(query, "", ref=chr(65 + number), instant=True) for number, (query, _) in enumerate(columns.values())
    ]
    names = {f"Value #{chr(65 + number)}": name for number, name in enumerate(columns)}
    red = steps((None, "transparent"), (1, "red"))
    colours = {"Late by": red, "Test restore passed": steps((None, "red"), (1, "transparent"))}
    overrides = [
        {
            "matcher": {"id": "byName", "options": name},
            "properties": [
                {"id": "unit", "value": unit},
                *(
                    [
                        {"id": "thresholds", "value": colours[name]},
                        {"id": "custom.cellOptions", "value": {"type": "color-background"}},
                    ]
                    if name in colours
                    else []
                ),
            ],
        }
        for name, (_, unit) in columns.items()
    ]
    return panel(
        "table",
        "Databases",
        "What a restore of each would lose, and how long it would take.",
        targets,
        (0, y, 24, 9),
        fieldConfig={"defaults": {"custom": {"align": "auto"}}, "overrides": overrides},
        transformations=[
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {"excludeByName": {"Time": True}, "renameByName": {"database": "Database", **names}},
            },
        ],
        options={"showHeader": True, "sortBy": [{"displayName": "Late by", "desc": True}]},
    )


def each(metric: str) -> Json:
    return {"{{database}}": newest(metric)}


def ended(counter: str) -> Json:
    return {"{{outcome}}": f"sum by (outcome) (increase({counter}{{{_ALL}}}[$__rate_interval]))"}


def panels() -> list[Json]:
    green, bad = steps((None, "red"), (1, "green")), steps((None, "green"), (1, "red"))
    none = f"{newest('retained_backups')} == 0"
    view = {"{{instance}}": "backupd_repository_view_age_seconds"}
    excess = {**each("retention_excess_backups"), "{{database}} paused": f"{newest('prune_paused')} > 0"}
    failed = {
        "{{database}}: {{check}}": f"min by (database, check) (backupd_verify_check_status{{{_ALL}}}) == bool 0 > 0"
    }
    running = {"{{database}} {{exported_job}}": f"backupd_job_running{{{_ALL}}} > 0"}
    buckets = "sum by (le, exported_job) (rate(backupd_job_duration_seconds_bucket[1d]))"
    ahead = {"{{database}}": f"{kind('next_run_timestamp_seconds', 'backup')} - time()"}
    return [
        row("Who is safe", 0),
        stat("Proven", "The last test restore passed, and nothing is late.", PROVEN, (0, 1, 5, 4), green),
        stat("Failing", "The last backup or test restore failed.", FAILED, (5, 1, 5, 4), bad),
        stat("Late", "By their own schedules, with grace.", LATE, (10, 1, 5, 4), bad),
        stat("Without a backup", "There is none at all.", none, (15, 1, 4, 4), bad),
        series("The view", "How old what is told here of the repository is.", view, "s", (19, 1, 5, 4)),
        overview(5),
        row("Recovery point and recovery time", 14),
        series(
            "What a restore would lose", "The age of the newest backup.", {"{{database}}": AGE}, "s", (0, 15, 12, 8)
        ),
        series(
            "What a restore takes",
            "As measured with the newest proven backup.",
            each("proven_restore_seconds"),
            "s",
            (12, 15, 12, 8),
        ),
        row("Backups", 23),
        series("Stored", "Of the newest backup.", each("backup_stored_bytes"), "bytes", (0, 24, 8, 8)),
        series("Raw", "Before compression.", each("backup_raw_bytes"), "bytes", (8, 24, 8, 8)),
        series("Took", "The newest backup.", each("backup_duration_seconds"), "s", (16, 24, 8, 8)),
        series("Repository", "All backups.", each("repository_bytes"), "bytes", (0, 32, 8, 8)),
        series("Kept", "Backups.", each("retained_backups"), "none", (8, 32, 8, 8)),
        series("To be pruned", "Backups that no rule keeps, and that are there.", excess, "none", (16, 32, 8, 8)),
        row("Proofs", 40),
        series("Newest proof", "Its age.", {"{{database}}": PROOF_AGE}, "s", (0, 41, 12, 8)),
        series("Checks that failed", "Of the last test restore.", failed, "none", (12, 41, 12, 8)),
        row("Jobs", 49),
        series("Backups", "That ended.", ended("backupd_backups_total"), "none", (0, 50, 8, 7), drawStyle="bars"),
        series(
            "Test restores", "That ended.", ended("backupd_verifies_total"), "none", (8, 50, 8, 7), drawStyle="bars"
        ),
        series("Prunings", "That ended.", ended("backupd_prunes_total"), "none", (16, 50, 8, 7), drawStyle="bars"),
        series("Running", "Jobs at work.", running, "none", (0, 57, 8, 7)),
        series(
            "Nineteen of twenty end within",
            "By kind, of a day.",
            {"{{exported_job}}": f"histogram_quantile(0.95, {buckets})"},
            "s",
            (8, 57, 8, 7),
        ),
        series("Next backup", "In how long.", ahead, "s", (16, 57, 8, 7)),
    ]


def build() -> str:
    """The file."""
    variables = [
        {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
        {
            "name": "database",
            "label": "Database",
            "type": "query",
            "datasource": _SOURCE,
            "query": {"query": "label_values(backupd_retained_backups, database)", "refId": "database"},
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
            "sort": 1,
        },
    ]
    document = {
        "title": "backupd",
        "uid": "backupd",
        "description": "PostgreSQL backups, and whether they restore.",
        "tags": ["backup", "postgresql"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "1m",
        "time": {"from": "now-7d", "to": "now"},
        "timezone": "browser",
        "templating": {"list": variables},
        "annotations": {"list": []},
        "panels": [{"id": number, **each} for number, each in enumerate(panels(), 1)],
    }
    return json.dumps(document, indent=1) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "backupd.json").write_text(build())
