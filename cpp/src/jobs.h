// What the program can be asked to do. Each job fills one JSON object and returns the exit code; errors
// that leave nothing to answer are thrown.
#pragma once

#include <string>

#include "error.h"
#include "json.h"
#include "manifest.h"
#include "options.h"

namespace edgekit {

// Images, an input tensor, or the golden inputs.
Exit run_job(const Options& options, JsonWriter& json);

// Hashes, preprocessing and golden outputs.
Exit self_test_job(const Options& options, JsonWriter& json);

// Latency.
Exit bench_job(const Options& options, JsonWriter& json);

// One line on stderr.
void note(const std::string& text);

// The runtime's part of every answer: name, version, precision, threads.
void write_runtime(JsonWriter& json, const Options& options, const Manifest& manifest, const Sidecar& sidecar);

// The settings that a bundle's model is opened with.
RunSettings run_settings(const Options& options, const Manifest& manifest);

// Milliseconds since an arbitrary start, from a clock that only goes forward.
double now_ms();

}  // namespace edgekit
