"""The ratios of a run as a picture: one bar a claim, the bare path as a line at 1. Plain SVG, no library."""

from __future__ import annotations

from html import escape

from benchmarks._record import Run

_WIDTH, _ROW, _HEAD, _GAP = 960, 24, 96, 30
_LEFT, _RIGHT = 330, 150
_MOST = 1.5
_CHARACTERS = 46
_INK, _FAINT, _LINE = '#1f2933', '#7b8794', '#e4e7eb'
_GOOD, _MISSED, _RECORD = '#2a9d8f', '#e07a5f', '#1f2933'
_FONT = "font-family='ui-sans-serif, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'"


def speed_claims(run: Run) -> dict[str, dict[str, dict[str, float]]]:
    """By benchmark: the claims that are speeds beside a bare path."""
    found = {
        name: {
            claim: measured
            for claim, measured in benchmark['claims'].items()
            if measured['sign'] == '>=' and ' / ' in claim and measured['bound'] <= 1
        }
        for name, benchmark in run['benchmarks'].items()
    }
    return {name: claims for name, claims in found.items() if claims}


def picture(run: Run, record: Run | None = None) -> str:
    """SVG. A mark on a bar is the recorded run."""
    groups = speed_claims(run)
    height = _HEAD + sum(_ROW * len(claims) + _GAP for claims in groups.values()) + 44
    lines = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {height}' width='{_WIDTH}' height='{height}' {_FONT}>",
        f"<rect width='{_WIDTH}' height='{height}' rx='10' fill='#ffffff'/>",
        _text(32, 40, 'Speed beside the bare path', size=20, weight=600),
        _text(32, 62, _subtitle(run), size=12, fill=_FAINT),
    ]
    bottom = height - 44
    for at in (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5):
        x, main = _x(at), at == 1.0
        lines.append(
            f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{_HEAD - 8}' y2='{bottom}' stroke='{_INK if main else _LINE}' "
            f"stroke-width='{1.5 if main else 1}'/>"
        )
        label = 'the bare path' if main else f'{at:g}'
        lines.append(_text(x, bottom + 18, label, size=11, fill=_INK if main else _FAINT, anchor='middle'))
    y = _HEAD
    for name, claims in groups.items():
        lines.append(_text(32, y + 12, name.replace('_', ' '), size=13, weight=600))
        y += 20
        for claim, measured in claims.items():
            lines += _bar(y, claim, measured, _recorded(record, name, claim), _rate(run, name, claim))
            y += _ROW
        y += _GAP - 20
    return '\n'.join([*lines, '</svg>', ''])


def _bar(y: float, claim: str, measured: dict[str, float], recorded: float | None, rate: str) -> list[str]:
    value = measured['value']
    width = _x(min(value, _MOST)) - _LEFT
    lines = [
        _text(
            _LEFT - 12,
            y + 15,
            claim if len(claim) <= _CHARACTERS else claim[: _CHARACTERS - 1] + '…',
            size=12,
            anchor='end',
        ),
        f"<rect x='{_LEFT}' y='{y + 4}' width='{width:.1f}' height='15' rx='3' "
        f"fill='{_GOOD if measured['ok'] else _MISSED}' fill-opacity='0.88'/>",
        _text(_WIDTH - _RIGHT + 12, y + 15, f'{value:.2f}', size=12, weight=600),
        _text(_WIDTH - 24, y + 15, rate, size=11, fill=_FAINT, anchor='end'),
    ]
    if recorded is not None:
        x = _x(min(recorded, _MOST))
        lines.append(
            f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{y + 2}' y2='{y + 21}' stroke='{_RECORD}' stroke-width='2.5'/>"
        )
    return lines


def _subtitle(run: Run) -> str:
    at = run['machine']
    return (
        f'ratios in one run, more is better; a dark mark is the recorded run · {at["cpu"]}, {at["cores"]} cores · '
        f'Python {at["python"]}, pyarrow {run["versions"].get("pyarrow", "?")} · {run["size"]} sizes'
    )


def _recorded(record: Run | None, name: str, claim: str) -> float | None:
    if record is None:
        return None
    known = record['benchmarks'].get(name, {}).get('claims', {}).get(claim)
    return None if known is None else float(known['value'])


def _rate(run: Run, name: str, claim: str) -> str:
    rates = run['benchmarks'][name].get('rows_per_second', {})
    ours = claim.partition(' / ')[0]
    # Where it ran, if that is said, is the end of both.
    named = [what for what in rates if what.startswith(ours)]
    there = [what for what in named if claim.endswith(what.rpartition(', ')[2])]
    found = rates.get(ours) or next((rates[what] for what in [*there, *named]), None)
    if found is None:
        return ''
    return f'{found / 1e6:.2f} M rows/s' if found >= 1e6 else f'{found / 1e3:.0f} k rows/s'


def _x(ratio: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * ratio / _MOST


def _text(
    x: float, y: float, text: str, *, size: int, fill: str = _INK, weight: int = 400, anchor: str = 'start'
) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' font-weight='{weight}' fill='{fill}' "
        f"text-anchor='{anchor}'>{escape(text)}</text>"
    )
