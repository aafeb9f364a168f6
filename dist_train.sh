#!/usr/bin/env bash
# Train on several processes (accelerate), one a GPU, or on the CPU where there is none:
#
#   bash dist_train.sh 4 --data-path tiny-imagenet-200 --output_dir result/b0/ --batch-size 64     pre-trains
#   bash dist_train.sh 4 finetune --data-dir ADEChallengeData2016 --save-path result/b0-ade        fine-tunes
#
# Over machines: run it on each with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT set.
set -euo pipefail

if [ $# -lt 1 ] || ! [[ "$1" =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: [NNODES=.. NODE_RANK=.. MASTER_ADDR=.. MASTER_PORT=..] bash dist_train.sh PROCESSES [pretrain|finetune] OPTIONS..." >&2
    exit 2
fi
processes=$1
shift
verb=pretrain
case "${1:-}" in
    pretrain | finetune) verb=$1; shift ;;
esac

if [ "${NNODES:-1}" -gt 1 ]; then
    : "${MASTER_ADDR:?set MASTER_ADDR to the address of the machine with NODE_RANK 0}"
    where=(--nnodes "$NNODES" --node-rank "${NODE_RANK:?set NODE_RANK, 0 on the first machine}"
        --master-addr "$MASTER_ADDR" --master-port "${MASTER_PORT:-29500}")
elif [ -n "${MASTER_PORT:-}" ]; then
    where=(--nnodes 1 --node-rank 0 --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "$MASTER_PORT")
else
    where=(--standalone) # takes a free port
fi

# The processes share the cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + processes - 1) / processes))}
exec "${PYTHON:-python3}" -m torch.distributed.run "${where[@]}" --nproc-per-node "$processes" \
    -m nota_seg.cli "$verb" "$@"
