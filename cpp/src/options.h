// The command line.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "model.h"
#include "postprocess.h"

namespace edgekit {

enum class Job { images, tensor, golden, self_test, bench, help, version };

struct Options {
    Job job = Job::images;
    std::string bundle;
    std::vector<std::string> images;  // files and folders
    std::string tensor;

    std::optional<int> threads;  // the target's own number when it is not given
    RunSettings run;

    Suppression rule;
    std::string head;
    bool raw = false;
    std::string draw;          // folder for drawings
    std::string save_outputs;  // folder for raw outputs

    std::optional<int> warmup;
    std::optional<int> runs;
    std::optional<double> cooldown_s;
    bool samples = false;
    std::optional<double> max_p99_ms;
    std::optional<double> max_p50_ms;
};

// Throws Error (usage) with the nearest known option.
Options parse_options(const std::vector<std::string>& arguments);

std::string help_text();

}  // namespace edgekit
