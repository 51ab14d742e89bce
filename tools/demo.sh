#!/usr/bin/env bash
# From nothing to a trained network and its pictures, in minutes on two CPU cores: environment, synthetic data,
# distributed training of a small DeepLabV3 with BCN and WS, evaluation. Results: work_dirs/demo/.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
SECONDS=0
unset PRETRAINED WSBCN_IMPL NNODES NODE_RANK WORLD_SIZE PORT  # of real trainings
source "$ROOT/tools/environment.sh"
environment "$ROOT"
cd "$ROOT"
DATA=data/mini_voc OUT=work_dirs/demo
export VOC_ROOT=$DATA/VOCdevkit/VOC2012
CONFIG=configs/demo_mini_voc.py

echo "The data of this demo is synthetic (drawn shapes in the layout of VOC). Its mIoU shows that the network learns; it"
echo "is not comparable with mIoU on PASCAL VOC."
python tools/make_mini_voc.py "$DATA"
python tools/prepare_voc_aug.py "$VOC_ROOT" --sbd "$DATA/benchmark_RELEASE" --expected 180

PROCESSES=$(python -c 'import torch; print(min(torch.cuda.device_count(), 2) or 2)')
rm -rf "$OUT"
bash tools/dist_train.sh "$CONFIG" "$PROCESSES" --work-dir "$OUT"
CHECKPOINT=$(<"$OUT/last_checkpoint")
bash tools/dist_test.sh "$CONFIG" "$OUT/${CHECKPOINT##*/}" "$PROCESSES" \
    --work-dir "$OUT/test" --out "$OUT/predictions" 2>&1 | tee "$OUT/test.log"
grep '^[+|]' "$OUT/test.log" > "$OUT/miou.txt"
grep -o 'aAcc.*mAcc: *[0-9.]*' "$OUT/test.log" >> "$OUT/miou.txt"
python tools/plot_run.py "$OUT" --predictions "$OUT/predictions" --voc-root "$VOC_ROOT"

echo
echo "Synthetic held-out images: $(tail -n 1 "$OUT/miou.txt") (all background would be mIoU 4)"
echo "$OUT/: miou.txt, predictions.png, curves.png. Took $((SECONDS / 60)) min $((SECONDS % 60)) s."
