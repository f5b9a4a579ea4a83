# Two images from one file: `app` answers HTTP and serves engines (no torch); `worker` changes models.
#   docker build --target app -t enginesmith-app .
#   docker build --target worker --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu -t enginesmith-worker .

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
