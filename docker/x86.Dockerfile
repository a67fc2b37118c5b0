# Exports, calibrates, evaluates and measures on x86; prepares bundles for every other target.
#
#   docker build -f docker/x86.Dockerfile -t edgekit .
#   docker run --rm -v "$PWD:/work" edgekit export best.pt --target x86-int8 --images calib/
FROM debian:bookworm-slim

COPY docker/scripts /opt/scripts
RUN /opt/scripts/apt-install.sh python

COPY . /opt/source
# --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu makes an image without CUDA libraries
ARG TORCH_INDEX=
RUN /opt/scripts/install-edgekit.sh /opt/source torch,ultralytics,ncnn

WORKDIR /work
# the stage cache survives the container when the folder is a volume
ENV EDGEKIT_CACHE=/work/.edgekit-cache
ENTRYPOINT ["edgekit"]
CMD ["--help"]
