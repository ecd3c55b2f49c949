# One image for every group: `docker run headrace:0.1.0 worker sentiment`.
FROM python:3.11-slim-bookworm

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /app
COPY pyproject.toml constraints.txt README.md topics.yaml ./
COPY schemas schemas
COPY config config
COPY samples samples
COPY headrace headrace
COPY producers producers
COPY consumers consumers
RUN pip install --constraint constraints.txt . \
    && useradd --create-home --uid 10001 headrace

USER headrace
WORKDIR /home/headrace
ENTRYPOINT ["headrace"]
CMD ["--help"]
