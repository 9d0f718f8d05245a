#!/bin/bash
# What the launchers of the C++ program share; sourced, not run.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# read_infer_options [ARGUMENT...]: split what follows the required arguments into the arrays infer_flags (for the C++
# program) and score_flags (for postprocess.py). The optional ones are told apart by what they are: two numbers are
# IMAGE_WIDTH and IMAGE_HEIGHT, true or false is KEEP_RATIO, a number alone DEVICE_ID.
read_infer_options() {
  infer_flags=()
  score_flags=()
  if [[ ${1:-} =~ ^[0-9]+$ && ${2:-} =~ ^[0-9]+$ ]]; then
    infer_flags+=(--image_width="$1" --image_height="$2")
    shift 2
  fi
  if [[ ${1:-} =~ ^([Tt]rue|[Ff]alse)$ ]]; then
    infer_flags+=(--keep_ratio="$1")
    shift
  fi
  if [[ ${1:-} =~ ^[0-9]+$ ]]; then
    infer_flags+=(--device_id="$1")
    shift
  fi
  for flag in "$@"; do
    [[ $flag == --?*=* ]] || usage
    score_flags+=("$flag")
  done
}

# infer_and_score MINDIR_PATH DATA_PATH ANNO_PATH DEVICE_TYPE: build, detect in every image and score, in the current
# folder, with the flags of read_infer_options.
infer_and_score() {
  local mindir data annotations device=$4
  case $device in
    Ascend310 | Ascend | GPU | CPU) ;;
    *)
      printf "ERROR: DEVICE_TYPE: '%s' is not one of Ascend310, Ascend, GPU, CPU\n" "$device" >&2
      usage
      ;;
  esac
  mindir=$(require_file MINDIR_PATH "$1")
  data=$(require_dir DATA_PATH "$2")
  annotations=$(require_file ANNO_PATH "$3")
  use_python

  say "1/3 Building (build.log)"
  run_logged build.log bash "$REPO_ROOT/ascend310_infer/build.sh"
  say "2/3 Detecting on $device in $data (infer.log)"
  fresh_folder result_Files
  fresh_folder time_Result
  run_logged infer.log "$REPO_ROOT/ascend310_infer/build/main" --mindir_path="$mindir" --dataset_path="$data" \
    --device_type="$device" "${infer_flags[@]}"
  cat time_Result/test_perform_static.txt
  say "3/3 Scoring (acc.log)"
  python "$REPO_ROOT/postprocess.py" --anno_path="$annotations" --result_path=./result_Files "${score_flags[@]}" 2>&1 |
    tee acc.log || die "postprocess.py failed; its output is in acc.log too"
}
