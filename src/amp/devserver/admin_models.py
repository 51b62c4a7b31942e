"""The bodies of the Admin API. Keys that have no value are left out of answers."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from amp.devserver.jobs import JobStatus
from amp.devserver.names import SEMVER, TABLE

__all__ = [
    'Build',
    'DatasetInfo',
    'DatasetSummary',
    'Datasets',
    'DeployRequest',
    'Deployed',
    'ErrorBody',
    'JobInfo',
    'JobList',
    'ManifestDatasets',
    'ManifestHash',
    'ManifestList',
    'ManifestSummary',
    'ManifestTag',
    'Name',
    'Namespace',
    'Progress',
    'Pruned',
    'RegisterRequest',
    'Registration',
    'Revision',
    'SchemaRequest',
    'SchemaResponse',
    'SpecialTags',
    'TableProgress',
    'TableSchema',
    'Version',
    'VersionInfo',
    'Versions',
    'Worker',
    'WorkerInfo',
    'Workers',
]

Namespace = Annotated[str, StringConstraints(pattern=r'^[a-z0-9_]+$')]
Name = Annotated[str, StringConstraints(pattern=r'^[a-z_][a-z0-9_]*$')]
Version = Annotated[str, StringConstraints(pattern=rf'^{SEMVER}$')]
Revision = Annotated[str, StringConstraints(pattern=rf'^(?:{SEMVER}|[0-9a-f]{{64}}|latest|dev)$')]
TableName = Annotated[str, StringConstraints(pattern=rf'^{TABLE}$')]
Reference = Annotated[
    str, StringConstraints(pattern=rf'^(?:[a-z0-9_]+/)?[a-z_][a-z0-9_]*@(?:{SEMVER}|[0-9a-f]{{64}})$')
]


class ErrorBody(BaseModel):
    """An error: a code that stays, and a text for people."""

    error_code: str
    error_message: str


class DatasetSummary(BaseModel):
    """A dataset and its versions, the highest first."""

    namespace: str
    name: str
    latest_version: str | None = None
    versions: list[str]


class Datasets(BaseModel):
    """All datasets."""

    datasets: list[DatasetSummary]


class RegisterRequest(BaseModel):
    """A dataset to be registered; without a version only `dev` moves."""

    namespace: Namespace
    name: Name
    version: Version | None = None
    manifest: dict[str, Any] | str


class Registration(BaseModel):
    """What was registered."""

    namespace: str
    name: str
    version: str | None = None
    manifest_hash: str
    kind: str
    start_block: int | None = None
    finalized_blocks_only: bool
    tables: list[str]


class DatasetInfo(BaseModel):
    """One revision of a dataset."""

    namespace: str
    name: str
    revision: str
    manifest_hash: str
    kind: str
    start_block: int | None = None
    finalized_blocks_only: bool
    tables: list[str]


class VersionInfo(BaseModel):
    """A version and the manifest that it names."""

    version: str
    manifest_hash: str
    created_at: datetime
    updated_at: datetime


class SpecialTags(BaseModel):
    """What `latest` (a version) and `dev` (a hash) mean now."""

    latest: str | None = None
    dev: str | None = None


class Versions(BaseModel):
    """The versions of a dataset."""

    namespace: str
    name: str
    versions: list[VersionInfo]
    special_tags: SpecialTags


class DeployRequest(BaseModel):
    """How far, and by whom; a number is written as text."""

    model_config = ConfigDict(strict=True)

    end_block: Annotated[str, StringConstraints(pattern=r'^(?:latest|-?\d+)$')] | None = None
    parallelism: int = Field(default=1, ge=1, le=65535)
    worker_id: str | None = None
    verify: bool = False


class Deployed(BaseModel):
    """The job that was begun."""

    job_id: int


class JobInfo(BaseModel):
    """A job."""

    id: int
    created_at: datetime
    updated_at: datetime
    node_id: str
    status: JobStatus
    descriptor: dict[str, Any]


class JobList(BaseModel):
    """Some jobs, the latest first; `next_cursor` is there when there are more."""

    jobs: list[JobInfo]
    next_cursor: int | None = None


class TableProgress(BaseModel):
    """How far a table is."""

    current_block: int | None = None
    start_block: int | None = None
    files_count: int
    total_size_bytes: int


class Progress(BaseModel):
    """How far a job is. `detail` says what is in its way."""

    job_id: int
    job_status: JobStatus
    tables: dict[str, TableProgress]
    detail: str | None = None


class ManifestHash(BaseModel):
    """The name of a manifest."""

    hash: str


class ManifestSummary(BaseModel):
    """A manifest, and how many datasets have it."""

    hash: str
    kind: str
    dataset_count: int


class ManifestList(BaseModel):
    """All manifests."""

    manifests: list[ManifestSummary]


class ManifestTag(BaseModel):
    """A version that names a manifest."""

    namespace: str
    name: str
    version: str


class ManifestDatasets(BaseModel):
    """The versions that name a manifest."""

    hash: str
    datasets: list[ManifestTag]


class Pruned(BaseModel):
    """How many manifests were removed."""

    deleted_count: int


class SchemaRequest(BaseModel):
    """Tables by name as SQL over datasets by alias."""

    tables: dict[TableName, str] = {}
    dependencies: dict[str, Reference] = {}
    functions: dict[str, Any] = {}


class TableSchema(BaseModel):
    """The columns of a table, and the networks that its dataset reads."""

    model_config = ConfigDict(serialize_by_alias=True)

    columns: dict[str, Any] = Field(alias='schema')
    networks: list[str]


class SchemaResponse(BaseModel):
    """The columns of each table."""

    schemas: dict[str, TableSchema]


class Worker(BaseModel):
    """The one worker that there is."""

    node_id: str
    heartbeat_at: datetime


class Workers(BaseModel):
    """All workers."""

    workers: list[Worker]


class Build(BaseModel):
    """Of which build a worker is; empty where a build does not say."""

    version: str
    commit_sha: str
    commit_timestamp: str
    build_date: str


class WorkerInfo(BaseModel):
    """A worker in detail."""

    node_id: str
    info: Build
    created_at: datetime
    registered_at: datetime
    heartbeat_at: datetime
