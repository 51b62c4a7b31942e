"""What runs amp in containers, read as its readers do: linters, schemas, and the names that each must share."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry

from amp.instrumentation import prometheus

pytestmark = pytest.mark.unit

REPOSITORY = Path(__file__).parents[2]
DOCKERFILES = ('Dockerfile', 'Dockerfile.snowflake')


def text_of(path: str) -> str:
    return (REPOSITORY / path).read_text()


def metrics() -> set[str]:
    """The names that Prometheus sees, before any event."""
    registry = CollectorRegistry()
    end = prometheus.watch(registry)
    try:
        return {name for metric in registry.collect() for name in series(metric.name, metric.type)}
    finally:
        end()


def series(name: str, kind: str) -> set[str]:
    suffixes = {'counter': ('_total',), 'histogram': ('_bucket', '_sum', '_count')}.get(kind, ('',))
    return {name + suffix for suffix in suffixes}


@pytest.mark.parametrize('name', DOCKERFILES)
def test_dockerfiles_have_no_findings(name):
    hadolint = Path(sys.executable).with_name('hadolint')
    done = subprocess.run([hadolint, REPOSITORY / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize('name', DOCKERFILES)
def test_an_image_runs_as_nobody_and_tells_its_health(name):
    text = text_of(name)
    final = text[text.rindex('FROM ') :]
    assert re.search(r'^USER 10001:10001$', final, re.MULTILINE)
    assert 'HEALTHCHECK' in final
    assert 'VOLUME' not in text
    assert final.index('USER') < final.index('ENTRYPOINT')


@pytest.mark.parametrize('name', DOCKERFILES)
def test_what_an_image_copies_is_there_and_not_ignored(name):
    allowed = {line.removeprefix('!') for line in text_of('.dockerignore').splitlines() if line.startswith('!')}
    for line in re.findall(r'^COPY (?!--from)(.+)$', text_of(name), re.MULTILINE):
        for source in line.split()[:-1]:
            assert (REPOSITORY / source).exists(), source
            assert source.split('/')[0] in allowed, f'.dockerignore leaves {source} out'


def test_the_extras_of_the_images_are_extras_of_the_project():
    import tomllib

    known = set(tomllib.loads(text_of('pyproject.toml'))['project']['optional-dependencies'])
    for name in DOCKERFILES:
        [extras] = re.findall(r'^ARG EXTRAS=(.+)$', text_of(name), re.MULTILINE)
        assert set(extras.split(',')) <= known


@pytest.mark.parametrize('name', ['deployment', 'snowflake-job'])
def test_manifests_are_what_kubernetes_knows(name):
    manifest = yaml.safe_load(text_of(f'k8s/{name}.yaml'))
    kubernetes_validate.validate(manifest, '1.32', strict=True)
    pod = manifest['spec']['template']['spec']
    assert pod['securityContext']['runAsNonRoot']
    assert not pod['automountServiceAccountToken']
    for container in pod['containers'] + pod.get('initContainers', []):
        assert container['securityContext']['readOnlyRootFilesystem']
        assert 'memory' in container['resources']['limits']
        secret = [v for v in container.get('env', []) if re.search('TOKEN|PASSWORD|CONN', v['name'])]
        assert all('secretKeyRef' in v['valueFrom'] for v in secret)
    assert 'livenessProbe' in pod['containers'][0]


def test_the_arguments_of_the_deployment_are_arguments_of_amp():
    """The command line reads them: only what it says of the destination may be wrong here."""
    manifest = yaml.safe_load(text_of('k8s/deployment.yaml'))
    arguments = manifest['spec']['template']['spec']['containers'][0]['args']
    amp = Path(sys.executable).with_name('amp')
    done = subprocess.run([amp, *arguments], capture_output=True, text=True, check=False, env={'PATH': '/usr/bin:/bin'})
    assert done.returncode == 3
    assert 'tokens.csv' in done.stderr


@pytest.mark.parametrize('name', ['labels-configmap', 'labels-volume'])
def test_the_other_ways_for_labels_patch_what_the_deployment_has(name):
    patch = yaml.safe_load(text_of(f'k8s/{name}.yaml'))['spec']['template']['spec']
    pod = yaml.safe_load(text_of('k8s/deployment.yaml'))['spec']['template']['spec']
    assert {v['name'] for v in patch['volumes']} <= {v['name'] for v in pod['volumes']}
    assert {c['name'] for c in patch['initContainers']} <= {c['name'] for c in pod['initContainers']}
    kubectl = shutil.which('kubectl')
    if kubectl is not None:
        files = ['-f', str(REPOSITORY / 'k8s/deployment.yaml'), '--patch-file', str(REPOSITORY / f'k8s/{name}.yaml')]
        done = subprocess.run(
            [kubectl, 'patch', '--local', '-o', 'json', *files], capture_output=True, text=True, check=True
        )
        patched = json.loads(done.stdout)
        kubernetes_validate.validate(patched, '1.32', strict=True)
        assert not patched['spec']['template']['spec'].get('initContainers')


def test_alerts_and_dashboard_ask_for_metrics_that_there_are():
    known = metrics()
    rules = yaml.safe_load(text_of('ops/alerts.yaml'))['groups'][0]['rules']
    panels = json.loads(text_of('ops/grafana-dashboard.json'))['panels']
    asked = [rule['expr'] for rule in rules] + [target['expr'] for panel in panels for target in panel['targets']]
    for expression in asked:
        names = set(re.findall(r'\bamp_\w+', expression))
        assert names
        assert names <= known, expression
    shown = {name for expression in asked for name in re.findall(r'\bamp_\w+', expression)}
    told = set(re.findall(r'`(amp_\w+)`', text_of('docs/operations.md')))
    assert {name.removesuffix('_bucket') for name in shown} == told


def test_a_workflow_names_both_images_and_their_files():
    jobs = yaml.safe_load(text_of('.github/workflows/docker-publish.yml'))['jobs']
    images = {one['name']: one['file'] for one in jobs['image']['strategy']['matrix']['include']}
    assert images == {'amp-python': 'Dockerfile', 'amp-snowflake': 'Dockerfile.snowflake'}
