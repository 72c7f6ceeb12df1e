#!/bin/bash
# An agent as a Slurm job: it requeues its trials before the time limit and then requeues itself until the
# sweep is done.
#
#   sbatch slurm.sh ENTITY/PROJECT/SWEEP
#
#SBATCH --job-name=kto-sweep
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=kto-sweep-%j.log
# SIGTERM to this script, two minutes before the limit.
#SBATCH --signal=B:TERM@120

set -u
sweep=${1:-}
agent=

# bash would handle the signal only after the agent has ended: run it in the background and forward the signal.
forward() {
    ended_by_signal=yes
    [ -n "$agent" ] && kill -TERM "$agent" 2>/dev/null
}
ended_by_signal=no
trap forward TERM INT

kto-sweep agent ${sweep:+"$sweep"} --grace 60 &
agent=$!
wait "$agent"
code=$?
while kill -0 "$agent" 2>/dev/null; do # a signal ends the first wait, not the agent
    wait "$agent"
    code=$?
done
trap - TERM INT

# 0: nothing is left to train. 2: wrong usage. 1: it failed, which may be over after a while. All others, such as
# 143 (the time limit) and 75 (--budget or --until is over): trials are left.
restarts=${SLURM_RESTART_COUNT:-0}
case "$code" in
0 | 2) again=no ;;
1) [ "$restarts" -lt 10 ] && again=yes || again=no ;;
*) again=yes ;;
esac
if [ "$again" = yes ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    echo "kto-sweep ended with exit code $code (signal: $ended_by_signal): requeued"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
