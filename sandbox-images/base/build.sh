#!/bin/sh
# Write the root filesystem of a small Debian with Python to standard output, as a tar archive.
# For machines where no image registry answers: needs a Debian mirror, mmdebstrap, and root or user namespaces.
set -eu

suite=${1:-bookworm}

if ! command -v mmdebstrap >/dev/null 2>&1; then
    if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
        { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends mmdebstrap; } >&2
    else
        echo "mmdebstrap is missing: run 'apt-get install mmdebstrap' as root, or pull python:3.12-slim" >&2
        exit 69
    fi
fi

exec mmdebstrap --quiet --variant=essential --include=python3,ca-certificates,libnss-myhostname \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' \
    "$suite" -
