# syntax=docker/dockerfile:1
# xpcnn on a machine with an NVIDIA GPU: docs/releases.md shows how to build and use it.

FROM python:3.13-slim AS build
COPY . /source
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

# base, not runtime: CuPy's extra ctk brings the libraries, and the headers to compile kernels, which runtime lacks
FROM nvidia/cuda:13.0.1-base-ubuntu24.04
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/xpcnn \
    && install --directory --mode 1777 /data /var/cache/xpcnn
COPY --from=build /wheels /wheels
RUN set -- /wheels/xpcnn-*.whl \
    && /opt/xpcnn/bin/python -m pip install --no-cache-dir \
        "$1[cuda13,onnx,report,serve,viz]" "cupy-cuda13x[ctk]>=14" "cuda-toolkit==13.0.*"

# a home that any user may write: CuPy keeps compiled kernels there
ENV PATH=/opt/xpcnn/bin:$PATH \
    HOME=/var/cache/xpcnn \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /data
ENTRYPOINT ["xpcnn"]
CMD ["--help"]
