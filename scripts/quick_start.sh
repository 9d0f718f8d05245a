#!/bin/bash
# Usage: quick_start.sh
# From nothing to detections on this machine's CPU: installs into .venv, makes a small data set, trains, evaluates
# and draws. Takes about ten minutes on two cores; everything lands in quick_start/.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

[[ $# -eq 0 ]] || { sed -n 2p "${BASH_SOURCE[0]}" | cut -c3- >&2; exit 2; }
cd "$REPO_ROOT"
ensure_venv requirements.txt
start=$SECONDS
data=$REPO_ROOT/quick_start/data
run=$REPO_ROOT/quick_start/run
fresh_folder "$run"
options=(--config_path="$REPO_ROOT/quick_start_config.yaml" --coco_root="$data" --mindrecord_dir="$run/mindrecord")

say "1/4 Making images in $data"
python -m src.tools.sample_data --output_dir="$data"

say "2/4 Training in $run (a few minutes; the losses are in loss_0.log)"
cd "$run"
python "$REPO_ROOT/train.py" "${options[@]}"

say "3/4 Drawing the losses"
PYTHONPATH=$REPO_ROOT python -m src.tools.plot_losses loss_0.log

say "4/4 Evaluating and drawing detections"
checkpoint=$(find "$run/ckpt_0" -name 'faster_rcnn-*.ckpt' -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d' ' -f2-)
python "$REPO_ROOT/eval.py" "${options[@]}" --checkpoint_path="$checkpoint" --draw_images=12

say "Done in $(((SECONDS - start) / 60)) min $(((SECONDS - start) % 60)) s"
cat <<END
images and boxes       $data
trained detector       $checkpoint
losses                 $run/loss_0.log, $run/loss_0.png
detections, drawn      $run/detections
the twelve metrics     $run/metrics.json (every detection: $run/results.bbox.json)
Next: your own images, see "Train on your own data" in README.md
END
