# SPDX-License-Identifier: Apache-2.0
# The shim alone, as one file for the C library of the image that will load it:
#   docker build -f deploy/containers/shim.Dockerfile --target glibc --output . .     makes ./libsluice.so
#   docker build -f deploy/containers/shim.Dockerfile --target musl --output . .      makes ./libsluice-musl.so
ARG BASE=debian:bookworm-slim
FROM ${BASE} AS build
RUN apt-get update && apt-get install -y --no-install-recommends \
      gcc libc6-dev pkg-config libibverbs-dev librdmacm-dev musl-tools python3-venv \
    && rm -rf /var/lib/apt/lists/*
# Debian 12's own meson is too old.
RUN python3 -m venv /opt/meson && /opt/meson/bin/pip install --no-cache-dir meson ninja
ENV PATH=/opt/meson/bin:/usr/bin:/bin
COPY . /src
RUN meson setup -Drouter=false /build /src && ninja -C /build

FROM scratch AS glibc
COPY --from=build /build/shim/libsluice.so /libsluice.so

FROM scratch AS musl
COPY --from=build /build/shim/libsluice-musl.so /libsluice-musl.so
