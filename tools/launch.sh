# Shared by dist_*.sh and slurm_*.sh, which source it: checks, and one tool as several processes.
# shellcheck shell=bash

tools=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
PYTHONPATH=$(dirname -- "$tools")${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH

fail() {
    printf 'Error: %s\n' "$*" >&2
    exit 2
}

# need_program NAME WHAT_TO_DO
need_program() {
    command -v "$1" >/dev/null || fail "$1 is not on PATH: $2"
}

# need_number NAME VALUE LEAST
need_number() {
    if ! [[ $2 =~ ^(0|[1-9][0-9]*)$ ]] || (($2 < $3)); then
        fail "$1 is '$2': expected a number of at least $3"
    fi
}

need_file() {
    [[ $1 == *::* || -f $1 ]] || fail "config '$1': there is no such file, seen from $PWD"
}

# run_torchrun NUM_PROCESSES TOOL ARGS...: NUM_PROCESSES on this machine, one of NNODES
run_torchrun() {
    local num=$1 tool=$2
    shift 2
    local nodes=${NNODES:-1} where
    need_number NUM_PROCESSES "$num" 1
    need_number NNODES "$nodes" 1
    need_program torchrun 'activate the environment that has torch (source .venv/bin/activate).'
    if ((nodes == 1)) && [[ -z ${PORT:-} ]]; then
        where=(--standalone) # a free port
    else
        if ((nodes > 1)); then
            [[ -n ${MASTER_ADDR:-} ]] || fail 'NNODES is above 1: set MASTER_ADDR, the address of the first machine.'
            [[ -n ${NODE_RANK:-} ]] || fail "NNODES is above 1: set NODE_RANK, 0 to $((nodes - 1)), another on each machine."
            need_number NODE_RANK "$NODE_RANK" 0
            ((NODE_RANK < nodes)) || fail "NODE_RANK is '$NODE_RANK': expected 0 to $((nodes - 1)), as NNODES is $nodes"
        fi
        need_number PORT "${PORT:-29500}" 1
        where=(--node_rank "${NODE_RANK:-0}" --master_addr "${MASTER_ADDR:-127.0.0.1}" --master_port "${PORT:-29500}")
    fi
    exec torchrun --nnodes "$nodes" --nproc_per_node "$num" "${where[@]}" "$tools/$tool" --launcher pytorch "$@"
}

# run_srun PARTITION JOB_NAME TOOL ARGS...: GPUS processes, up to GPUS_PER_NODE on a machine
run_srun() {
    local partition=$1 job=$2 tool=$3
    shift 3
    local gpus=${GPUS:-8}
    need_number GPUS "$gpus" 1
    local per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))} cpus=${CPUS_PER_TASK:-5}
    need_number GPUS_PER_NODE "$per_node" 1
    need_number CPUS_PER_TASK "$cpus" 1
    ((gpus % per_node == 0)) || fail "GPUS is $gpus: expected a multiple of GPUS_PER_NODE, which is $per_node"
    need_program srun 'this is no machine of a Slurm cluster. Without Slurm, use the dist_*.sh of the same name.'
    # jobs that share a machine must not share a port
    export MASTER_PORT=${PORT:-$((20000 + RANDOM % 20000))}
    need_number PORT "$MASTER_PORT" 1
    local more=()
    read -ra more <<<"${SRUN_ARGS:-}"
    exec srun --partition "$partition" --job-name "$job" --gres "gpu:$per_node" --ntasks "$gpus" \
        --ntasks-per-node "$per_node" --cpus-per-task "$cpus" --kill-on-bad-exit=1 ${more[@]+"${more[@]}"} \
        "${PYTHON:-python}" -u "$tools/$tool" --launcher slurm "$@"
}
