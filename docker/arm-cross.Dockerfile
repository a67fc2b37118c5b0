# Builds the static NCNN runner for ARM boards, and runs it under qemu.
#
#   docker build -f docker/arm-cross.Dockerfile -t edgekit-arm .
#   docker run --rm -v "$PWD/out:/out" edgekit-arm            # out/aarch64/edgekit-ncnn, out/armhf/...
FROM debian:bookworm-slim

COPY docker/scripts /opt/scripts
RUN /opt/scripts/apt-install.sh python cross

COPY . /opt/source
RUN /opt/scripts/install-edgekit.sh /opt/source ""

# ncnn is compiled here, once; a runner from changed sources takes seconds then
ENV EDGEKIT_NATIVE_CACHE=/opt/native
RUN /opt/scripts/build-runners.sh /opt/runners aarch64 armhf

ENTRYPOINT ["/opt/scripts/build-runners.sh", "/out"]
CMD ["aarch64", "armhf"]
