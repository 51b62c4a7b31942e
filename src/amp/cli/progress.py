"""What a load says while it runs and when it ends: a live line on a terminal, events for `--json`, a summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from amp.cli.console import emit, note, paint

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from amp.loaders.types import LoadResult

__all__ = ['Reporter', 'Tally', 'summary_lines']

_RATE_SECONDS = 5.0  # the window of the rate that is shown live


@dataclass
class Tally:
    """What has been committed so far, by this process."""

    rows: int = 0
    blocks: int = 0
    commits: int = 0
    reorgs: int = 0
    rows_undone: int = 0
    position: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    _recent: list[tuple[float, int]] = field(default_factory=list)

    def add(self, *, rows: int, blocks: int, undone: int | None, reorg: bool, position: Mapping[str, Any]) -> None:
        """Count one commit or one reorg."""
        self.rows += rows
        self.blocks += blocks
        self.reorgs += reorg
        self.commits += not reorg
        self.rows_undone += undone or 0
        self.position = position or self.position
        now = time.monotonic()
        self._recent = [(at, n) for at, n in self._recent if at > now - _RATE_SECONDS] + [(now, rows)]

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Rows per second since the start."""
        return self.rows / self.seconds if self.seconds > 0 else 0.0

    @property
    def recent_rate(self) -> float:
        """Rows per second of the last seconds."""
        now = time.monotonic()
        window = min(_RATE_SECONDS, self.seconds)
        return sum(n for at, n in self._recent if at > now - _RATE_SECONDS) / window if window > 0 else 0.0

    def facts(self) -> dict[str, Any]:
        """The tally as the fields of an event."""
        return {
            'rows': self.rows,
            'seconds': round(self.seconds, 3),
            'rows_per_second': round(self.rate),
            'blocks': self.blocks,
            'commits': self.commits,
            'reorgs': self.reorgs,
            'rows_undone': self.rows_undone,
            'position': self.position,
        }


def position_text(position: Mapping[str, Mapping[str, Any]]) -> str:
    """`mainnet 1,234`, for every network."""
    return ', '.join(f'{network} {at["number"]:,}' for network, at in position.items()) or 'none yet'


def summary_lines(tally: Tally) -> list[tuple[str, str]]:
    """Names and values of the summary."""
    lines = [('rows', f'{tally.rows:,} in {tally.seconds:.1f} s ({tally.rate:,.0f}/s)')]
    if tally.blocks:
        lines.append(('blocks', f'{tally.blocks:,}'))
    if tally.reorgs:
        lines.append(('reorgs', f'{tally.reorgs} undone ({tally.rows_undone:,} rows)'))
    if tally.position:
        lines.append(('position', position_text(tally.position)))
    return lines


class Reporter:
    """Tells of a load on the screen (only when stderr is a terminal) or as events (`as_json`).

    As a context manager: the summary comes at the end, also after a failure or Ctrl-C.
    """

    def __init__(self, title: str, *, as_json: bool) -> None:
        self.tally = Tally()
        self._title = title
        self._as_json = as_json
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if not self._as_json and sys.stderr.isatty():
            self._live = live_line(self._render)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        interrupted = kind is not None and issubclass(kind, KeyboardInterrupt)
        if self._as_json:
            emit('summary', **self.tally.facts(), interrupted=interrupted, failed=kind is not None and not interrupted)
            return
        if kind is not None and not interrupted and not self.tally.commits:
            return
        how = paint('stopped', 'yellow') if interrupted else paint('failed', 'red') if kind else paint('done', 'green')
        note(f'{how}  {self._title}')
        for name, text in summary_lines(self.tally):
            note(f'  {paint(f"{name:<9}", "dim")} {text}')

    def event(self, name: str, **facts: object) -> None:
        """An event that only `--json` tells."""
        if self._as_json:
            emit(name, **facts)

    def add(self, result: LoadResult) -> None:
        """Count a result and tell of it."""
        data = result.metadata
        position = data.get('position') or {}
        undone = data.get('rows_undone')
        self.tally.add(
            rows=result.rows_loaded,
            blocks=int(data.get('blocks') or 0),
            undone=undone,
            reorg=result.is_reorg,
            position=position,
        )
        if result.is_reorg:
            ranges = [r.to_dict() for r in result.invalidation_ranges or []]
            self.event('reorg', ranges=ranges, rows_undone=undone, position=position, seconds=round(result.duration, 6))
            if not self._as_json:
                which = ', '.join(map(str, result.invalidation_ranges or []))
                self._say(f'{paint("reorg", "yellow")}  {which}: {undone or 0:,} rows undone')
        else:
            self.event(
                'commit',
                rows=result.rows_loaded,
                total_rows=self.tally.rows,
                blocks=data.get('blocks'),
                position=position,
                seconds=round(result.duration, 6),
                epoch=data.get('epoch'),
            )

    def _say(self, line: str) -> None:
        if self._live is None:
            note(line)
        else:
            from rich.text import Text

            self._live.console.print(Text.from_ansi(line))

    def _render(self) -> Table:
        tally = self.tally
        parts = [f'[bold]{tally.rows:,}[/] rows', f'{tally.recent_rate:,.0f}/s']
        if tally.blocks:
            parts.append(f'{tally.blocks:,} blocks')
        if tally.reorgs:
            parts.append(f'[yellow]{tally.reorgs} reorg{"s" * (tally.reorgs != 1)} undone[/]')
        if tally.position:
            parts.append(f'at [cyan]{position_text(tally.position)}[/]')
        return progress_row(self._title, parts, tally.seconds)


def live_line(render: Any) -> Live:
    """A live area on stderr, drawn eight times a second and wiped at the end."""
    from rich.console import Console
    from rich.live import Live

    return Live(get_renderable=render, console=Console(stderr=True), refresh_per_second=8, transient=True)


_SPINNER = '⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏'


def progress_row(title: str, parts: list[str], seconds: float) -> Table:
    """One line: a spinner, what is loaded where, the figures, the time."""
    from rich.markup import escape
    from rich.table import Table

    row = Table.grid(padding=(0, 2, 0, 0))
    minutes, rest = divmod(int(seconds), 60)
    spinner = _SPINNER[int(seconds * 8) % len(_SPINNER)]
    row.add_row(f'[cyan]{spinner}[/] {escape(title)}', ' [dim]·[/] '.join(parts), f'[dim]{minutes}:{rest:02}[/]')
    return row
