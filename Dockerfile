# regkit with all that its commands need: docker build -t regkit .
# docs/howto/containers.md says how to run it.
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# Where pip also looks, such as for a torch without CUDA: --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL
# Without its kernels regkit is several times slower: no image without them.
ENV REGKIT_REQUIRE_KERNELS=1
RUN python -m venv /opt/regkit \
    && /opt/regkit/bin/pip install --no-cache-dir -c constraints.txt ".[dicom,segmentation,cluster,bids]"

FROM python:3.11-slim
COPY --from=build /opt/regkit /opt/regkit
# Any user may run it, who need not have a home.
ENV PATH=/opt/regkit/bin:$PATH HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /data
ENTRYPOINT ["regkit"]
CMD ["doctor"]
