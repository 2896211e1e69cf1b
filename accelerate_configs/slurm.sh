#!/usr/bin/env bash
# Pretrain a recipe as a Slurm job that requeues itself: a signal before its time limit makes training save a checkpoint,
# from which the requeued job resumes.
#
#   sbatch --nodes 2 accelerate_configs/slurm.sh --config recipes/legal/base.yaml
#
# Run the stages before pretraining first, by themselves; they need no GPU. ACCELERATE_CONFIG replaces ddp.yaml and
# PROCESSES_PER_NODE replaces 8: at least 2, since with one process the launcher exits before that process has saved.
#SBATCH --job-name=pretrain
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=pretrain-%j.log
# 120 s before the limit is for a save, and the steps before it, of at most that; training prints how long they take.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
python=${PYTHON:-.venv/bin/python}
# Read the recipe and the overrides as the stages do.
run=$("$python" -P -c 'import sys
sys.path.insert(0, "recipes")
from recipe_loading import parse_command_line
print(parse_command_line("", sys.argv[1:])[0].run.output_dir)' "$@")
nodes=${SLURM_JOB_NUM_NODES:-1}
processes=$((nodes * ${PROCESSES_PER_NODE:-8}))
address=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-localhost}" | head -n 1)

# Only the node itself knows its rank, so a shell on each node starts the launcher. srun hands no cores on by itself: with
# one core for all, the compiler and the readers of data would starve the GPUs. Where a node has several networks, set
# GLOO_SOCKET_IFNAME to the one between the nodes (ip -brief address).
srun --nodes="$nodes" --ntasks-per-node=1 --cpus-per-task="${SLURM_CPUS_ON_NODE:-1}" bash -c 'exec "$0" -P -m accelerate.commands.launch \
    --config_file "$1" --num_processes "$2" --num_machines "$3" --machine_rank "${SLURM_NODEID:-0}" \
    --main_process_ip "$4" --main_process_port "$5" recipes/pretrain.py "${@:6}"' \
    "$python" "${ACCELERATE_CONFIG:-accelerate_configs/ddp.yaml}" "$processes" "$nodes" "$address" \
    "${MASTER_PORT:-29500}" "$@" &
training=$!
# The launcher kills its processes 30 s after a signal that it passes on. Of this file it knows nothing, so they have all
# the time between the warning and the limit.
trap 'touch "$run/leave"' USR1
trap 'kill -TERM "$training" 2>/dev/null || true' TERM
code=0
wait "$training" || code=$?
while kill -0 "$training" 2>/dev/null; do # a signal ends `wait`, not the job
    code=0
    wait "$training" || code=$?
done

# The launcher returns 1 whatever its processes returned; status.json has the true status.
ended=$("$python" -P -c 'import json, sys; print(json.load(open(sys.argv[1]))["status"])' "$run/status.json")
echo "slurm.sh: training is $ended, the launcher returned $code"
case $ended in
    preempted) scontrol requeue "$SLURM_JOB_ID" ;;
    finished) ;;
    *) exit 1 ;;
esac
