"""Runs the demo and a backfill in a terminal of its own, and keeps the screens as pictures in docs/pictures.

python scripts/record_sessions.py           all of them
python scripts/record_sessions.py demo      one

Needs pyte (a terminal in Python). What is shown is what ran: nothing is typed into a picture by hand.
"""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyte
from rich.console import Console
from rich.style import Style
from rich.text import Text

from amp.devserver import LocalAmp

PICTURES = Path(__file__).resolve().parent.parent / 'docs' / 'pictures'
COLUMNS, LINES = 100, 30
_HERE = sys.prefix.encode()  # no folder of a machine in a picture


def record(name: str, shown: str, command: list[str], *, until: float | None = None, title: str) -> None:
    """Run `command`; the last screen, or the one after `until` seconds, as NAME.svg. `shown` stands for the command."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    stream.feed(f'\x1b[1m$\x1b[0m {shown}\r\n'.encode())
    ours, theirs = pty.openpty()
    environment = {**os.environ, 'TERM': 'xterm-256color', 'COLUMNS': str(COLUMNS), 'LINES': str(LINES)}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=folder, close_fds=True
        )
        os.close(theirs)
        while until is None or time.monotonic() - began < until:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    stream.feed(os.read(ours, 65_536).replace(_HERE, b'.venv'))
                except OSError:
                    break
        process.terminate()
        process.wait(30)
    os.close(ours)
    save(screen, name, title)


def save(screen: pyte.Screen, name: str, title: str) -> None:
    """The screen as a picture, its empty lines at the end left out."""
    lines = [line_of(screen, number) for number in range(LINES)]
    while lines and not lines[-1].plain.strip():
        lines.pop()
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    for line in lines:
        console.print(line, soft_wrap=True)
    svg = console.export_svg(title=title, unique_id=name)
    # The pictures name no font server: the reader's own monospace font will do.
    svg = re.sub(r'@font-face \{.*?\}', '', svg, flags=re.DOTALL).replace('Fira Code', 'ui-monospace')
    (PICTURES / f'{name}.svg').write_text(re.sub(r'[ \t]+$', '', svg, flags=re.MULTILINE) + '\n')


def line_of(screen: pyte.Screen, number: int) -> Text:
    text = Text()
    for column in range(COLUMNS):
        cell = screen.buffer[number][column]
        colour = None if cell.fg == 'default' else f'#{cell.fg}' if re.fullmatch('[0-9a-f]{6}', cell.fg) else cell.fg
        colour = {'brown': 'yellow'}.get(colour or '', colour)
        text.append(cell.data, Style(color=colour, bold=cell.bold or None))
    text.rstrip()
    return text


def demo(amp: str) -> None:
    record('demo', 'amp demo', [amp, 'demo'], title='amp demo')


def backfill(amp: str) -> None:
    with LocalAmp.simulate(seed=7, blocks=60_000, logs_per_block=(4, 12)) as server:
        sql = 'SELECT block_num, log_index, address, topic0, data FROM eth_rpc.logs'
        to = ['--to', 'duckdb:///chain.db', '--table', 'logs', '--workers', '4']
        command = [amp, 'backfill', server.url, sql, *to, '--partition-size', '1500']
        shown = 'amp backfill $AMP_URL "SELECT ... FROM eth_rpc.logs" --to duckdb:///chain.db --table logs'
        record('backfill', shown, command, until=8, title='amp backfill, while it runs')


def main() -> None:
    amp = str(Path(sys.executable).with_name('amp'))
    PICTURES.mkdir(exist_ok=True)
    for name in sys.argv[1:] or ['demo', 'backfill']:
        {'demo': demo, 'backfill': backfill}[name](amp)


if __name__ == '__main__':
    main()
