// edgekit-ncnn-fuzz BUNDLE... [--cases N] [--seed N] [--seconds N] [--keep DIR] [--first N]
//
// Mutates the files of valid bundles, half of the cases past their headers, and opens and runs what comes
// out. A crash or a hang ends the program; the case's number and seed make it again, and with --keep its
// files lie in DIR beforehand.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include <sys/time.h>
#include <unistd.h>

#include "error.h"
#include "mutate.h"
#include "target.h"

namespace {

using namespace edgekit;

long current_case = 0;

void hang(int) {
    char text[96];
    const int size = std::snprintf(text, sizeof(text), "case %ld hangs\n", current_case);
    if (::write(2, text, size_t(size)) < 0) std::_Exit(2);
    std::abort();
}

// Ends the program when it uses more CPU time than this from now on; 0 stops watching.
void watch(unsigned seconds) {
    struct itimerval timer {};
    timer.it_value.tv_sec = long(seconds);
    ::setitimer(ITIMER_PROF, &timer, nullptr);
}

struct Settings {
    std::vector<std::string> bundles;
    long cases = 10'000, first = 0;
    unsigned long seed = 1;
    unsigned seconds = 30;  // of CPU time: a busy machine is no hang
    std::string keep;
};

Settings parse(int argc, char** argv) {
    Settings out;
    for (int i = 1; i < argc; i++) {
        const std::string word = argv[i];
        const auto value = [&] {
            if (i + 1 >= argc) throw usage_error(word + " needs a value.");
            return std::string(argv[++i]);
        };
        if (word == "--cases") out.cases = std::atol(value().c_str());
        else if (word == "--first") out.first = std::atol(value().c_str());
        else if (word == "--seed") out.seed = std::strtoul(value().c_str(), nullptr, 10);
        else if (word == "--seconds") out.seconds = unsigned(std::atol(value().c_str()));
        else if (word == "--keep") out.keep = value();
        else if (word.compare(0, 2, "--") == 0) throw usage_error("Unknown option '" + word + "'.");
        else out.bundles.push_back(word);
    }
    if (out.bundles.empty()) throw usage_error("A bundle is missing.");
    return out;
}

// Without waiting for the disk: what a crash of this program leaves behind is enough.
void keep(const fuzz::Files& files, const std::string& folder) {
    std::ofstream(folder + "/manifest.json", std::ios::binary) << files.manifest;
    std::ofstream(folder + "/model.json", std::ios::binary) << files.sidecar;
    std::ofstream(folder + "/model.param", std::ios::binary) << files.param;
    std::ofstream(folder + "/model.bin", std::ios::binary) << files.bin;
}

int run(const Settings& settings) {
    std::vector<fuzz::Files> seeds;
    for (const std::string& bundle : settings.bundles) {
        seeds.push_back(fuzz::read_files(bundle));
        std::string message;
        if (fuzz::run_one(seeds.back(), message) != fuzz::Outcome::ran) {
            throw bad_input("The bundle " + bundle + " is not valid itself: " + message);
        }
    }
    std::signal(SIGPROF, hang);
    long ran = 0, past = 0, at_ncnn = 0;
    for (long i = 0; i < settings.cases; i++) {
        current_case = settings.first + i;
        // every case stands alone, so that one number brings it back
        fuzz::Random random(settings.seed * 1'000'003ul + (unsigned long)current_case);
        fuzz::Files files = seeds[size_t(random() % seeds.size())];
        const bool past_header = current_case % 2 == 1;
        const std::string done = fuzz::mutate(files, random, past_header);
        if (!settings.keep.empty()) keep(files, settings.keep);
        std::string message;
        watch(settings.seconds);
        const bool finished = fuzz::run_one(files, message) == fuzz::Outcome::ran;
        watch(0);
        ran += finished;
        past += past_header;
        at_ncnn += message.find("ncnn refuses") != std::string::npos || message.find("does not compute") != std::string::npos;
        if (settings.cases == 1) std::printf("%s: %s\n", done.c_str(), finished ? "ran" : message.c_str());
    }
    std::printf("{\"cases\": %ld, \"past_header\": %ld, \"refused\": %ld, \"ran\": %ld, \"refused_by_ncnn\": %ld, \"seed\": %lu}\n",
                settings.cases, past, settings.cases - ran, ran, at_ncnn, settings.seed);
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    try {
        return run(parse(argc, argv));
    } catch (const Error& error) {
        std::fprintf(stderr, "edgekit-ncnn-fuzz: %s\n", error.what());
        return int(error.code());
    }
}
