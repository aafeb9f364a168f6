# The base brings the driver's user-space libraries; pip's torch brings its own CUDA.
ARG BASE_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04
FROM ${BASE_IMAGE}

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv ca-certificates \
    && rm -rf /var/lib/apt/lists/*

# What changes rarely comes first: the dependencies are a layer of their own, the code a small one after it.
WORKDIR /opt/nota-seg
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Optional parts: any of pyproject.toml's extras.
ARG EXTRAS="smp onnx plots"
COPY constraints.txt pyproject.toml ./
RUN python3 -m venv /opt/venv \
    && python3 -c 'import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print("\n".join(sum((p["optional-dependencies"][e] for e in sys.argv[1:]), p["dependencies"])))' ${EXTRAS} > requirements.txt \
    && pip install --constraint constraints.txt -r requirements.txt
COPY README.md dist_train.sh ./
COPY util util
COPY imagenet_pretrain imagenet_pretrain
COPY nota_seg nota_seg
RUN pip install --no-deps .

# Any user may run the image (--user): caches and outputs are writable for all.
RUN useradd --create-home --uid 1000 nota 2>/dev/null || useradd --create-home nota; \
    install -d -m 1777 /caches /outputs /root/datasets && chmod 711 /root
ENV HOME=/caches HF_HOME=/caches/huggingface TORCH_HOME=/caches/torch MPLCONFIGDIR=/tmp/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor NO_ALBUMENTATIONS_UPDATE=1
USER nota
WORKDIR /outputs
ENTRYPOINT ["nota-seg"]
CMD ["--help"]
