# The node. Two stages: compilers and caches stay behind, and what runs is not root.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
RUN python -m venv /opt/overread
COPY pyproject.toml README.md LICENSE ./
COPY node ./node
COPY inference ./inference
COPY storage ./storage
RUN /opt/overread/bin/pip install --no-cache-dir ".[postgresql,openvino]"

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /var/lib/overread --create-home overread
COPY --from=build /opt/overread /opt/overread
WORKDIR /opt/overread-site
COPY conf ./conf
ENV PATH=/opt/overread/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    OVERREAD__DATA_DIR=/var/lib/overread
USER overread
VOLUME /var/lib/overread
EXPOSE 11112 8080
STOPSIGNAL SIGTERM
# The image has no curl; Python itself asks. /health/ready is for those who send work, this one for who restarts.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health/live', timeout=4)"]
ENTRYPOINT ["overread"]
CMD ["serve", "--config", "conf/node.yaml"]
