# Builds TensorRT engines and measures on a Jetson (JetPack 6). Engines are built on their own device,
# so this image runs there:
#
#   docker build -f docker/jetson.Dockerfile -t edgekit-jetson .
#   docker run --rm --runtime nvidia -v "$PWD:/work" edgekit-jetson build BUNDLE
#
# BASE is NVIDIA's image with TensorRT and CUDA for the board's JetPack.
ARG BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0
FROM ${BASE}

COPY docker/scripts /opt/scripts
RUN /opt/scripts/apt-install.sh python

COPY . /opt/source
# tensorrt is JetPack's own, in the system's Python packages
RUN SYSTEM_SITE=1 /opt/scripts/install-edgekit.sh /opt/source ""

WORKDIR /work
ENV EDGEKIT_CACHE=/work/.edgekit-cache
ENTRYPOINT ["edgekit"]
CMD ["--help"]
