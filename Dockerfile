FROM python:3.11-slim AS build
WORKDIR /build
COPY config/requirements.txt .
RUN pip install --no-cache-dir --require-hashes --prefix=/install -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
RUN pip install --no-cache-dir --no-deps --prefix=/install .

FROM python:3.11-slim
COPY --from=build /install /usr/local
RUN useradd --uid 10001 --no-create-home gateway && install -d -o gateway -m 700 /var/lib/masking-gateway
USER gateway
ENV PYTHONUNBUFFERED=1 GATEWAY_STATE_DIR=/var/lib/masking-gateway
EXPOSE 8080
ENTRYPOINT ["gateway"]
CMD ["serve"]
