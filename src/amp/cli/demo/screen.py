"""What the demo shows: lines as things happen, a live line on a terminal, and the summary; or events."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import sys
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from amp.cli.console import emit, note, paint
from amp.cli.progress import Tally, live_line, position_text, progress_row

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from amp.cli.demo.proof import Proof

__all__ = ['Screen']

_QUESTION = 'SELECT block_num, count(*) AS transfers FROM transfers GROUP BY ALL ORDER BY 1 DESC LIMIT 5'


class Screen:
    """As a context manager it holds the live line. `head` is the chain's latest block."""

    def __init__(self, *, as_json: bool) -> None:
        self.head: int | None = None
        self.witness = ''
        self._as_json = as_json
        self._tally = Tally()
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

    def say(self, text: str, style: str = 'dim') -> None:
        """Something happened."""
        if self._as_json:
            emit('note', text=text)
            return
        line = f'{paint("·", "green")} {paint(text, style) if style != "dim" else text}'
        if self._live is None:
            note(line)
        else:
            from rich.text import Text

            self._live.console.print(Text.from_ansi(line))

    def event(self, event: dict[str, Any]) -> None:
        """An event of the loader."""
        kind = event['event']
        if kind not in {'commit', 'reorg'}:
            return
        self._tally.add(
            rows=event.get('rows') or 0,
            blocks=event.get('blocks') or 0,
            undone=event.get('rows_undone'),
            reorg=kind == 'reorg',
            position=event.get('position') or {},
        )
        if self._as_json:
            emit(kind, **{key: value for key, value in event.items() if key != 'event'})
        elif kind == 'reorg':
            self._tell_reorg(event)

    def _tell_reorg(self, event: dict[str, Any]) -> None:
        first = min((r['start'] for r in event.get('ranges') or []), default=0)
        self.say(f'the loader took back {event.get("rows_undone") or 0:,} rows, from block {first:,} on', 'yellow')

    def _render(self) -> Table:
        tally = self._tally
        parts = [f'[bold]{tally.rows:,}[/] rows', f'{tally.recent_rate:,.0f}/s']
        reached = max((at['number'] for at in tally.position.values()), default=None)
        if self.head is not None and reached is not None:
            behind = max(0, self.head - reached)
            parts.append(f'block [cyan]{reached:,}[/]' + (f', {behind} behind' if behind else ', at the head'))
        if tally.reorgs:
            parts.append(f'[yellow]{tally.reorgs} reorg undone[/]')
        return progress_row('transfers', parts, tally.seconds)

    def summarise(self, proof: Proof, path: Path) -> None:
        """The end: figures, the proof and what to type next, on stdout."""
        tally = self._tally
        if self._as_json:
            facts = tally.facts() | {'written': tally.rows, 'rows': proof.rows, 'verified': proof.holds}
            emit('summary', **facts, missing=proof.missing, surplus=proof.surplus, path=str(path))
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        if proof.holds:
            verdict = f'[bold green]yes[/], every row equals {self.witness}'
        else:
            verdict = f'[bold red]no[/]: {proof.missing:,} rows missing, {proof.surplus:,} too many'
        figures = Table.grid(padding=(0, 3, 0, 0))
        figures.add_column(style='dim')
        figures.add_row('rows', f'[bold]{proof.rows:,}[/] ({tally.rows:,} written, {tally.rows_undone:,} undone)')
        figures.add_row('rate', f'{tally.rate:,.0f} rows/s over {tally.seconds:.1f} s, as fast as the chain grew')
        figures.add_row('blocks', f'{tally.blocks:,} committed, in {tally.commits:,} commits')
        figures.add_row('reorgs', f'{tally.reorgs} undone, {tally.rows_undone:,} rows taken back')
        figures.add_row('position', position_text(tally.position))
        figures.add_row('verified', verdict)
        console = Console(highlight=False)
        console.print()
        console.print(figures)
        console.print()
        console.print('Look at it, then point it at a server of your own:', style='bold')
        for line in (_look(path), _again()):
            console.print(Text('  ' + line, style='cyan'), soft_wrap=True)


def _look(path: Path) -> str:
    """The command that shows the file: DuckDB's own when it is there, else Python, which is."""
    if shutil.which('duckdb'):
        return f'duckdb {shlex.quote(str(path))} "{_QUESTION}"'
    with contextlib.suppress(ValueError):
        python = Path(sys.executable).relative_to(Path.cwd())
        return _python(str(python), path)
    return _python(sys.executable, path)


def _python(python: str, path: Path) -> str:
    code = f"import duckdb; duckdb.connect({str(path)!r}).sql('{_QUESTION}').show()"
    quoted = shlex.quote(code) if set(code) & set('"$`\\!') else f'"{code}"'
    return f'{shlex.quote(python)} -c {quoted}'


def _again() -> str:
    question = '"SELECT * FROM eth_rpc.logs"'
    return f'amp load grpc://HOST:1602 {question} --to duckdb:///chain.db --table logs --stream'
