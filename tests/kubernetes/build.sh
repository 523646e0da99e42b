#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds a Kubernetes control plane and node from their Go modules, once: no distribution packages them in a current version.
#
#   build.sh [PROGRAM…]     builds what is missing (default: all programs below); prints the folder they are in
#
# The folder is ${SLUICE_KUBERNETES_CACHE:-${XDG_CACHE_HOME:-~/.cache}/sluice/kubernetes}/vVERSION/bin, outside the tree.
# Needs Go (of the version that the modules name) and a Go module proxy.
set -euo pipefail

kubernetes=1.37.2 etcd=3.7.3 containerd=2.4.2 cni=1.9.1
programs="etcd kube-apiserver kube-scheduler kube-controller-manager kubectl kubelet
  containerd containerd-shim-runc-v2 ctr bridge host-local loopback"
cache=${SLUICE_KUBERNETES_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sluice/kubernetes}/v$kubernetes
bin=$cache/bin
mkdir -p "$bin"
export GOFLAGS="-mod=mod -buildvcs=false -trimpath" CGO_ENABLED=0

# module NAME PATH VERSION: a module of our own that requires PATH; made and entered.
module() {
  mkdir -p "$cache/module/$1"
  cd "$cache/module/$1"
  [ -e go.mod ] || printf 'module sluice.test/%s\n\ngo 1.26\n\nrequire %s v%s\n' "$1" "$2" "$3" > go.mod
}

kubernetes_module() {
  module kubernetes k8s.io/kubernetes "$kubernetes"
  grep -q '^replace' go.mod && return
  # The module names its staging modules as v0.0.0; each is published as v0.X.Y.
  go mod download -json "k8s.io/kubernetes@v$kubernetes" | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p' | xargs cat |
    sed -n "s#^\s*\(k8s.io/[a-z-]*\) v0.0.0\$#replace \1 => \1 v0.${kubernetes#1.}#p" >> go.mod
}

for program in ${@:-$programs}; do
  [ -x "$bin/$program" ] && continue
  command -v go >/dev/null || { echo "Go is needed to build $program, and none is installed" >&2; exit 3; }
  flags=""
  case $program in
    etcd)
      module etcd go.etcd.io/etcd/server/v3 $etcd
      package=go.etcd.io/etcd/server/v3 ;;
    kube*)
      kubernetes_module
      package=k8s.io/kubernetes/cmd/$program
      version=k8s.io/component-base/version
      flags="-X $version.gitVersion=v$kubernetes -X $version.gitMajor=1 -X $version.gitMinor=$(cut -d. -f2 <<<"$kubernetes")" ;;
    containerd* | ctr)
      module containerd github.com/containerd/containerd/v2 $containerd
      package=github.com/containerd/containerd/v2/cmd/$program
      flags="-X github.com/containerd/containerd/v2/version.Version=v$containerd" ;;
    host-local)
      module cni github.com/containernetworking/plugins $cni
      package=github.com/containernetworking/plugins/plugins/ipam/host-local ;;
    bridge | loopback)
      module cni github.com/containernetworking/plugins $cni
      package=github.com/containernetworking/plugins/plugins/main/$program ;;
    *)
      echo "$program: no such program; there are" $programs >&2
      exit 2 ;;
  esac
  echo "building $program" >&2
  go build -p 2 -ldflags "-s -w $flags" -o "$bin/$program.part" "$package"
  # It appears under its name only when it is whole.
  mv "$bin/$program.part" "$bin/$program"
done
echo "$bin"
