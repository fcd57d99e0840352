#!/bin/sh
# Wheels of peerlm, of all it needs and of what it is built with, in deploy/wheels, so that the image is built without a network.
# What was there is replaced when all is here.
# Run it with the Python that the image's base has: PYTHON=python3.11 deploy/fetch-wheels.sh
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT
built_with=$("$PYTHON" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])')
"$PYTHON" -m pip wheel --quiet -c constraints.txt --wheel-dir "$new/wheels" . $built_with
rm -rf deploy/wheels
mv "$new/wheels" deploy/wheels
echo "$(ls deploy/wheels | wc -l) wheels, $(du -sh deploy/wheels | cut -f1)"
