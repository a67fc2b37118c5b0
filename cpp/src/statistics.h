// Statistics of latency; the same definitions as edgekit/metrics/latency.py.
#pragma once

#include <vector>

namespace edgekit {

struct Summary {
    double p50 = 0.0, p90 = 0.0, p95 = 0.0, p99 = 0.0;
    double mean = 0.0, std = 0.0, min = 0.0, max = 0.0;
};

// The value below which `share` (0 to 1) of the sorted samples lie, linear between the two nearest
// (definition 7 of Hyndman and Fan, 1996).
double quantile(const std::vector<double>& sorted, double share);

// Of at least one sample; std with n - 1.
Summary summary(std::vector<double> samples);

}  // namespace edgekit
