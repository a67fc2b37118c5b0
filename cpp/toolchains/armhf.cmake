# 32-bit ARM on Linux with NEON and hard float: Raspberry Pi 2 and later with a 32-bit system.
# The base is plain NEON: ncnn compiles its VFPv4 kernels besides and chooses when it runs. With
# -mfpu=neon-vfpv4 here g++ 12 does not build ncnn.
set(CMAKE_SYSTEM_PROCESSOR armv7-a)
set(EDGEKIT_TRIPLE arm-linux-gnueabihf)
set(EDGEKIT_QEMU qemu-arm)
set(CMAKE_C_FLAGS_INIT "-march=armv7-a -mfpu=neon -mfloat-abi=hard")
set(CMAKE_CXX_FLAGS_INIT "-march=armv7-a -mfpu=neon -mfloat-abi=hard")
include(${CMAKE_CURRENT_LIST_DIR}/linux-gnu.cmake)
