# What the toolchains of this folder share. EDGEKIT_TRIPLE is set by the file that includes this one,
# EDGEKIT_QEMU names the emulator that runs a foreign program on the host.
set(CMAKE_SYSTEM_NAME Linux)

set(CMAKE_C_COMPILER ${EDGEKIT_TRIPLE}-gcc)
set(CMAKE_CXX_COMPILER ${EDGEKIT_TRIPLE}-g++)

# ctest then runs the tests of a cross build as well; -L is where a dynamic program finds its libc
find_program(EDGEKIT_EMULATOR NAMES ${EDGEKIT_QEMU} ${EDGEKIT_QEMU}-static)
if(EDGEKIT_EMULATOR)
    set(CMAKE_CROSSCOMPILING_EMULATOR ${EDGEKIT_EMULATOR} -L /usr/${EDGEKIT_TRIPLE})
endif()
