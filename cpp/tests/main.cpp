#include <cstring>

#include "check.h"

// Runs every test, or those whose name begins with the argument.
int main(int argc, char** argv) {
    int run = 0;
    for (const edgekit::test::Case& each : edgekit::test::cases()) {
        if (argc > 1 && std::strncmp(each.name, argv[1], std::strlen(argv[1])) != 0) continue;
        const int before = edgekit::test::failures();
        try {
            each.body();
        } catch (const std::exception& error) {
            edgekit::test::fail(each.name, 0, std::string("threw: ") + error.what());
        }
        run++;
        if (edgekit::test::failures() > before) std::fprintf(stderr, "FAILED %s\n", each.name);
    }
    std::printf("%d tests, %d failures\n", run, edgekit::test::failures());
    return run == 0 || edgekit::test::failures() > 0;
}
