#!/bin/bash
# Usage: install_cpp_tools.sh
# Installs what ascend310_infer/ is built and tested with: g++, CMake and OpenCV from the system's packages, and the
# headers and CPU runtime of MindSpore Lite in .mindspore-lite/. Does nothing where all of it is there.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

LITE_VERSION=2.0.0
PACKAGES=(g++ cmake make libopencv-dev)

# Installs as root, else with sudo where that asks for no password.
install_packages() {
  local -a missing=() as_root=()
  local package
  for package in "${PACKAGES[@]}"; do
    dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
      missing+=("$package")
  done
  if [[ ${#missing[@]} -eq 0 ]]; then
    say "Found the system packages ${PACKAGES[*]}"
    return
  fi
  command -v apt-get >/dev/null ||
    die "this script installs with apt-get, which is not here. Install g++, CMake and OpenCV's headers (core," \
      "imgproc, imgcodecs) your system's way"
  if [[ $EUID -ne 0 ]]; then
    sudo -n true 2>/dev/null || die "only root can install ${missing[*]}. Run: sudo apt-get install ${missing[*]}"
    as_root=(sudo)
  fi
  say "Installing ${missing[*]} (up to 150 MB to download)"
  "${as_root[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" \
    >/dev/null
}

# The wheel is for Python 3.7, but only its headers and libraries are used: it is unpacked, not installed.
install_lite() {
  local folder=$REPO_ROOT/.mindspore-lite part=$REPO_ROOT/.mindspore-lite.part python
  if [[ -f $folder/version-$LITE_VERSION ]]; then
    say "Found MindSpore Lite $LITE_VERSION in $folder"
    return
  fi
  python=$REPO_ROOT/.venv/bin/python
  [[ -x $python ]] || python=$(find_python)
  say "Downloading MindSpore Lite $LITE_VERSION (170 MB) into $folder (500 MB)"
  rm -rf "$part" "$folder"
  "$python" -m pip download --quiet --disable-pip-version-check --no-deps --python-version 3.7 \
    --only-binary=:all: --dest "$part" "mindspore-lite==$LITE_VERSION" ||
    die "pip could not download mindspore-lite $LITE_VERSION; its message is above. It is made for x86-64 and" \
      "aarch64 Linux"
  "$python" -m zipfile --extract "$part"/mindspore_lite-*.whl "$part"
  rm "$part"/mindspore_lite-*.whl
  # Written last, so that an interrupted unpacking is done again.
  touch "$part/version-$LITE_VERSION"
  mv "$part" "$folder"
}

[[ $# -eq 0 ]] || usage
install_packages
install_lite
say "Ready: bash ascend310_infer/build.sh builds the program"
