# x86_64 on Linux, built on a machine of another architecture.
set(CMAKE_SYSTEM_PROCESSOR x86_64)
set(EDGEKIT_TRIPLE x86_64-linux-gnu)
set(EDGEKIT_QEMU qemu-x86_64)
include(${CMAKE_CURRENT_LIST_DIR}/linux-gnu.cmake)
