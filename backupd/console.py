"""What people see: errors in three parts, progress on a terminal or as lines, tables. Results go to stdout,
everything else to stderr."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, TextIO

from backupd import times
from backupd.errors import BackupdError
from backupd.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


@dataclass(frozen=True, slots=True)
class Style:
    """How to speak: chosen once, by the global options."""

    log_format: str = "text"  # or json: one JSON document a line
    verbose: bool = False
    quiet: bool = False
    stamped: bool = False  # lines of text begin with the time


def emit(text: str) -> None:
    """A result."""
    print(printable(text))  # noqa: T201


def emit_json(document: object) -> None:
    """A result as the one JSON document of a run."""
    print(_json(document, indent=2))  # noqa: T201


def _json(document: object, indent: int | None = None) -> str:
    """JSON that no terminal takes for commands either: what is not printable is escaped, as `printable` does."""
    text = json.dumps(document, ensure_ascii=False, indent=indent)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def printable(text: str) -> str:
    """Control characters, which names from a database may hold, shown as escapes: they would steer a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def say(style: Style, text: str, level: str = "info", fields: Mapping[str, object] | None = None) -> None:
    """A line for whoever watches."""
    if style.quiet and level == "info":
        return
    if style.log_format == "json":
        document = {"time": times.iso(times.now()), "level": level, "message": text, **(fields or {})}
        print(_json(document), file=sys.stderr, flush=True)  # noqa: T201
    else:
        stamp = f"{times.iso(times.now())} {'' if level == 'info' else f'{level}: '}" if style.stamped else ""
        print(f"{stamp}{printable(text)}", file=sys.stderr, flush=True)  # noqa: T201


def error_document(error: BackupdError) -> dict[str, Any]:
    return {"error": error.document()}


def show_error(style: Style, error: BackupdError) -> None:
    """Message, detail and hint on stderr."""
    if style.log_format == "json":
        fields = error_document(error)["error"]
        say(style, error.message, "error", {key: fields[key] for key in ("detail", "hint", "exit")})
        return
    red, plain = ("\x1b[1;31m", "\x1b[0m") if colours(sys.stderr) else ("", "")
    lines = [f"{red}error:{plain} {printable(error.message)}"]
    lines += [f"  {line}" for line in printable(error.detail).splitlines()]
    lines += [f"  {line}" for note in getattr(error, "__notes__", []) for line in printable(note).splitlines()]
    hints = printable(error.hint).splitlines()
    lines += [f"{'hint: ' if not i else '      '}{line}" for i, line in enumerate(hints)]
    print("\n".join(lines), file=sys.stderr, flush=True)  # noqa: T201


def colours(stream: TextIO | None) -> bool:
    import os

    return stream is not None and stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns under headers; those in `right` are numbers. The last column is never cut or padded."""
    cells = [[printable(cell).replace("\n", "\\n") for cell in row] for row in (headers, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers))]
    lines = []
    for row in cells:
        parts = [c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


class Whole:
    """How much of everything expected is done. What is left is judged by the rate so far."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = monotonic()
        self._tables = self._tables_done = self._size = self._done = 0
        self._of: dict[str, int] = {}

    def expect(self, tables: int, size: int) -> None:
        self._began, self._tables, self._size = monotonic(), tables, size

    def begin(self, stream: str, tables: int) -> None:
        self._of[stream] = tables

    def advance(self, size: int) -> None:
        with self._lock:
            self._done += size

    def end(self, stream: str) -> str:
        """The stream is done: the end of a line about it."""
        with self._lock:
            self._tables_done += self._of.pop(stream, 0)
        return f"; {self.told()}" if self._size else ""

    @property
    def is_over(self) -> bool:
        return self._done >= self._size

    def told(self) -> str:
        """`12 of 40 tables, 37 %, 4 min to go`."""
        share = min(self._done / self._size, 1) if self._size else 1
        text = f"{self._tables_done} of {self._tables} tables, {share:.0%}"
        passed = monotonic() - self._began
        if 0.01 < share < 1 and passed > 2:
            left = passed / share - passed
            text += f", {times.human_duration(timedelta(seconds=round(left)))} of loading to go"
        return text


