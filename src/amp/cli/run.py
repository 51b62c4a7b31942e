"""`amp run`: the streams of a file, side by side."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from amp.cli.console import command, emit, interruptible, note, paint
from amp.cli.inputs import AsJson, Auth, Metrics, Token, answering_metrics
from amp.cli.server import open_client

__all__ = ['run']


@command
def run(
    file: Annotated[Path, typer.Argument(help='The pipeline, such as pipeline.toml.', show_default=False)],
    token: Token = None,
    auth: Auth = False,
    metrics: Metrics = None,
    as_json: AsJson = False,
) -> None:
    """Run the streams that a file describes until Ctrl-C; one that fails for good is told, and the others go on."""
    from amp.errors import AmpError, LoadError
    from amp.loaders.types import LoadResult
    from amp.pipeline import read_pipeline, run_pipeline

    pipeline = read_pipeline(file)
    failed: list[AmpError] = []
    with interruptible(), answering_metrics(metrics):
        note(f'{len(pipeline.streams)} streams: {", ".join(spec.name for spec in pipeline.streams)}')
        running = run_pipeline(pipeline, lambda url: open_client(url, token, auth=auth))
        with contextlib.closing(running) as results:
            for spec, result in results:
                if isinstance(result, LoadResult):
                    _tell(spec.name, result, as_json=as_json)
                    continue
                failed.append(result)
                if as_json:
                    emit('failed', stream=spec.name, error=str(result))
                note(f'{paint("failed", "red")}  {spec.name}: {result}')
    if failed:
        raise LoadError(f'{len(failed)} of {len(pipeline.streams)} streams failed', hint=failed[0].hint) from failed[0]


def _tell(name: str, result: object, *, as_json: bool) -> None:
    from amp.loaders.types import LoadResult

    if not as_json or not isinstance(result, LoadResult):
        return
    emit(
        'reorg' if result.is_reorg else 'commit',
        stream=name,
        rows=result.rows_loaded,
        blocks=result.metadata.get('blocks'),
        position=result.metadata.get('position'),
    )
