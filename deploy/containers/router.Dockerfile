# SPDX-License-Identifier: Apache-2.0
# docker build -f deploy/containers/router.Dockerfile -t sluice-router:0.1.0 .
# The router with its Kubernetes part, and the shim for glibc (here) and musl (from the second stage) images.
FROM debian:bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends \
      gcc libc6-dev pkg-config libibverbs-dev librdmacm-dev python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN python3 -m venv /opt/sluice && /opt/sluice/bin/pip install --no-cache-dir '/src[kubernetes]'

FROM alpine:3.20 AS musl
RUN apk add --no-cache gcc musl-dev meson ninja pkgconf rdma-core-dev linux-headers
COPY . /src
RUN meson setup -Drouter=false /build /src && ninja -C /build

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends python3 libibverbs1 ibverbs-providers \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/sluice /opt/sluice
COPY --from=musl /build/shim/libsluice.so /tmp/libsluice-musl.so
RUN mv /tmp/libsluice-musl.so "$(dirname "$(/opt/sluice/bin/python -c 'import sluice; print(sluice.shim_path())')")/"
ENTRYPOINT ["/opt/sluice/bin/sluice"]
CMD ["router"]
