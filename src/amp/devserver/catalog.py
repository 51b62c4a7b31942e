"""The datasets of a server: manifests by hash, versions that name them, and what of them is served.

A query sees the revision of a dataset that it names; where it names none that is registered under that namespace, the one
that was deployed last.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from amp.devserver.chain import Chain
from amp.devserver.derived import DerivedChain, plan_tables
from amp.devserver.engine import Engine
from amp.devserver.jobs import Job, Jobs, JobStatus
from amp.devserver.manifests import Manifest, derived_manifest, manifest_hash, raw_manifest
from amp.devserver.names import TABLE, dataset_name, parse_reference
from amp.devserver.sources import Source
from amp.errors import ConfigError, QueryError

__all__ = ['Catalog', 'CatalogError', 'Registered', 'Tagged', 'version_key']

RAW_KINDS = ('evm-rpc', 'firehose')
_FIRST_VERSION = '0.0.1'


class CatalogError(Exception):
    """What was asked for cannot be; `code` and `status` are those of the Admin API."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


def _now() -> datetime:
    return datetime.now(UTC)


VersionKey = tuple[tuple[tuple[int, str], ...], bool, tuple[tuple[bool, int, str], ...]]


def version_key(version: str) -> VersionKey:
    """Orders versions: a pre-release comes before its release, and the numbers in it by their values, before words."""
    numbers, _, rest = version.partition('+')[0].partition('-')
    # Without zeros in front the longer number is the larger one, however long.
    places = tuple((len(number), number) for number in numbers.split('.'))
    parts = tuple((not part.isdecimal(), len(part) if part.isdecimal() else 0, part) for part in rest.split('.'))
    return places, not rest, parts


@dataclass
class Tagged:
    """A version: the manifest that it names."""

    hash: str
    created_at: datetime = field(default_factory=_now)
    updated_at: datetime = field(default_factory=_now)


@dataclass
class Registered:
    """A dataset: its versions, and the manifests that were ever its own."""

    namespace: str
    name: str
    versions: dict[str, Tagged] = field(default_factory=dict)
    hashes: set[str] = field(default_factory=set)
    dev: str | None = None

    @property
    def latest(self) -> str | None:
        """The highest version."""
        return max(self.versions, key=version_key, default=None)

    def ordered(self) -> list[str]:
        """The versions, the highest first."""
        return sorted(self.versions, key=version_key, reverse=True)


