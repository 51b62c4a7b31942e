"""Timing for the benchmarks: repetitions of several candidates in turn, medians, and memory in a process of its own."""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Timing:
    """The seconds of every repetition of one candidate."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return f'{self.name:<28} median {self.median:7.3f} s   best {min(self.seconds):7.3f} s'


def interleaved(
    candidates: Mapping[str, Callable[[], object]], repetitions: int = 7, between: Callable[[], object] | None = None
) -> dict[str, Timing]:
    """Each candidate `repetitions` times, in turn, so that a slow spell of the machine hits all; one round to warm up.

    `between` cleans up after each, and is not counted.
    """
    names = list(candidates)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(repetitions + 1):
        # Every second round runs backwards: none is always behind the same neighbour.
        for name in names if repetition % 2 else reversed(names):
            started = time.perf_counter()
            candidates[name]()
            if repetition:
                seconds[name].append(time.perf_counter() - started)
            if between is not None:
                between()
    return {name: Timing(name, tuple(values)) for name, values in seconds.items()}


def speed_ratio(timings: Mapping[str, Timing], name: str, bare: str) -> float:
    """How fast `name` is against `bare`: 1.0 is as fast, 0.5 half as fast. The median of the ratios of each round."""
    pairs = zip(timings[bare].seconds, timings[name].seconds, strict=True)
    return statistics.median(theirs / ours for theirs, ours in pairs)


def peak_rss(code: str, *arguments: str, runs: int = 2) -> int:
    """Peak memory in bytes of a new Python that runs `code`, with `sys.argv[1:]` = arguments: the least of some runs.

    How threads happen to meet decides how much an allocator keeps, which only ever adds.
    """
    tail = '\nimport sys as _s, _harness as _h; print(_h.own_peak_rss(), file=_s.stderr)'
    command = [sys.executable, '-c', code + tail, *arguments]
    done = [
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY / 'benchmarks')
        for _ in range(runs)
    ]
    return min(int(one.stderr.split()[-1]) for one in done)


def own_peak_rss() -> int:
    """Peak memory of this process in bytes."""
    status = Path('/proc/self/status')
    if status.exists():
        # Not getrusage: on Linux its peak begins with that of the process that started this one.
        [peak] = (line.split()[1] for line in status.read_text().splitlines() if line.startswith('VmHWM:'))
        return int(peak) * 1024
    peak_of_self = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_of_self if sys.platform == 'darwin' else peak_of_self * 1024


def seconds_in_new_python(code: str) -> float:
    """Wall-clock seconds of a new Python that runs `code`."""
    started = time.perf_counter()
    subprocess.run([sys.executable, '-c', code], check=True, cwd=REPOSITORY)
    return time.perf_counter() - started


class Places:
    """A new path for each run; what the run before it left is gone. `ending` is that of a file's name."""

    def __init__(self, folder: str, ending: str = '') -> None:
        self._folder = Path(folder)
        self._ending = ending
        self._count = 0

    def new(self) -> str:
        for old in self._folder.iterdir():
            if old.is_dir():
                shutil.rmtree(old)
            else:
                old.unlink()
        self._count += 1
        return str(self._folder / f'{self._count}{self._ending}')


class Report:
    """Prints a line for each claim and remembers whether one was missed."""

    def __init__(self) -> None:
        self.claims: dict[str, dict[str, float | bool | str]] = {}
        self.rows_per_second: dict[str, int] = {}

    def rates(self, timings: Mapping[str, Timing], rows: int, where: str = '') -> None:
        """Print how fast each candidate took `rows` rows, and remember it under its name and `where`."""
        for timing in timings.values():
            rate = rows / timing.median
            print(f'{timing}   {rate / 1e6:7.3f} M rows/s', flush=True)
            self.rows_per_second[timing.name + where] = round(rate)

    def at_least(self, claim: str, value: float, floor: float) -> None:
        self._line(claim, value, floor, value >= floor, '>=')

    def at_most(self, claim: str, value: float, ceiling: float) -> None:
        self._line(claim, value, ceiling, value <= ceiling, '<=')

    def _line(self, claim: str, value: float, bound: float, ok: bool, sign: str) -> None:
        self.claims[claim] = {'value': round(value, 3), 'sign': sign, 'bound': bound, 'ok': ok}
        print(f'{"ok  " if ok else "MISS"} {claim:<52} {value:6.3f}  ({sign} {bound})', flush=True)

    def finish(self) -> int:
        """The exit code: 0 when every claim holds. The last line of the output is all that was measured, as JSON."""
        print(json.dumps({'claims': self.claims, 'rows_per_second': self.rows_per_second}))
        return 0 if all(claim['ok'] for claim in self.claims.values()) else 1
