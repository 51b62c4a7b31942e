"""The Admin API, as far as clients use it: datasets, versions, manifests, schema, deploy, jobs, stop, progress.

Its description is served at `/openapi.json`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from fnmatch import fnmatchcase
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from amp.devserver import admin_models as bodies
from amp.devserver.admin_jobs import NODE_ID, Its
from amp.devserver.admin_jobs import routes as job_routes
from amp.devserver.admin_models import Name, Namespace, Revision, Version
from amp.devserver.catalog import Catalog, CatalogError
from amp.devserver.manifests import Manifest, arrow_fields
from amp.errors import QueryError

__all__ = ['admin_app']

_ERRORS: dict[int | str, dict[str, Any]] = {status: {'model': bodies.ErrorBody} for status in (400, 404, 409, 500)}
_STARTED = datetime.now(UTC)
_DATASET = '/datasets/{namespace}/{name}'

dataset_routes = APIRouter(tags=['datasets'])
manifest_routes = APIRouter(tags=['manifests'])
other_routes = APIRouter()


def admin_app(catalog: Catalog) -> FastAPI:
    """The application over a catalog."""
    app = FastAPI(title='Amp Admin API, local', version='1.0.0', responses=_ERRORS)
    app.add_middleware(CORSMiddleware, allow_origins=['*'], allow_methods=['*'], allow_headers=['*'])
    app.state.catalog = catalog
    for part in (dataset_routes, manifest_routes, other_routes, job_routes):
        app.include_router(part)
    app.add_exception_handler(CatalogError, _catalog_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _refused)
    return app


def _error(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({'error_code': code, 'error_message': message}, status)


def _catalog_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, CatalogError)  # noqa: S101
    return _error(error.status, error.code, str(error))


def _refused(request: Request, error: Exception) -> JSONResponse:
    """What is no route, and a body that does not parse."""
    assert isinstance(error, HTTPException)  # noqa: S101
    codes = {404: 'NOT_FOUND', 405: 'METHOD_NOT_ALLOWED'}
    texts = {404: f'there is no {request.url.path}', 405: f'{request.url.path} does not take {request.method}'}
    code = codes.get(error.status_code, 'INVALID_PAYLOAD_FORMAT')
    answer = _error(error.status_code, code, texts.get(error.status_code, f'invalid request body: {error.detail}'))
    answer.headers.update(error.headers or {})
    return answer


def _invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    first = error.errors()[0]
    place = str(first['loc'][0])
    named = '.'.join(str(part) for part in first['loc'][1:])
    text = f'{first["msg"]}: {named}' if named else str(first['msg'])
    if place == 'path':
        code = 'INVALID_JOB_ID' if request.url.path.startswith('/jobs') else 'INVALID_PATH'
        return _error(400, code, f'invalid path parameters: {text}')
    if place == 'query':
        return _error(400, 'INVALID_QUERY_PARAMETERS', f'invalid query parameters: {text}')
    code = 'INVALID_BODY' if request.url.path.endswith('/deploy') else 'INVALID_PAYLOAD_FORMAT'
    return _error(400, code, f'invalid request body: {text}')


def _described(manifest: Manifest) -> dict[str, Any]:
    """What a manifest says of its dataset."""
    return {
        'kind': manifest['kind'],
        'start_block': manifest.get('start_block'),
        'finalized_blocks_only': bool(manifest.get('finalized_blocks_only')),
        'tables': sorted(manifest['tables']),
    }


@other_routes.get('/healthz', include_in_schema=False)
def healthy() -> Response:
    """200."""
    return Response()


@other_routes.get('/workers', response_model_exclude_none=True)
def list_workers() -> bodies.Workers:
    """The one worker that there is."""
    return bodies.Workers(workers=[bodies.Worker(node_id=NODE_ID, heartbeat_at=datetime.now(UTC))])


@other_routes.get('/workers/{worker_id}', response_model_exclude_none=True)
def get_worker(worker_id: str) -> bodies.WorkerInfo:
    """What the one worker is: this process."""
    if worker_id != NODE_ID:
        raise CatalogError('WORKER_NOT_FOUND', f"worker '{worker_id}' not found", 404)
    build = bodies.Build(version=version('amp-python'), commit_sha='', commit_timestamp='', build_date='')
    now = datetime.now(UTC)
    return bodies.WorkerInfo(node_id=NODE_ID, info=build, created_at=_STARTED, registered_at=_STARTED, heartbeat_at=now)


@dataset_routes.get('/datasets', response_model_exclude_none=True)
def list_datasets(catalog: Its) -> bodies.Datasets:
    """All datasets."""
    found = [catalog.datasets[key] for key in sorted(catalog.datasets)]
    return bodies.Datasets(
        datasets=[
            bodies.DatasetSummary(namespace=d.namespace, name=d.name, latest_version=d.latest, versions=d.ordered())
            for d in found
        ]
    )


@dataset_routes.post('/datasets', status_code=201, response_model_exclude_none=True)
def register(catalog: Its, asked: bodies.RegisterRequest) -> bodies.Registration:
    """Register a dataset; nothing is deployed yet."""
    digest = catalog.register(asked.namespace, asked.name, asked.version, asked.manifest)
    described = _described(catalog.manifests[digest])
    return bodies.Registration(
        namespace=asked.namespace, name=asked.name, version=asked.version, manifest_hash=digest, **described
    )


@dataset_routes.get(_DATASET, include_in_schema=False)
def without_revision() -> Response:
    """An error, as it is on the server."""
    # The server routes this to a handler that wants a revision.
    text = 'invalid path parameters: Wrong number of path arguments for `Path`. Expected 3 but got 2'
    return _error(400, 'INVALID_PATH', text)


@dataset_routes.delete(_DATASET, status_code=204)
def delete_dataset(catalog: Its, namespace: Namespace, name: Name) -> None:
    """Forget a dataset."""
    catalog.delete(namespace, name)


@dataset_routes.get(f'{_DATASET}/versions', response_model_exclude_none=True)
def list_versions(catalog: Its, namespace: Namespace, name: Name) -> bodies.Versions:
    """The versions of a dataset, the highest first."""
    dataset = catalog.datasets.get((namespace, name))
    if dataset is None:
        return bodies.Versions(namespace=namespace, name=name, versions=[], special_tags=bodies.SpecialTags())
    listed = [
        bodies.VersionInfo(
            version=version, manifest_hash=tag.hash, created_at=tag.created_at, updated_at=tag.updated_at
        )
        for version in dataset.ordered()
        for tag in [dataset.versions[version]]
    ]
    tags = bodies.SpecialTags(latest=dataset.latest, dev=dataset.dev)
    return bodies.Versions(namespace=namespace, name=name, versions=listed, special_tags=tags)


@dataset_routes.get(f'{_DATASET}/versions/{{revision}}', response_model_exclude_none=True)
def get_version(catalog: Its, namespace: Namespace, name: Name, revision: Revision) -> bodies.DatasetInfo:
    """What a revision of a dataset is."""
    digest = catalog.resolve(namespace, name, revision)
    described = _described(catalog.manifests[digest])
    return bodies.DatasetInfo(namespace=namespace, name=name, revision=revision, manifest_hash=digest, **described)


@dataset_routes.delete(f'{_DATASET}/versions/{{version}}', status_code=204)
def delete_version(catalog: Its, namespace: Namespace, name: Name, version: Version) -> None:
    """Take a version away; its manifest stays."""
    catalog.delete_version(namespace, name, version)


@dataset_routes.get(f'{_DATASET}/versions/{{revision}}/manifest')
def version_manifest(catalog: Its, namespace: Namespace, name: Name, revision: Revision) -> dict[str, Any]:
    """The manifest of a revision."""
    return catalog.manifests[catalog.resolve(namespace, name, revision)]


@dataset_routes.post(f'{_DATASET}/versions/{{revision}}/deploy', status_code=202)
def deploy(
    catalog: Its, namespace: Namespace, name: Name, revision: Revision, asked: bodies.DeployRequest
) -> bodies.Deployed:
    """Serve a revision, and follow what it is made of."""
    if asked.worker_id is not None and not fnmatchcase(NODE_ID, asked.worker_id):
        raise CatalogError('WORKER_NOT_AVAILABLE', f'worker {asked.worker_id!r} is not available')
    return bodies.Deployed(job_id=catalog.deploy(namespace, name, revision, asked.end_block).id)


def _known(catalog: Catalog, digest: str) -> Manifest:
    if digest not in catalog.manifests:
        raise CatalogError('MANIFEST_NOT_FOUND', f"manifest '{digest}' not found", 404)
    return catalog.manifests[digest]


@manifest_routes.get('/manifests')
def list_manifests(catalog: Its) -> bodies.ManifestList:
    """All manifests."""
    counts = {digest: sum(digest in d.hashes for d in catalog.datasets.values()) for digest in catalog.manifests}
    return bodies.ManifestList(
        manifests=[
            bodies.ManifestSummary(hash=digest, kind=catalog.manifests[digest]['kind'], dataset_count=count)
            for digest, count in counts.items()
        ]
    )


@manifest_routes.post('/manifests', status_code=201)
def put_manifest(catalog: Its, manifest: dict[str, Any]) -> bodies.ManifestHash:
    """Keep a manifest that no dataset has yet."""
    return bodies.ManifestHash(hash=catalog.put_manifest(manifest))


@manifest_routes.delete('/manifests')
def prune_manifests(catalog: Its) -> bodies.Pruned:
    """Remove the manifests that no dataset has."""
    return bodies.Pruned(deleted_count=catalog.prune())


@manifest_routes.get('/manifests/{digest}')
def get_manifest(catalog: Its, digest: str) -> dict[str, Any]:
    """One manifest."""
    return _known(catalog, digest)


@manifest_routes.delete('/manifests/{digest}', status_code=204)
def delete_manifest(catalog: Its, digest: str) -> None:
    """Remove a manifest that no dataset has."""
    if any(digest in dataset.hashes for dataset in catalog.datasets.values()):
        raise CatalogError('MANIFEST_LINKED', f"manifest '{digest}' is linked to a dataset", 409)
    catalog.manifests.pop(digest, None)


@manifest_routes.get('/manifests/{digest}/datasets')
def manifest_datasets(catalog: Its, digest: str) -> bodies.ManifestDatasets:
    """The versions that name a manifest."""
    _known(catalog, digest)
    tags = [
        bodies.ManifestTag(namespace=dataset.namespace, name=dataset.name, version=version)
        for dataset in catalog.datasets.values()
        for version, tag in dataset.versions.items()
        if tag.hash == digest
    ]
    return bodies.ManifestDatasets(hash=digest, datasets=tags)


@other_routes.post('/schema')
def analyze(catalog: Its, asked: bodies.SchemaRequest) -> bodies.SchemaResponse:
    """The columns of tables, without deploying them."""
    if not asked.tables and not asked.functions:
        raise CatalogError('EMPTY_TABLES_AND_FUNCTIONS', 'no tables or functions provided')
    schemas = {}
    for table, sql in asked.tables.items():
        try:
            engine, planned = catalog.plan({table: sql}, asked.dependencies)
        except QueryError as error:
            raise CatalogError(_schema_code(str(error)), f"table '{table}': {error}") from error
        used = {dataset for dataset, _ in planned[table].stream.query.tables}
        networks = sorted({engine.datasets[dataset].network for dataset in used})
        schemas[table] = bodies.TableSchema(schema=arrow_fields(planned[table].schema), networks=networks)
    return bodies.SchemaResponse(schemas=schemas)


def _schema_code(text: str) -> str:
    codes = {
        'SQL parse error': 'INVALID_TABLE_SQL',
        'non-incremental': 'NON_INCREMENTAL_QUERY',
        'Catalog-qualified': 'CATALOG_QUALIFIED_TABLE',
        'Dataset not found': 'DEPENDENCY_ALIAS_NOT_FOUND',
        'not found in dataset': 'TABLE_NOT_FOUND_IN_DATASET',
        'Failed to resolve table': 'TABLE_REFERENCE_RESOLUTION',
    }
    return next((code for part, code in codes.items() if part in text), 'SCHEMA_INFERENCE')
