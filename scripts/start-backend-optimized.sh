#!/usr/bin/env bash
# Sets the environment and starts Cog's server as scripts/serve does: scripts/start-backend-optimized.sh [options]
# Its name and options are those of the launch guides that docs/performance.md answers; scripts/serve alone starts a server too.
#   --port 5000 --host 127.0.0.1, and the other options of scripts/serve
#   --num_cpu_threads_per_process N   threads of the CPU; else those of ACCELERATE_CONFIG_FILE when ACCELERATE=True, else what there is
#   --no-tcmalloc                     the C library's allocator, also where TCMalloc is installed (as NO_TCMALLOC=1 does)
#   --show                            only print what would be set
# What is set in the environment already stays as it is. docs/performance.md explains every variable, and those that are not needed any more.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
help_or_version "$@"

threads=
show=
serve=()

while (($#)); do
    case $1 in
        --[a-z]*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        --port | --host | --slots | --grace | --stall | --upload-url) serve+=("$1" "${2:?error: $1 needs a value}") && shift 2 ;;
        --num_cpu_threads_per_process) threads=${2:?error: $1 needs a number} && shift 2 ;;
        --private-addresses) serve+=("$1") && shift ;;
        --no-tcmalloc) NO_TCMALLOC=1 && shift ;;
        --show) show=1 && shift ;;
        *) fail 2 "unknown option $1; see scripts/start-backend-optimized.sh --help" ;;
    esac
done

# Threads: flag, then configuration file, then default (0: the processors that this process may use).
if [[ -z $threads && ${ACCELERATE:-} == True && -n ${ACCELERATE_CONFIG_FILE:-} ]]; then
    [[ -r $ACCELERATE_CONFIG_FILE ]] || fail 2 "ACCELERATE_CONFIG_FILE names a file that cannot be read: $ACCELERATE_CONFIG_FILE"
    threads=$(sed -n 's/^ *num_cpu_threads_per_process: *\([^ #]*\).*/\1/p' "$ACCELERATE_CONFIG_FILE")
fi
if [[ -n $threads ]]; then
    [[ $threads =~ ^[1-9][0-9]*$ ]] || fail 2 "the number of threads must be a whole number from 1, not '$threads'"
    export FLUX_CPU_THREADS=$threads OMP_NUM_THREADS=$threads
fi

# Host allocator: what is preloaded already goes first; TCMalloc where scripts/install-tcmalloc.sh has set it up.
if [[ ${NO_TCMALLOC:-} != 1 && ${LD_PRELOAD:-} != *malloc* && -r $root/allocator.env ]]; then
    library=$(sed -n 's/^TCMALLOC_LIBRARY=//p' "$root/allocator.env")
    if [[ -e $library ]]; then
        export LD_PRELOAD=${LD_PRELOAD:+$LD_PRELOAD:}$library
    else
        printf 'warning: allocator.env names a library that is gone; run scripts/install-tcmalloc.sh again\n' >&2
    fi
fi # the C library's stays as it is: a MALLOC_TRIM_THRESHOLD_ of 128 KiB made predictions take 1.8 times as long (docs/performance.md)

# CUDA: kernels are queued, not waited for one by one. PYTORCH_ALLOC_CONF is set and checked by the package itself, before torch is imported.
export CUDA_LAUNCH_BLOCKING=${CUDA_LAUNCH_BLOCKING:-0}

if [[ -n $show ]]; then
    for name in LD_PRELOAD MALLOC_TRIM_THRESHOLD_ FLUX_CPU_THREADS OMP_NUM_THREADS CUDA_LAUNCH_BLOCKING PYTORCH_ALLOC_CONF; do
        if [[ -n ${!name:-} ]]; then printf '%s=%s\n' "$name" "${!name}"; fi
    done
    exit 0
fi
exec "$root/scripts/serve" "${serve[@]}"
