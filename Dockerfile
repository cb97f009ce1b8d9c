# The runtime alone: no build tools, no tests, no embedded Valkey (set REDIS_URL).
# Python's minor version is the one that the tests run on.
FROM python:3.11-slim-trixie AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /src

# Wheels only: nothing is compiled here, and nothing of the packages runs while they are installed.
COPY requirements.lock ./
RUN python -m venv --without-pip /opt/outkeep \
    && pip --python /opt/outkeep/bin/python install --require-hashes --only-binary :all: -r requirements.lock

# What builds our own wheel, with the hashes of the development lock. A package that is missing in the
# pattern stops the build, since pip then has no hash for it.
COPY requirements-dev.lock ./
RUN awk '/^[a-z]/ {keep = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/} keep' \
        requirements-dev.lock > build.lock \
    && python -m venv --without-pip /opt/build \
    && pip --python /opt/build/bin/python install --require-hashes --only-binary :all: -r build.lock

COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY workers workers
RUN /opt/build/bin/python -m hatchling build -t wheel -d /opt/wheel \
    && pip --python /opt/outkeep/bin/python install --no-index --no-deps /opt/wheel/*.whl

FROM python:3.11-slim-trixie

LABEL org.opencontainers.image.title="outkeep" \
      org.opencontainers.image.description="Keeps what Replicate predictions produce, and starts the next step." \
      org.opencontainers.image.licenses="MIT"

# No entry in /etc/passwd is needed. The folder belongs to the user before it becomes a volume, so that a new
# volume does too.
RUN install -d -o 10001 -g 10001 -m 0700 /data
COPY --from=build /opt/outkeep /opt/outkeep

# Written are /data and /tmp only, so that the root file system can be read-only; and no code is imported
# from the folder that can be written.
ENV PATH=/opt/outkeep/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    HOME=/tmp \
    HOST=0.0.0.0 \
    PORT=8000 \
    OUTKEEP_DATA=/data

USER 10001:10001
WORKDIR /data
VOLUME ["/data"]
EXPOSE 8000
STOPSIGNAL SIGTERM

# For the receiver; a worker's container asks for its own part, such as `outkeep healthcheck persist`.
HEALTHCHECK --interval=15s --timeout=10s --start-period=30s --retries=3 CMD ["outkeep", "healthcheck"]

CMD ["outkeep", "serve"]
