# clip serve on a CPU: docker build -t clip-turbo . && docker run -p 8000:8000 -v clip-models:/models clip-turbo
FROM python:3.12-slim-bookworm

# PyTorch's CPU build: the other one brings 3 GB of CUDA. curl is for the health check.
RUN apt-get update && apt-get install -y --no-install-recommends curl && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir torch --index-url https://download.pytorch.org/whl/cpu
COPY . /source
RUN pip install --no-cache-dir "/source[serve,search,heic]" && rm -rf /source

RUN useradd --create-home --uid 10001 clip && mkdir /models && chown clip /models
USER clip
# Weights are fetched into the volume once. The default model is 354 MB.
ENV HOME=/models HF_HOME=/models/huggingface CLIP_HOST=0.0.0.0 CLIP_PORT=8000
VOLUME /models
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=180s CMD ["curl", "--fail", "--silent", "http://127.0.0.1:8000/health/live"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["clip"]
CMD ["serve"]