class Lines:
    """Progress without a terminal: a line when a phase begins and when a stream is done."""

    def __init__(self, style: Style, **fields: object) -> None:
        self._style = style
        self._fields = fields
        self._lock = threading.Lock()
        self._open: dict[str, tuple[str, float]] = {}
        self._sizes: dict[str, int] = {}
        self._whole = Whole()

    def phase(self, text: str) -> None:
        say(self._style, text, "info", self._fields)

    def expect(self, tables: int, size: int, *, estimated: bool = False) -> None:
        if not estimated:  # a share of a guess says little
            self._whole.expect(tables, size)

    def begin(self, stream: str, label: str, total: int | None, *, tables: int = 0) -> None:
        with self._lock:
            self._open[stream], self._sizes[stream] = (label, monotonic()), 0
            self._whole.begin(stream, tables)

    def advance(self, stream: str, size: int) -> None:
        self._sizes[stream] += size  # only the stream's own thread counts
        self._whole.advance(size)

    def end(self, stream: str) -> None:
        label, began = self._open[stream]
        seconds, size = monotonic() - began, self._sizes[stream]
        text = f"  {stream} ({label}): {times.human_bytes(size)} in {seconds:.1f} s"
        if seconds >= 1:
            text += f", {times.human_bytes(size / seconds)}/s"
        text += self._whole.end(stream)
        numbers = {"stream": stream, "raw_bytes": size, "seconds": round(seconds, 3)}
        say(self._style, text, "info", {**self._fields, **numbers})

    def warn(self, text: str) -> None:
        say(self._style, f"warning: {text}", "warning", self._fields)


class Log:
    """Progress of a job of the daemon: warnings, and its steps if `verbose`."""

    def __init__(self, style: Style, fields: Mapping[str, object]) -> None:
        self._style = style
        self._fields = fields

    def phase(self, text: str) -> None:
        if self._style.verbose:
            say(self._style, text, "info", self._fields)

    def expect(self, tables: int, size: int, *, estimated: bool = False) -> None:
        """Too much for a log."""

    def begin(self, stream: str, label: str, total: int | None, *, tables: int = 0) -> None:
        """Too much for a log."""

    def advance(self, stream: str, size: int) -> None:
        """Too much for a log."""

    def end(self, stream: str) -> None:
        """Too much for a log."""

    def warn(self, text: str) -> None:
        say(self._style, text, "warning", self._fields)


class Terminal:
    """Progress on a terminal: a bar a running stream, with bytes, rate and time."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._lock = threading.Lock()
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}
        self._labels: dict[str, str] = {}
        self._whole = Whole()
        self._all: TaskID | None = None

    def phase(self, text: str) -> None:
        if self._all is not None and self._whole.is_over:
            self._bars.remove_task(self._all)
            self._all = None
        self._line(f"[bold]{_escape(printable(text))}[/bold]")

    def expect(self, tables: int, size: int, *, estimated: bool = False) -> None:
        if not estimated:  # a share of a guess says little
            self._whole.expect(tables, size)
        with self._lock:
            self._all = self._bars.add_task("all", total=size)

    def begin(self, stream: str, label: str, total: int | None, *, tables: int = 0) -> None:
        with self._lock:
            self._whole.begin(stream, tables)
            name = f"{stream} {_escape(printable(label)[:40])}"
            self._tasks[stream] = self._bars.add_task(name, total=total)
            self._began[stream], self._labels[stream] = monotonic(), label

    def advance(self, stream: str, size: int) -> None:
        self._bars.advance(self._tasks[stream], size)
        self._whole.advance(size)
        if self._all is not None:
            self._bars.update(self._all, advance=size, description=self._whole.told())

    def end(self, stream: str) -> None:
        task = self._tasks[stream]
        size = next(t.completed for t in self._bars.tasks if t.id == task)
        self._bars.remove_task(task)
        seconds = monotonic() - self._began[stream]
        rate = f", {times.human_bytes(size / seconds)}/s" if seconds >= 1 else ""
        label = _escape(printable(self._labels[stream]))
        whole = self._whole.end(stream)
        self._line(f"  [green]✓[/green] {stream} ({label}): {times.human_bytes(size)} in {seconds:.1f} s{rate}{whole}")

    def warn(self, text: str) -> None:
        self._line(f"[yellow]warning:[/yellow] {_escape(printable(text))}")

    def _line(self, markup: str) -> None:
        self._bars.console.print(markup, highlight=False, soft_wrap=True)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


@contextmanager
def progress(style: Style, **fields: object) -> Iterator[Progress]:
    """The right way to show progress: bars on a terminal, lines elsewhere, warnings alone when quiet."""
    if style.quiet or style.log_format == "json" or not colours(sys.stderr):
        yield Lines(style, **fields)
    else:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn, TransferSpeedColumn
        from rich.progress import Progress as Bars

        columns = [
            TextColumn("  {task.description}"),
            BarColumn(bar_width=24),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeElapsedColumn(),
        ]
        with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
            yield Terminal(bars)
