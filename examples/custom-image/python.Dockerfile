# Stands in for python:3.11 where no registry answers: Debian's Python in a virtual environment, with
# the place's own settings for pip, as the base images of a company have them.
ARG BASE_IMAGE=debian:bookworm-slim
FROM ${BASE_IMAGE}
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
      ca-certificates gcc libc6-dev libgomp1 libquadmath0 python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/python
COPY site/ /etc/site/
ENV PATH=/opt/python/bin:$PATH PIP_CONFIG_FILE=/etc/site/pip.conf
