#!/bin/sh
# Wheels of peerlm and of all it needs, in deploy/wheels, so that the image is built without a network.
# Run it with the Python that the image's base has: PYTHON=python3.11 deploy/fetch-wheels.sh
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
rm -rf deploy/wheels
"$PYTHON" -m pip wheel --quiet -c constraints.txt --wheel-dir deploy/wheels .
echo "$(ls deploy/wheels | wc -l) wheels, $(du -sh deploy/wheels | cut -f1)"
