# SPDX-License-Identifier: Apache-2.0
# docker build -f deploy/containers/router.Dockerfile -t sluice-router:0.1.0 .       (or: make images)
# The router with its Kubernetes part, and the shim for images of both C libraries, glibc and musl.
ARG BASE=debian:bookworm-slim
FROM ${BASE} AS build
RUN apt-get update && apt-get install -y --no-install-recommends \
      gcc libc6-dev pkg-config libibverbs-dev librdmacm-dev musl-tools python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY . /src
# Of what was installed, what only installs and tests others stays here.
RUN python3 -m venv /opt/sluice && /opt/sluice/bin/pip install --no-cache-dir '/src[kubernetes]' \
    && /opt/sluice/bin/pip uninstall --yes setuptools pip \
    && find /opt/sluice/lib -type d -name tests -prune -exec rm -rf {} +

FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends python3 libibverbs1 ibverbs-providers \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /usr/share/man/* \
    && find /usr/share/doc -type f ! -name copyright -delete
COPY --from=build /opt/sluice /opt/sluice
# `kubectl exec` finds `sluice` too.
ENV PYTHONDONTWRITEBYTECODE=1 PATH=/opt/sluice/bin:$PATH
ENTRYPOINT ["/opt/sluice/bin/sluice"]
CMD ["router"]
