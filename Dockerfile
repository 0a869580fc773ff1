# One image for the code server, the webserver, the daemon and the workers, on one machine or on
# many: what a container is, its command says. Secrets are no part of it; compose.yaml mounts them
# as files.
ARG BASE_IMAGE=docker.io/library/python:3.12-slim

FROM ${BASE_IMAGE} AS build
COPY . /source
RUN python3 -m venv /opt/vsvi \
    && /opt/vsvi/bin/pip install --no-cache-dir --disable-pip-version-check \
        --constraint /source/constraints.txt '/source[celery,k8s,s3]'

FROM ${BASE_IMAGE}
COPY --from=build /opt/vsvi /opt/vsvi
COPY dagster.yaml deploy/workspace.yaml /project/
COPY cities/demo.json /project/cities/
COPY --chmod=755 deploy/entrypoint.sh /usr/local/bin/entrypoint.sh
ENV PATH=/opt/vsvi/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    DAGSTER_HOME=/project \
    VSVI_DATA_DIR=/project/data \
    VSVI_DAGSTER_DIR=/project/data/dagster
WORKDIR /project
# Any other user can run it too.
USER 1000:1000
ENTRYPOINT ["entrypoint.sh"]
CMD ["vsvi", "--help"]
