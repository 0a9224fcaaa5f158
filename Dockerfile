# tpo-graph serve, for other machines: docker build -t tpo-graph . && docker run -p 8123:8123 -e TPO_API_KEY=... \
#   -e TPO_POLICY=openai:gpt-4o-mini -e OPENAI_API_KEY=... tpo-graph
# Without TPO_POLICY and TPO_REWARD the embedded policy and the demonstration reward answer. docs/serving.md says more.
FROM python:3.12-slim

# the embedded engine needs it
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 && rm -rf /var/lib/apt/lists/*

# torch for the CPU; for a GPU build with --build-arg TORCH_INDEX=https://pypi.org/simple
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

WORKDIR /app
COPY constraints.txt .
RUN pip install --no-cache-dir --constraint constraints.txt --index-url "$TORCH_INDEX" \
    --extra-index-url https://pypi.org/simple torch
COPY LICENSE README.md pyproject.toml ./
COPY prompts prompts
COPY tpo_graph tpo_graph
RUN pip install --no-cache-dir --constraint constraints.txt '.[local,langchain,serve,verifiers]'

# models that are fetched on first use: mount a volume here, and they are fetched once
ENV HOME=/home/tpo
RUN useradd --create-home --home-dir /home/tpo --uid 1000 tpo && mkdir -p /home/tpo/.cache && chown tpo /home/tpo/.cache
USER tpo
WORKDIR /home/tpo
VOLUME /home/tpo/.cache

EXPOSE 8123
HEALTHCHECK --start-period=60s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8123/health', timeout=5)"]
ENTRYPOINT ["tpo-graph", "serve", "--host", "0.0.0.0"]
