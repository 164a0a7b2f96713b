# backupd with Debian's PostgreSQL client. A client must not be older than its server: for newer servers add clients
# from PostgreSQL's own archive:  docker build --build-arg PGDG_MAJORS="18" -t backupd .
#
#   docker run --init -d -v /etc/backupd:/etc/backupd:ro backupd              # the daemon
#   docker run --rm -v /etc/backupd:/etc/backupd:ro backupd backup            # any other command
#
# /etc/backupd holds backupd.toml and its keys, which user 10001 must be able to read.
ARG BASE=debian:trixie-slim

FROM ${BASE} AS build
# A CA bundle for pip, where the network wants one of its own.
ARG PIP_CERT
RUN export DEBIAN_FRONTEND=noninteractive \
 && apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends python3-venv ca-certificates \
 && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml README.md LICENSE /src/
COPY backupd /src/backupd
RUN python3 -m venv /opt/backupd \
 && /opt/backupd/bin/pip install --quiet --no-cache-dir --disable-pip-version-check /src \
 && /opt/backupd/bin/pip uninstall --quiet --yes pip

FROM ${BASE}
# Major versions of clients to add from https://apt.postgresql.org, as in "15 16 18". None: only Debian is asked.
ARG PGDG_MAJORS=""
# Debian's postgresql-client-common brings the key of that archive.
RUN export DEBIAN_FRONTEND=noninteractive \
 && apt-get update -qq \
 && apt-get install -y -qq --no-install-recommends ca-certificates python3 postgresql-client \
 && if [ -n "$PGDG_MAJORS" ]; then \
      suite=$(. /etc/os-release && echo "$VERSION_CODENAME") \
      && key=/usr/share/postgresql-common/pgdg/apt.postgresql.org.asc && test -s "$key" \
      && echo "deb [signed-by=$key] https://apt.postgresql.org/pub/repos/apt $suite-pgdg main" \
         > /etc/apt/sources.list.d/pgdg.list \
      && apt-get update -qq \
      && apt-get install -y -qq --no-install-recommends $(printf 'postgresql-client-%s ' $PGDG_MAJORS); \
    fi \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log \
 && useradd --uid 10001 --user-group --no-log-init --home-dir /var/lib/backupd --create-home backupd
COPY --from=build /opt/backupd /opt/backupd
ENV PATH=/opt/backupd/bin:$PATH PYTHONDONTWRITEBYTECODE=1
WORKDIR /var/lib/backupd
USER backupd
# Of the daemon, on the default of [server] listen.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["/opt/backupd/bin/python", "-m", "backupd.daemon.health"]
ENTRYPOINT ["backupd"]
CMD ["run"]
