# Four images from one file: `app` answers HTTP and serves engines (no torch), `worker` changes models; `app-gpu` and
# `worker-gpu` are the same with TensorRT and pycuda, for NVIDIA GPUs. docs/gpu.md says which drivers they need.
#   docker build --target app -t enginesmith-app .
#   docker build --target worker --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu -t enginesmith-worker .
#   docker build --target app-gpu -t enginesmith-app-gpu .
#   docker build --target worker-gpu -t enginesmith-worker-gpu .
ARG CUDA=13.0.1

# What Ubuntu and Debian have is not there for long under one number; '.[app]' is pinned in pyproject.toml.
# hadolint global ignore=DL3008,DL3013

FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/enginesmith/bin:$PATH
# A fixed number, so that a volume's owner is the same in both images.
RUN groupadd --gid 10001 enginesmith \
 && useradd --uid 10001 --gid 10001 --create-home --shell /usr/sbin/nologin enginesmith \
 && install -d -o enginesmith -g enginesmith /data \
 && python -m venv /opt/enginesmith
WORKDIR /src

FROM base AS app
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY workers workers
COPY client client
RUN pip install '.[app]' && rm -rf /src/*
USER enginesmith
WORKDIR /home/enginesmith
ENV ENGINESMITH_DATA=/data ENGINESMITH_HOST=0.0.0.0 ENGINESMITH_PORT=8000
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['ENGINESMITH_PORT'] + '/healthz/live', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["enginesmith", "serve", "--workers", "0"]

FROM base AS worker
# torch first and by itself, in a layer that changes seldom.
ARG TORCH_INDEX=
RUN pip install torch==2.13.0 ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY workers workers
COPY client client
RUN pip install '.[worker]' && rm -rf /src/*
USER enginesmith
WORKDIR /home/enginesmith
ENV ENGINESMITH_DATA=/data
VOLUME /data
STOPSIGNAL SIGTERM
CMD ["enginesmith", "worker"]

# pycuda has no wheels: it is compiled here, with the toolkit, which the images that ship do without. It links with the
# stub of libcuda in lib64/stubs; curand, of which nothing is used, would have to be shipped. Its setup.py reads no
# environment, but this file.
FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04 AS pycuda
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ python3.12-dev python3.12-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3.12 -m venv /opt/build \
 && printf '%s\n' 'CUDA_ROOT = "/usr/local/cuda"' 'CUDA_ENABLE_CURAND = False' > /etc/aksetup-defaults.py \
 && /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-binary pycuda --wheel-dir /wheels pycuda==2026.1

FROM nvidia/cuda:${CUDA}-base-ubuntu24.04 AS base-gpu
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/enginesmith/bin:$PATH \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates python3.12 python3.12-venv \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 enginesmith \
 && useradd --uid 10001 --gid 10001 --create-home --shell /usr/sbin/nologin enginesmith \
 && install -d -o enginesmith -g enginesmith /data \
 && python3.12 -m venv /opt/enginesmith
COPY --from=pycuda /wheels /wheels
# One version for both images, as plans ask; gigabytes, in a layer that they share and that changes seldom.
ARG TENSORRT=11.4.0.106
RUN pip install /wheels/*.whl "tensorrt==$TENSORRT"
WORKDIR /src

FROM base-gpu AS app-gpu
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY workers workers
COPY client client
RUN pip install '.[app,gpu]' && rm -rf /src/*
USER enginesmith
WORKDIR /home/enginesmith
ENV ENGINESMITH_DATA=/data ENGINESMITH_HOST=0.0.0.0 ENGINESMITH_PORT=8000
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['ENGINESMITH_PORT'] + '/healthz/live', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["enginesmith", "serve", "--workers", "0"]

FROM base-gpu AS worker-gpu
# PyPI's own build of torch has CUDA.
RUN pip install torch==2.13.0
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY workers workers
COPY client client
RUN pip install '.[worker,gpu]' && rm -rf /src/*
USER enginesmith
WORKDIR /home/enginesmith
ENV ENGINESMITH_DATA=/data
VOLUME /data
STOPSIGNAL SIGTERM
CMD ["enginesmith", "worker"]
