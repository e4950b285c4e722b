# An image for the nodes of a Ray cluster: tltrain with torch and Ray, `ray` and `tltrain` on the PATH.
#
#   docker build -t tltrain .
#   docker build -t tltrain:cuda --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 .
#
# Any Debian or Ubuntu base with Python 3.10 or newer, built in or from its own packages, will do. The torch wheels of
# PyPI bring CUDA's libraries with them; from a CUDA base the image also has what the NVIDIA container runtime looks for.
#
# All nodes of a cluster, and the machine that submits to it, should have the same versions of Python, Ray and torch.
# PINS takes those of an installation at hand:
#
#   docker build --build-arg PINS="$(.venv/bin/pip freeze | grep -E '^(ray|torch|torchvision)==' | xargs)" .
ARG BASE=python:3.12-slim
FROM ${BASE}

# Python where the base has none; wget for KubeRay's health probes; rsync and ssh for `ray up`.
RUN set -eu; \
    packages="openssh-client procps rsync wget"; \
    command -v python3 >/dev/null || packages="$packages python3 python3-venv"; \
    apt-get update; \
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $packages; \
    rm -rf /var/lib/apt/lists/*

ENV VIRTUAL_ENV=/opt/tltrain \
    PATH=/opt/tltrain/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1
RUN python3 -m venv "$VIRTUAL_ENV"

# The dependencies first, against an empty package, so that a change of code does not install torch again.
WORKDIR /tmp/build
COPY pyproject.toml README.md LICENSE ./
ARG PINS=""
RUN mkdir tltrain && touch tltrain/__init__.py && pip install '.[demo]' $PINS && rm -rf build *.egg-info
COPY tltrain tltrain
RUN pip install --no-deps --force-reinstall . && rm -rf /tmp/build

RUN useradd --create-home --uid 10001 --shell /bin/bash ray
COPY --chown=ray:ray jobs /home/ray/jobs
USER ray
WORKDIR /home/ray
CMD ["tltrain", "--help"]
