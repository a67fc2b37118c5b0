#!/bin/sh
# build-runners.sh OUT ARCH...: the static native runner for each architecture, as OUT/ARCH/edgekit-ncnn,
# each run once (--version), under qemu where it is not this machine's.
set -eu
out=$1
shift
for arch in "$@"; do
    edgekit runner build --arch "$arch" --static --out "$out/$arch/edgekit-ncnn"
    case $(uname -m)-$arch in
        x86_64-x86_64 | aarch64-aarch64 | aarch64-armhf) "$out/$arch/edgekit-ncnn" --version ;;
        *-armhf) qemu-arm "$out/$arch/edgekit-ncnn" --version ;;
        *) "qemu-$arch" "$out/$arch/edgekit-ncnn" --version ;;
    esac
done
