# Two images of one commit: `docker build --target cpu` (head, laptops) and `docker build --target cuda` (GPU workers).
#
#   docker build --target cpu  --tag YOUR-REGISTRY/es-service:0.1.0-cpu .
#   docker build --target cuda --tag YOUR-REGISTRY/es-service:0.1.0-cuda .
#
# Python packages are pinned by constraints.txt. They go into the system's Python, which a login shell finds too:
# KubeRay starts Ray in one.

FROM python:3.12.12-slim-bookworm AS build
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt CMakeLists.txt README.md LICENSE ./
COPY es_service es_service
COPY workers workers
RUN pip wheel --no-cache-dir --no-deps --constraint constraints.txt --wheel-dir /wheels .

FROM python:3.12.12-slim-bookworm AS cpu
# wget: KubeRay's probes call it.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends wget \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 1000 --create-home es \
 && install -d -o es -g es /home/es/runs
COPY constraints.txt /opt/es-service/constraints.txt
COPY --from=build /wheels /opt/es-service/wheels
RUN pip install --no-cache-dir --constraint /opt/es-service/constraints.txt \
      "$(echo /opt/es-service/wheels/*.whl)[data,gcs,s3]"
USER 1000
WORKDIR /home/es
ENV RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0
CMD ["es-service", "doctor"]

# CUDA's compiler and runtime come as Python packages with the extra; the driver is the host's, brought in by NVIDIA's container runtime.
FROM cpu AS cuda
USER 0
RUN pip install --no-cache-dir --constraint /opt/es-service/constraints.txt \
      "$(echo /opt/es-service/wheels/*.whl)[cuda]"
USER 1000
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
