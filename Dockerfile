# The image by docker, podman or buildah, on any Debian with the same Python as requirements/run.txt is locked for:
#
#     docker build -t registry/felix-py:TAG .
#
# `make image` makes a smaller one, without a registry and the same each time: no shell, no dpkg in it (image/).
# BASE is a Debian 12; FROM understands what the builder does.
ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv python3-dev gcc libc6-dev binutils musl-tools \
      gcc-aarch64-linux-gnu libc6-dev-arm64-cross
WORKDIR /source
COPY requirements requirements
RUN python3 -m venv /venv && /venv/bin/pip install -q --require-hashes -r requirements/build.txt
COPY . .
# As in `make image`: the locked dependencies with their hashes, this project, both architectures' CNI client.
RUN /venv/bin/python -c "from pathlib import Path; from image.application import install; install(Path('/made'), 'python3.11')" \
 && python3 -m compileall -q --invalidation-mode unchecked-hash -s /made /made/opt/felix-py/lib

FROM ${BASE}
# Whoever is not root gets CAP_NET_BIND_SERVICE (BGP's port) by a file that permits it, and only where the pod adds it.
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3-minimal libpython3-stdlib iptables ipset conntrack ca-certificates \
      libcap2-bin \
 && setcap cap_net_bind_service=p /usr/bin/python3.11 \
 && apt-get purge -y --auto-remove libcap2-bin \
 && rm -rf /var/lib/apt/lists/* /var/log/* /usr/share/doc /usr/share/man /usr/share/locale
COPY --from=build /made /
ENV PATH=/opt/felix-py/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
LABEL org.opencontainers.image.title=felix-py org.opencontainers.image.licenses=Apache-2.0
# The agent's; the sidecar's is its container's runAsUser, 65532.
USER 0:0
ENTRYPOINT ["felix-py"]
