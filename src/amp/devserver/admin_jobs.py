"""The jobs of the Admin API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from amp.devserver import admin_models as bodies
from amp.devserver.admin_models import Name, Namespace, Revision
from amp.devserver.catalog import Catalog, CatalogError
from amp.devserver.derived import DerivedChain
from amp.devserver.jobs import TERMINAL, Job, JobStatus

__all__ = ['NODE_ID', 'Its', 'routes']

routes = APIRouter(tags=['jobs'])

NODE_ID = 'local'

_ACTIVE = frozenset(JobStatus) - TERMINAL
_CLEARED = {
    'terminal': TERMINAL,
    'completed': frozenset({JobStatus.COMPLETED}),
    'stopped': frozenset({JobStatus.STOPPED}),
    'error': frozenset({JobStatus.ERROR, JobStatus.FATAL}),
}


def the_catalog(request: Request) -> Catalog:
    """The catalog of the application that a request came to."""
    catalog: Catalog = request.app.state.catalog
    return catalog


Its = Annotated[Catalog, Depends(the_catalog)]


def _known(catalog: Catalog, job_id: int) -> Job:
    job = catalog.jobs.get(job_id)
    if job is None:
        raise CatalogError('JOB_NOT_FOUND', f"job '{job_id}' not found", 404)
    return job


@routes.get('/datasets/{namespace}/{name}/versions/{revision}/jobs', response_model_exclude_none=True)
def list_dataset_jobs(catalog: Its, namespace: Namespace, name: Name, revision: Revision) -> bodies.JobList:
    """The jobs of one revision of a dataset."""
    wanted = (namespace, name, catalog.resolve(namespace, name, revision))
    found = [job for job in catalog.jobs.all() if (job.namespace, job.name, job.manifest_hash) == wanted]
    return bodies.JobList(jobs=[_info(job) for job in found])


@routes.get('/jobs', response_model_exclude_none=True)
def list_jobs(
    catalog: Its,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    last_job_id: int | None = None,
    status: str = 'active',
) -> bodies.JobList:
    """Jobs by page; `status` is `active`, `all`, or statuses with commas between them."""
    wanted = _statuses(status)
    found = [job for job in catalog.jobs.all() if job.status in wanted]
    if last_job_id is not None:
        found = [job for job in found if job.id < last_job_id]
    page = found[:limit]
    return bodies.JobList(jobs=[_info(job) for job in page], next_cursor=page[-1].id if len(found) > limit else None)


@routes.delete('/jobs', status_code=204)
def delete_jobs(catalog: Its, status: str) -> None:
    """Remove all jobs that have ended, or have ended in one way."""
    if status not in _CLEARED:
        raise CatalogError('INVALID_QUERY_PARAM', f'status is one of {", ".join(_CLEARED)}, not {status!r}')
    for job in catalog.jobs.all():
        if job.status in _CLEARED[status]:
            catalog.jobs.remove(job)


@routes.get('/jobs/{job_id}')
def get_job(catalog: Its, job_id: int) -> bodies.JobInfo:
    """One job."""
    return _info(_known(catalog, job_id))


@routes.delete('/jobs/{job_id}', status_code=204)
def delete_job(catalog: Its, job_id: int) -> None:
    """Remove a job that has ended."""
    job = catalog.jobs.get(job_id)
    if job is not None and job.status not in TERMINAL:
        raise CatalogError('JOB_CONFLICT', f"job '{job_id}' is {job.status} and cannot be deleted", 409)
    if job is not None:
        catalog.jobs.remove(job)


@routes.put('/jobs/{job_id}/stop')
def stop_job(catalog: Its, job_id: int) -> None:
    """Stop a job; one that has ended stays as it is."""
    catalog.jobs.stop(_known(catalog, job_id))


@routes.get('/jobs/{job_id}/progress', response_model_exclude_none=True)
def job_progress(catalog: Its, job_id: int) -> bodies.Progress:
    """How far the tables of a job are."""
    job = _known(catalog, job_id)
    return bodies.Progress(job_id=job.id, job_status=job.status, tables=_tables(job), detail=job.detail())


def _info(job: Job) -> bodies.JobInfo:
    descriptor = {
        'kind': 'materialize-derived' if job.derived else 'materialize-raw',
        'dataset_namespace': job.namespace,
        'dataset_name': job.name,
        'manifest_hash': job.manifest_hash,
        'end_block': job.end,
    }
    status = job.status
    times = {'created_at': job.created_at, 'updated_at': job.updated_at}
    return bodies.JobInfo(id=job.id, node_id=NODE_ID, status=status, descriptor=descriptor, **times)


def _statuses(text: str) -> frozenset[JobStatus]:
    if text == 'all':
        return frozenset(JobStatus)
    if text == 'active':
        return _ACTIVE
    try:
        return frozenset(JobStatus(part.strip().upper()) for part in text.split(','))
    except ValueError as error:
        raise CatalogError('INVALID_QUERY_PARAMETERS', f'invalid query parameters: {error}') from error


def _tables(job: Job) -> dict[str, bodies.TableProgress]:
    view = job.chain.snapshot()
    progress = {}
    for table in job.chain.schemas:
        stored = () if isinstance(job.chain, DerivedChain) else view.scan(table).stored
        files = [file for part in stored for file in _files(part.path)]
        progress[table] = bodies.TableProgress(
            current_block=view.last,
            start_block=view.first,
            files_count=len(files),
            total_size_bytes=sum(map(_size, files)),
        )
    return progress


def _files(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(place.glob('*.parquet'))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        # Joined into a larger one just now.
        return 0
