#!/usr/bin/env bash
# mpirun with what small machines and containers need, in one place: running as root, more ranks than cores, no binding of a
# rank's threads to one core, and no cross-memory attach (slower here and not permitted in some containers).
# Usage: scripts/mpirun.sh -np 2 build/openmoe train ...
set -euo pipefail
if [ "$(id -u)" = 0 ]; then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
export OMPI_MCA_rmaps_base_oversubscribe=1
export OMPI_MCA_hwloc_base_binding_policy=none
export OMPI_MCA_btl_vader_single_copy_mechanism=none
# mpirun itself stays quiet when a rank ends with an error: the rank has said what is wrong.
export OMPI_MCA_orte_execute_quiet=1
exec mpirun "$@"
