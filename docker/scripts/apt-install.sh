#!/bin/sh
# apt-install.sh LIST...: install Debian packages; LIST is a file docker/scripts/LIST.packages, one
# package a line, # starts a comment. Leaves no package lists behind, so that an image layer stays small.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
for list in "$@"; do
    cat "$here/$list.packages"
done | sed 's/#.*//' | tr -s ' \n' '\n' | sed '/^$/d' > /tmp/packages.$$
trap 'rm -f /tmp/packages.$$' EXIT
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
xargs apt-get install -y -qq --no-install-recommends < /tmp/packages.$$ > /dev/null
apt-get clean
rm -rf /var/lib/apt/lists/*
