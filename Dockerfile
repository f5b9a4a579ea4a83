# Four images from one file: `app` answers HTTP and serves engines (no torch), `worker` changes models; `app-gpu` and
# `worker-gpu` are the same with TensorRT and pycuda, for NVIDIA GPUs. docs/gpu.md says which drivers they need.
#   docker build --target app -t enginesmith-app .
#   docker build --target worker -t enginesmith-worker .
#   docker build --target app-gpu -t enginesmith-app-gpu .
#   docker build --target worker-gpu -t enginesmith-worker-gpu .
# They run as user 10001, need no capability, and write to /data and /tmp alone: give them a read-only root.
# Packages are those of deploy/locks, by version and hash (`make lock`); by version alone: torch without CUDA, which is
# not PyPI's, TensorRT, pycuda.
ARG CUDA=13.0.1
ARG TORCH=2.13.0

# What Debian and Ubuntu have is not there for long under one number.
# hadolint global ignore=DL3008

FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/enginesmith/bin:$PATH
RUN python -m venv /opt/enginesmith
WORKDIR /src
COPY deploy/locks deploy/locks

FROM build AS build-app
RUN pip install --no-deps --require-hashes --requirement deploy/locks/app.txt
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY workers workers
COPY client client
COPY deploy/slim.py deploy/slim.py
# What the app never uses goes, pip too: a stage of its own, or the image would carry it all the same.
RUN pip install --no-deps --no-build-isolation . \
 && pip check \
 && python deploy/slim.py /opt/enginesmith/lib/python3.11/site-packages

FROM build AS build-worker
ARG TORCH
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-deps --index-url "$TORCH_INDEX" "torch==$TORCH"
# A layer of its own, as the one above is the largest and changes seldom.
# hadolint ignore=DL3059
RUN pip install --no-deps --require-hashes --requirement deploy/locks/worker.txt
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY workers workers
COPY client client
RUN pip install --no-deps --no-build-isolation . \
 && pip check

FROM python:3.11-slim-bookworm AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PATH=/opt/enginesmith/bin:$PATH
# tini: what is killed leaves children behind, which somebody has to bury. A fixed user, so that a volume's owner is the
# same in all images.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends tini \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 enginesmith \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin enginesmith \
 && install -d -o enginesmith -g enginesmith /data /keys
ENV ENGINESMITH_DATA=/data HOME=/data
USER 10001:10001
WORKDIR /
VOLUME /data
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--"]

FROM base AS app
COPY --from=build-app /opt/enginesmith /opt/enginesmith
ENV ENGINESMITH_HOST=0.0.0.0 ENGINESMITH_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['ENGINESMITH_PORT'] + '/healthz/live', timeout=2)"]
CMD ["enginesmith", "serve", "--workers", "0"]

FROM base AS worker
COPY --from=build-worker /opt/enginesmith /opt/enginesmith
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-m", "workers.alive", "/data"]
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
 && apt-get install --yes --no-install-recommends ca-certificates python3.12 python3.12-venv tini \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 enginesmith \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin enginesmith \
 && install -d -o enginesmith -g enginesmith /data /keys \
 && python3.12 -m venv /opt/enginesmith
COPY --from=pycuda /wheels /wheels
# One version for both images, as plans ask; gigabytes, in a layer that they share and that changes seldom.
ARG TENSORRT=11.4.0.106
RUN pip install /wheels/*.whl "tensorrt==$TENSORRT"
WORKDIR /src
COPY deploy/locks deploy/locks

FROM base-gpu AS app-gpu
RUN pip install --no-deps --require-hashes --requirement deploy/locks/app.txt
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY workers workers
COPY client client
RUN pip install --no-deps --no-build-isolation . \
 && pip check
ENV ENGINESMITH_DATA=/data HOME=/data ENGINESMITH_HOST=0.0.0.0 ENGINESMITH_PORT=8000
USER 10001:10001
WORKDIR /
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['ENGINESMITH_PORT'] + '/healthz/live', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--"]
CMD ["enginesmith", "serve", "--workers", "0"]

FROM base-gpu AS worker-gpu
RUN pip install --no-deps --require-hashes --requirement deploy/locks/torch-cuda.txt
# hadolint ignore=DL3059
RUN pip install --no-deps --require-hashes --requirement deploy/locks/worker.txt
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY workers workers
COPY client client
RUN pip install --no-deps --no-build-isolation . \
 && pip check
ENV ENGINESMITH_DATA=/data HOME=/data
USER 10001:10001
WORKDIR /
VOLUME /data
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-m", "workers.alive", "/data"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--"]
CMD ["enginesmith", "worker"]