class Catalog:
    """Registers and deploys datasets over an engine. Safe to share between threads."""

    def __init__(self, sources: Mapping[str, Source], engine: Engine) -> None:
        self._sources = dict(sources)
        self._engine = engine
        self._lock = threading.RLock()
        self._chains: dict[str, Chain] = {}
        self.manifests: dict[str, Manifest] = {}
        self.datasets: dict[tuple[str, str], Registered] = {}
        self.jobs = Jobs()
        engine.key_of = self.key_of

    def add_sources(self, versions: Mapping[str, str] | None = None) -> None:
        """Register and deploy every raw dataset that the server has of itself."""
        for name, source in self._sources.items():
            version = (versions or {}).get(name, _FIRST_VERSION)
            manifest = raw_manifest(source.chain, source.start_block)
            self._tag('_', name, version, self.put_manifest(manifest))
            self.deploy('_', name, version, None)

    def put_manifest(self, manifest: Manifest) -> str:
        """Keep a manifest; its hash. Raises CatalogError when it cannot be meant."""
        _check_manifest(manifest)
        digest = manifest_hash(manifest)
        with self._lock:
            self.manifests.setdefault(digest, manifest)
        return digest

    def register(self, namespace: str, name: str, version: str | None, manifest: Manifest | str) -> str:
        """Give a dataset a manifest (or one that is known, by hash), under a version or as `dev`; its hash.

        Raises CatalogError, for SQL that does not plan or cannot be followed too.
        """
        with self._lock:
            if isinstance(manifest, str):
                if manifest not in self.manifests:
                    raise CatalogError('MANIFEST_NOT_FOUND', f'manifest {manifest} not found', 404)
                digest = manifest
            else:
                digest = self.put_manifest(manifest)
            chain = self._chain_of(name, digest)
            self._tag(namespace, name, version, digest)
            served = self._engine.datasets.get(name)
            if served is None or (isinstance(served, DerivedChain) and not served.deployed):
                self._serve_bare(namespace, name, chain)
        return digest

    def resolve(self, namespace: str, name: str, revision: str) -> str:
        """The hash that a version, a hash, `latest` or `dev` means. Raises CatalogError."""
        dataset = self.datasets.get((namespace, name))
        found: str | None = None
        if dataset is not None:
            wanted = dataset.latest if revision == 'latest' else revision
            if revision == 'dev':
                found = dataset.dev
            elif wanted in dataset.versions:
                found = dataset.versions[wanted].hash
            elif revision in dataset.hashes:
                found = revision
        if found is None:
            text = f"Dataset '{namespace}/{name}' at revision '{revision}' not found"
            raise CatalogError('DATASET_NOT_FOUND', text, 404)
        return found

    def key_of(self, reference: str) -> str | None:
        """Which dataset of the engine a reference means; None when it is no reference."""
        parsed = parse_reference(reference)
        if parsed is None:
            return None
        namespace, name, revision = parsed
        known = self.datasets.get((namespace, name))
        if known is None:
            return name
        try:
            key = _key(name, self.resolve(namespace, name, revision or 'latest'))
        except CatalogError:
            # The server's own datasets are there under every revision, so that queries need no change for a laptop.
            return name if revision is None or name in self._sources else reference
        return key if key in self._engine.datasets else name

    def deploy(self, namespace: str, name: str, revision: str, end_block: str | None) -> Job:
        """Serve a revision, to `end_block` (`latest`, a number, or one below the latest) or for ever."""
        with self._lock:
            digest = self.resolve(namespace, name, revision)
            chain = self._chain_of(name, digest)
            for job in self.jobs.all():
                if job.chain is chain and (job.namespace, job.name) == (namespace, name):
                    self.jobs.stop(job)
            if not isinstance(chain, DerivedChain):
                if end_block is not None:
                    raise CatalogError('SCHEDULER_ERROR', 'the local Amp follows raw datasets without an end block')
                return self._run_raw(namespace, name, digest, chain)
            derived: DerivedChain = chain
            derived.limit = None
            derived.deployed = True
            end = _end_of(derived, end_block)
            derived.limit = end
            self._serve_bare(namespace, name, derived)

            def stop() -> None:
                last = derived.snapshot().last
                derived.limit = -1 if last is None else last

            job = self.jobs.add(lambda id_: Job(id_, namespace, name, digest, True, derived, stop, lambda: None, end))
            job.become(JobStatus.RUNNING)
            return job

    def delete(self, namespace: str, name: str) -> None:
        """Forget a dataset; what it was served as stays, if it is one of the server's own."""
        with self._lock:
            dataset = self.datasets.pop((namespace, name), None)
            if dataset is None:
                return
            for job in self.jobs.all():
                if (job.namespace, job.name) == (namespace, name) and job.derived:
                    self.jobs.stop(job)
            others = {digest for other in self.datasets.values() if other.name == name for digest in other.hashes}
            gone = {_key(name, digest) for digest in dataset.hashes - others}
            if self._engine.datasets.get(name) in [self._chains.get(key) for key in gone]:
                gone.add(name)
            self._engine.datasets = {k: v for k, v in self._engine.datasets.items() if k not in gone}
            self.prune()

    def prune(self) -> int:
        """Forget the manifests that no dataset has; how many those were."""
        with self._lock:
            linked = {digest for dataset in self.datasets.values() for digest in dataset.hashes}
            orphans = self.manifests.keys() - linked
            for digest in orphans:
                del self.manifests[digest]
            return len(orphans)

    def plan(self, sql: Mapping[str, str], dependencies: Mapping[str, str]) -> tuple[Engine, dict[str, Any]]:
        """The tables of SQL over datasets by alias. Raises CatalogError for unknown ones, QueryError for bad SQL."""
        chains = {alias: self._dependency(alias, reference) for alias, reference in dependencies.items()}
        nodes = {
            alias: node
            for alias, reference in dependencies.items()
            if (name := dataset_name(reference)) in self._sources and (node := self._sources[name].node) is not None
        }
        return plan_tables(sql, chains, nodes)

    def _dependency(self, alias: str, reference: str) -> Chain:
        chain = self._engine.datasets.get(self.key_of(reference) or '')
        if chain is None:
            text = f'dependency {alias!r} not found: {reference}'
            raise CatalogError('DEPENDENCY_NOT_FOUND', text, 404)
        return chain

    def _chain_of(self, name: str, digest: str) -> Chain:
        """What serves a manifest under that name."""
        manifest = self.manifests[digest]
        if manifest['kind'] in RAW_KINDS:
            chain = self._raw_chain(name, manifest)
            if self._engine.datasets.get(name) is not chain:
                self._serve(_key(name, digest), chain)
            return chain
        key = _key(name, digest)
        if key not in self._chains:
            self._chains[key] = self._derived_chain(name, manifest)
        self._serve(_key(name, digest), self._chains[key])
        return self._chains[key]

    def _raw_chain(self, name: str, manifest: Manifest) -> Chain:
        source = self._sources.get(name)
        network = manifest['network']
        for other in [*([source] if source is not None else []), *self._sources.values()]:
            if other.chain.network == network and manifest['tables'].keys() <= other.chain.schemas.keys():
                return other.chain
        networks = sorted({each.chain.network for each in self._sources.values()})
        if network in networks:
            chains = [each.chain for each in self._sources.values() if each.chain.network == network]
            listed = ' or '.join(', '.join(chain.schemas) for chain in chains)
            text = f'the tables of the network {network} are {listed}, not {", ".join(manifest["tables"])}'
            raise CatalogError('MANIFEST_VALIDATION_ERROR', text)
        known = ', '.join(networks) or 'none'
        raise CatalogError(
            'MANIFEST_VALIDATION_ERROR', f'this server has no source of the network {network}; it has {known}'
        )

    def _derived_chain(self, name: str, manifest: Manifest) -> DerivedChain:
        try:
            sql = {table: described['input']['sql'] for table, described in manifest['tables'].items()}
            engine, tables = self.plan(sql, manifest.get('dependencies') or {})
            return DerivedChain(name, tables, engine)
        except (KeyError, TypeError, AttributeError) as error:
            raise CatalogError('INVALID_MANIFEST', f'invalid manifest: {error!r}') from error
        except (QueryError, ConfigError) as error:
            raise CatalogError('MANIFEST_VALIDATION_ERROR', f'manifest validation failed: {error}') from error

    def _run_raw(self, namespace: str, name: str, digest: str, chain: Chain) -> Job:
        self._serve_bare(namespace, name, chain)
        source = next(source for source in self._sources.values() if source.chain is chain)
        follower = source.follower

        def detail() -> str | None:
            return str(follower.error) if follower is not None and follower.error is not None else None

        job = self.jobs.add(lambda id_: Job(id_, namespace, name, digest, False, chain, source.stop, detail))
        job.become(JobStatus.RUNNING)
        if follower is None and source.simulator is None:
            job.become(JobStatus.COMPLETED)
        elif source.started:
            source.start()
        return job

    def _tag(self, namespace: str, name: str, version: str | None, digest: str) -> None:
        dataset = self.datasets.setdefault((namespace, name), Registered(namespace, name))
        dataset.hashes.add(digest)
        dataset.dev = digest
        if version is not None:
            known = dataset.versions.setdefault(version, Tagged(digest))
            if known.hash != digest:
                known.hash, known.updated_at = digest, _now()
        self._names_changed()

    def delete_version(self, namespace: str, name: str, version: str) -> None:
        """Take a version away; its manifest stays. Raises CatalogError for the latest one."""
        with self._lock:
            dataset = self.datasets.get((namespace, name))
            if dataset is None:
                return
            if version == dataset.latest:
                raise CatalogError('CANNOT_DELETE_LATEST_VERSION', f'version {version} is the latest')
            dataset.versions.pop(version, None)
            self._names_changed()

    def _names_changed(self) -> None:
        # The engine remembers what references mean for as long as its datasets are the very same.
        self._engine.datasets = dict(self._engine.datasets)

    def _serve_bare(self, namespace: str, name: str, chain: Chain) -> None:
        """Serve a chain under a name alone, which means the namespace `_` where that has a dataset of the name."""
        if namespace != '_' and ('_', name) in self.datasets:
            return
        served = self._engine.datasets.get(name)
        own = self._sources.get(name)
        if own is not None and served is own.chain and chain is not served:
            # Its revisions are still asked for.
            for digest in self.datasets['_', name].hashes:
                if self.manifests[digest]['kind'] in RAW_KINDS:
                    self._serve(_key(name, digest), served)
        self._serve(name, chain)

    def _serve(self, name: str, chain: Chain) -> None:
        # Replaced as a whole: others may be looking at it.
        self._engine.datasets = {**self._engine.datasets, name: chain}

    def add_derived(self, name: str, sql: Mapping[str, str], dependencies: Mapping[str, str], version: str) -> None:
        """Register and deploy a derived dataset of the server's own. Raises CatalogError."""
        described = {table: {'input': {'sql': text}} for table, text in sql.items()}
        chain = self._derived_chain(name, {'dependencies': dict(dependencies), 'tables': described})
        manifest = derived_manifest(chain, dependencies)
        self.register('_', name, version, manifest)
        self.deploy('_', name, version, None)


