// libFuzzer's entry: the first byte chooses one of the four files, the rest replaces it. The other three
// are those of the bundle that EDGEKIT_FUZZ_BUNDLE names.
//
//   EDGEKIT_FUZZ_BUNDLE=bundle edgekit-ncnn-libfuzzer corpus/ -max_len=65536 -timeout=30
#include <cstdio>
#include <cstdlib>

#include "error.h"
#include "target.h"

namespace {

const edgekit::fuzz::Files& seed() {
    static const edgekit::fuzz::Files files = [] {
        const char* folder = std::getenv("EDGEKIT_FUZZ_BUNDLE");
        if (!folder) {
            std::fprintf(stderr, "EDGEKIT_FUZZ_BUNDLE must name a bundle with an ncnn model.\n");
            std::exit(2);
        }
        return edgekit::fuzz::read_files(folder);
    }();
    return files;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size < 1) return 0;
    edgekit::fuzz::Files files = seed();
    std::string& file = data[0] % 4 == 0   ? files.manifest
                        : data[0] % 4 == 1 ? files.sidecar
                        : data[0] % 4 == 2 ? files.param
                                           : files.bin;
    file.assign(reinterpret_cast<const char*>(data) + 1, size - 1);
    std::string message;
    edgekit::fuzz::run_one(files, message);
    return 0;
}
