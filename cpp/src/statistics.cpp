#include "statistics.h"

#include <algorithm>
#include <cmath>

namespace edgekit {

double quantile(const std::vector<double>& sorted, double share) {
    const double position = share * double(sorted.size() - 1);
    const size_t below = size_t(std::floor(position));
    const size_t above = std::min(below + 1, sorted.size() - 1);
    return sorted[below] + (sorted[above] - sorted[below]) * (position - double(below));
}

Summary summary(std::vector<double> samples) {
    std::sort(samples.begin(), samples.end());
    Summary out;
    out.p50 = quantile(samples, 0.50);
    out.p90 = quantile(samples, 0.90);
    out.p95 = quantile(samples, 0.95);
    out.p99 = quantile(samples, 0.99);
    out.min = samples.front();
    out.max = samples.back();
    for (const double sample : samples) out.mean += sample;
    out.mean /= double(samples.size());
    double squares = 0.0;
    for (const double sample : samples) squares += (sample - out.mean) * (sample - out.mean);
    if (samples.size() > 1) out.std = std::sqrt(squares / double(samples.size() - 1));
    return out;
}

}  // namespace edgekit
