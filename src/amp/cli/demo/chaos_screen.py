"""What `amp demo --chaos` shows: a live line of what was done to the loader, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from amp.cli.console import emit
from amp.cli.demo.chaos import Toll
from amp.cli.demo.screen import Screen
from amp.cli.progress import position_text, progress_row

if TYPE_CHECKING:
    from rich.table import Table

    from amp.cli.demo.chaos import Verdict

__all__ = ['ChaosScreen']


class ChaosScreen(Screen):
    """The screen of a run with one seed. `toll` is counted up by the run while it goes on."""

    def __init__(self, seed: int, *, as_json: bool) -> None:
        super().__init__(as_json=as_json)
        self.toll = Toll()
        self._seed = seed

    @property
    def commits(self) -> int:
        """Commits and undos that the loader has told of."""
        return self._tally.commits + self._tally.reorgs

    def killed(self) -> None:
        """The loader was killed."""
        if self._as_json:
            emit('kill', kills=self.toll.kills, position=self._tally.position)

    def _tell_reorg(self, event: dict[str, Any]) -> None:
        """Nothing: there are too many for a line each."""

    def _render(self) -> Table:
        tally, toll = self._tally, self.toll
        parts = [
            f'[bold]{tally.rows:,}[/] rows',
            f'[red]{toll.kills} kills[/]',
            f'[yellow]{toll.cuts} cuts[/]',
            f'[yellow]{toll.reorgs} reorgs[/]',
            f'at [cyan]{position_text(tally.position)}[/]',
        ]
        return progress_row('chaos', parts, tally.seconds)

    def conclude(self, verdict: Verdict, path: Path) -> None:
        """The end: what was done, and what is in the file, on stdout."""
        if self._as_json:
            self._emit_summary(verdict, path)
            return
        from rich.console import Console
        from rich.table import Table

        tally, toll, proof = self._tally, verdict.toll, verdict.proof
        figures = Table.grid(padding=(0, 3, 0, 0))
        figures.add_column(style='dim')
        figures.add_row('kills', f'{toll.kills}, each with SIGKILL')
        figures.add_row('cuts', f'{toll.cuts}, inside a microbatch or of the whole server')
        figures.add_row('reorgs', f'{toll.reorgs}, up to {toll.deepest} blocks deep')
        figures.add_row('rows', f'[bold]{proof.rows:,}[/] in the file, {proof.expected:,} on the chain')
        figures.add_row('written', f'{tally.rows:,}, and {tally.rows_undone:,} undone{self._untold(verdict)}')
        figures.add_row('position', position_text(tally.position))
        for name, rows in (('lost', proof.missing), ('twice', proof.twice), ('orphaned', proof.orphaned)):
            figures.add_row(name, f'[bold {"red" if rows else "green"}]{rows:,}[/]')
        figures.add_row('verified', _verified(verdict))
        console = Console(highlight=False)
        console.print()
        console.print(figures)
        for finding in (finding for report in verdict.reports for finding in report.findings):
            console.print(f'{finding.kind}: {finding.text}', style='red', markup=False)
        console.print()
        console.print(f'The same chain and mischief again: amp demo --chaos --seed {self._seed}', style='dim')

    def _untold(self, verdict: Verdict) -> str:
        """A commit whose process died before it could tell of it is in the file, not in the tally."""
        rows = self._untold_rows(verdict)
        return f'; {rows:+,} by commits killed before they told' if rows else ''

    def _untold_rows(self, verdict: Verdict) -> int:
        return verdict.proof.rows - (self._tally.rows - self._tally.rows_undone)

    def _emit_summary(self, verdict: Verdict, path: Path) -> None:
        tally, toll, proof = self._tally, verdict.toll, verdict.proof
        emit(
            'summary',
            seed=self._seed,
            seconds=round(tally.seconds, 3),
            kills=toll.kills,
            cuts=toll.cuts,
            reorgs=toll.reorgs,
            deepest_reorg=toll.deepest,
            written=tally.rows,
            rows_undone=tally.rows_undone,
            untold=self._untold_rows(verdict),
            rows=proof.rows,
            lost=proof.missing,
            twice=proof.twice,
            orphaned=proof.orphaned,
            findings=[finding.to_dict() for report in verdict.reports for finding in report.findings],
            verified=verdict.holds,
            position=tally.position,
            path=str(path),
        )


def _verified(verdict: Verdict) -> str:
    if verdict.holds:
        return f"[bold green]yes[/], all {verdict.blocks:,} blocks: by the chain's table, and by amp verify"
    return f'[bold red]no[/], {verdict.verified_blocks:,} of {verdict.blocks:,} blocks held against the server'