def _check_manifest(manifest: Manifest) -> None:
    """Raises CatalogError."""
    kind = manifest.get('kind')
    if kind not in {*RAW_KINDS, 'manifest'}:
        raise CatalogError('UNSUPPORTED_DATASET_KIND', f'unsupported dataset kind {kind!r}')
    if not isinstance(manifest.get('tables'), dict) or not manifest['tables']:
        raise CatalogError('INVALID_MANIFEST', 'invalid manifest: it has no tables')
    for table, described in manifest['tables'].items():
        _check_table(str(table), described, derived=kind == 'manifest')
    if manifest.get('functions'):
        raise CatalogError('INVALID_MANIFEST', 'invalid manifest: the local Amp runs no functions of manifests')
    if kind in RAW_KINDS and not (isinstance(manifest.get('network'), str) and manifest['network']):
        raise CatalogError('INVALID_MANIFEST', 'invalid manifest: it names no network')
    if not isinstance(manifest.get('start_block') or 0, int):
        raise CatalogError('INVALID_MANIFEST', 'invalid manifest: start_block is no number')
    dependencies = manifest.get('dependencies') or {}
    if not isinstance(dependencies, dict) or not all(isinstance(each, str) for each in dependencies.values()):
        raise CatalogError('INVALID_MANIFEST', 'invalid manifest: dependencies are references by name')


def _check_table(name: str, described: object, *, derived: bool) -> None:
    if not re.fullmatch(TABLE, name):
        raise CatalogError('INVALID_MANIFEST', f'invalid manifest: {name!r} is no name of a table')
    if not isinstance(described, dict):
        raise CatalogError('INVALID_MANIFEST', f'invalid manifest: the table {name} is no object')
    given = described.get('input')
    if derived and not (isinstance(given, dict) and isinstance(given.get('sql'), str)):
        raise CatalogError('INVALID_MANIFEST', f'invalid manifest: the table {name} has no input.sql')


def _key(name: str, digest: str) -> str:
    return f'{name}@{digest}'


def _end_of(chain: Chain, end_block: str | None) -> int | None:
    if end_block is None:
        return None
    last = chain.snapshot().last
    try:
        number = 0 if end_block == 'latest' else int(end_block)
    except ValueError:
        raise CatalogError('INVALID_BODY', f'Invalid request body: end_block is {end_block!r}') from None
    if end_block != 'latest' and not end_block.startswith('-'):
        return number
    return (last if last is not None else -1) + number
