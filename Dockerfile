# The official image: its interpreter is built with profile and link-time optimisation, which costs a fifth less CPU a call than
# one built without (tests/bench/RESULTS.md). Debian's slim, not Alpine: every dependency has a wheel for glibc, so nothing is
# compiled. The digest is what is pulled, of the index over all architectures; the version before it is for readers.
ARG PYTHON_IMAGE=python:3.11.15-slim-bookworm@sha256:d29f48a31a8b408ed19272ca1e7b10ebae13b240a27e862d3d4217c528e2e0c3

FROM ${PYTHON_IMAGE} AS build
WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ONLY_BINARY=:all:
RUN python -m venv --without-pip /opt/gateway
COPY config/requirements-build.txt config/requirements.txt ./
RUN pip install --require-hashes -r requirements-build.txt \
    && pip --python /opt/gateway/bin/python install --require-hashes -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
# By the build tool installed above: the usual isolation would fetch one that no hash pins.
RUN pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && pip --python /opt/gateway/bin/python install --no-deps dist/*.whl

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Masking Gateway" \
      org.opencontainers.image.description="Swaps an internal credential for the telephony vendor's, after recording and limiting the call." \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The official image comes without compiled library modules; a read-only root could never keep them, and each worker would compile
# them again at each start. Folders here, so that volumes laid over them belong to the gateway.
RUN python -m pip uninstall --quiet --yes --root-user-action=ignore pip setuptools wheel \
    && python -m compileall -q -x '/(test|tests|lib2to3|idlelib|site-packages)/' /usr/local/lib/python3.11 \
    && groupadd --gid 10001 gateway \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin gateway \
    && install -d -o gateway -g gateway -m 700 /var/lib/masking-gateway /var/lib/masking-archive /var/lib/masking-secrets \
    && install -d -o gateway -g gateway -m 755 /var/lib/masking-redis
COPY --from=build /opt/gateway /opt/gateway
ENV PATH=/opt/gateway/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 GATEWAY_STATE_DIR=/var/lib/masking-gateway
# A number: Kubernetes proves `runAsNonRoot` by it.
USER 10001:10001
EXPOSE 8080
# Of `serve`; the other commands have checks of their own where they are run.
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-IS", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/livez', timeout=2)"]
# As process 1, without an init: it takes SIGTERM itself, and waits for each process it starts.
ENTRYPOINT ["gateway"]
CMD ["serve"]
