#!/bin/bash
# down.sh: ends the cluster that up.sh started, exactly that and all of it. Its logs stay until the next one of that name.
. "$(dirname "$0")/cluster.sh"
exec "$here/$backend/down.sh"
