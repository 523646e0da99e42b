#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the container images where no Docker runs: by buildah, in a chroot.
#
#   build.sh FOLDER     leaves router.tar (an image archive: docker load, ctr images import), libsluice.so, libsluice-musl.so
#
# The base is Debian 12 as this machine's own package source has it, made by debootstrap, once: no image registry is needed.
# BASE=debian:bookworm-slim takes a registry's in its place. Needs root, buildah and debootstrap.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=$1
storage=${XDG_CACHE_HOME:-$HOME/.cache}/sluice/images
base=${BASE:-localhost/sluice-base:bookworm-slim}
buildah=(buildah --root "$storage/root" --runroot "$storage/run" --storage-driver vfs)
mkdir -p "$folder" "$storage"

if ! "${buildah[@]}" inspect --type image "$base" >/dev/null 2>&1 && [ -z "${BASE:-}" ]; then
  mirror=$(apt-get indextargets --format '$(RELEASE) $(SITE)' 'Created-By: Packages' |
    awk '$1 == "bookworm" && !site { site = $2 } END { print site }')
  rm -rf "$storage/base"
  debootstrap --variant=minbase bookworm "$storage/base" $mirror > "$storage/base.log" || { tail "$storage/base.log" >&2; exit 1; }
  # What Debian's own slim images leave out: package lists, documents, translations.
  rm -rf "$storage/base"/var/{cache/apt,lib/apt/lists}/* "$storage/base"/usr/share/{man,info,locale}/*
  find "$storage/base/usr/share/doc" -type f ! -name copyright -delete
  container=$("${buildah[@]}" from scratch)
  "${buildah[@]}" add -q "$container" "$storage/base" / >/dev/null
  "${buildah[@]}" commit -q --rm "$container" "$base" >/dev/null
  rm -rf "$storage/base"
fi

# What this machine trusts, the build trusts: package sources may be behind a proxy.
printf '[global]\ncert = /etc/build-certificates.crt\n' > "$storage/pip.conf"
trust=(--volume /etc/ssl/certs/ca-certificates.crt:/etc/build-certificates.crt:ro --volume "$storage/pip.conf:/etc/pip.conf:ro")

build() {
  local file=$1
  shift
  "${buildah[@]}" bud --isolation chroot --layers --build-arg BASE="$base" "${trust[@]}" \
    -f "deploy/containers/$file.Dockerfile" "$@" . > "$storage/$file.log" 2>&1 || { tail -n 40 "$storage/$file.log" >&2; exit 1; }
}
build router -t localhost/sluice-router:0.1.0
rm -f "$folder/router.tar"
"${buildah[@]}" push -q localhost/sluice-router:0.1.0 "docker-archive:$folder/router.tar:sluice-router:0.1.0"
for libc in glibc musl; do
  build shim --target $libc --output "$folder"
done
