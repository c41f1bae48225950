#!/usr/bin/env bash
# What a change to this network has to pass before it is merged: `ci/check.sh [BASE]`, BASE being what it is compared with.
# Runs anywhere where `reconcile` is installed; needs no node, no key and no network.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
base=${1:-origin/main}

step() { printf '\n== %s\n' "$*"; }

step 'Well-formed, whole, and bound to the files that it names'
reconcile snapshot validate

step 'Traps: what is well-formed and still not meant'
reconcile snapshot lint --inventory inventory

step "What changes against $base, and what it does to each node"
reconcile snapshot diff --inventory inventory "$base" HEAD

# A change may be reviewed before everybody has signed it, but not with a bad signature; what is merged must be signed.
step "As a node would decide that has accepted $base"
if [[ ${REQUIRE_SIGNATURES:-} ]]; then
    reconcile snapshot verify --since "$base"
else
    reconcile snapshot verify --since "$base" --pending
fi
