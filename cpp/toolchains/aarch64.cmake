# 64-bit ARM on Linux: Raspberry Pi 3 and later with a 64-bit system, Jetson, phones.
# The base is ARMv8-A; ncnn chooses dot-product, fp16, bf16 and i8mm kernels when it runs.
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(EDGEKIT_TRIPLE aarch64-linux-gnu)
set(EDGEKIT_QEMU qemu-aarch64)
include(${CMAKE_CURRENT_LIST_DIR}/linux-gnu.cmake)
