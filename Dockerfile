# syntax=docker/dockerfile:1
# amp: the command line with its servers' drivers. Build:  docker build -t amp-python .
# Fewer drivers, a smaller image:  docker build --build-arg EXTRAS=postgresql,prometheus -t amp-python .
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG EXTRAS=duckdb,postgresql,clickhouse,deltalake,iceberg,redis,lmdb,parquet,prometheus
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY packages/amplify-db-utils packages/amplify-db-utils
COPY src src
RUN python -m venv /opt/amp \
    && /opt/amp/bin/pip install --no-cache-dir ./packages/amplify-db-utils ".[${EXTRAS}]" \
    && find /opt/amp -type d -name tests -path '*/site-packages/*' -prune -exec rm -rf {} +

FROM python:${PYTHON}-slim
LABEL org.opencontainers.image.title="amp-python" \
      org.opencontainers.image.description="Lands blockchain data from Amp in a database, exactly once" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 amp \
    && useradd --uid 10001 --gid amp --no-create-home --home-dir /tmp --shell /usr/sbin/nologin amp \
    && install --directory --owner=amp --group=amp /data /state
COPY --from=build /opt/amp /opt/amp
# Labels are mounted at /data and never part of the image. /state is for destinations that are files.
ENV PATH=/opt/amp/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    AMP_LABEL_DIR=/data \
    AMP_METRICS=:9464
WORKDIR /state
USER 10001:10001
EXPOSE 9464
# Loads and streams answer for their metrics as long as they live.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['AMP_METRICS'].rpartition(':')[2] + '/metrics', timeout=4)"]
ENTRYPOINT ["amp"]
CMD ["--help"]
