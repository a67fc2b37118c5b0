#include <cstdio>
#include <cstdlib>
#include <new>

#include "jobs.h"

namespace {

using namespace edgekit;

#ifndef EDGEKIT_VERSION
#define EDGEKIT_VERSION "unknown"
#endif

void print(const std::string& text) {
    std::fputs(text.c_str(), stdout);
}

int failed(const std::string& message, const std::string& hint, Exit code) {
    note(message + (hint.empty() ? "" : " " + hint));
    JsonWriter json;
    json.begin_object().field("error", message).field("hint", hint).field("exit_code", int(code)).end_object();
    print(json.text());
    return int(code);
}

int run(const std::vector<std::string>& arguments) {
    const Options options = parse_options(arguments);
    if (options.job == Job::help) {
        print(help_text());
        return 0;
    }
    if (options.job == Job::version) {
        print("edgekit-ncnn " EDGEKIT_VERSION " (ncnn " + ncnn_version() + ", Vulkan " +
              (vulkan_compiled_in() ? "compiled in" : "not compiled in") + ")\n");
        return 0;
    }
    JsonWriter json;
    Exit code = Exit::bug;
    switch (options.job) {
    case Job::self_test: code = self_test_job(options, json); break;
    case Job::bench: code = bench_job(options, json); break;
    default: code = run_job(options, json);
    }
    print(json.text());
    return int(code);
}

}  // namespace

int main(int argc, char** argv) {
    int code;
    try {
        code = run(std::vector<std::string>(argv + 1, argv + argc));
    } catch (const Error& error) {
        code = failed(error.what(), error.hint(), error.code());
    } catch (const std::bad_alloc&) {
        code = failed("There is not enough memory for this model.", "Take a smaller one.", Exit::run_failed);
    }
    if (std::fflush(stdout) != 0) {
        std::perror("edgekit-ncnn: stdout");
        return int(Exit::no_space);
    }
    // the process ends here: what ncnn's threads and the C++ runtime would tidy up, the kernel does faster
    std::fflush(stderr);
    std::_Exit(code);
}
