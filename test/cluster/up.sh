#!/bin/bash
# up.sh: starts a Kubernetes of one node without skiff, or finds the one that is up. The last line of standard output
# is its folder; README.md says what is in it. SKIFF_CLUSTER_BACKEND: local (default) or kind; SKIFF_CLUSTER_NAME: skiff.
. "$(dirname "$0")/cluster.sh"
exec "$here/$backend/up.sh"
