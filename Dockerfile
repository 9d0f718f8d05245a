# Faster R-CNN for MindSpore. For the CPU:
#   docker build -t faster_rcnn .
# for Ascend or GPU, from an image that holds the MindSpore of that device and Python 3.11:
#   docker build -t faster_rcnn --build-arg FROM_IMAGE_NAME=IMAGE --build-arg DEVICE_TARGET=Ascend .
# scripts/docker_start.sh starts it with data and a folder for results.
ARG FROM_IMAGE_NAME=python:3.11-slim-bookworm
FROM ${FROM_IMAGE_NAME}

ARG DEVICE_TARGET=CPU
ENV DEVICE_TARGET=${DEVICE_TARGET} \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

USER 0
# MindSpore's wheel needs this library of the system; a Debian or Ubuntu below has it in every version.
# hadolint ignore=DL3008
RUN if command -v apt-get >/dev/null; then \
        apt-get update && apt-get install -y --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*; fi

WORKDIR /faster_rcnn
# Before the project's files, so that a change there does not install everything again.
COPY requirements.txt ./
# An image for Ascend or GPU brings its own build of MindSpore; the one of the requirements is for the CPU.
RUN if python -c "import importlib.metadata as m; m.version('mindspore')" 2>/dev/null; \
    then grep -v '^mindspore==' requirements.txt >/tmp/requirements.txt; \
    else cp requirements.txt /tmp/requirements.txt; fi \
    && python -m pip install -r /tmp/requirements.txt \
    && rm /tmp/requirements.txt

# Scripts make their run folders beside scripts/, whoever the container runs as.
RUN useradd --create-home --uid 10001 detector && chmod 1777 .
COPY . .
USER 10001
HEALTHCHECK --interval=10m --timeout=2m --start-period=1m \
    CMD ["sh", "-c", "cd /faster_rcnn && python -m src.tools.check_env --quick --device_target=\"$DEVICE_TARGET\""]
CMD ["bash"]
