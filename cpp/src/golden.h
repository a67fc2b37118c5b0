// Comparing outputs with a bundle's golden ones, block by block (docs/bundle.md).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "manifest.h"
#include "tensor.h"

namespace edgekit {

struct BlockParity {
    std::string name;
    double max_rel_error = 0.0;
    double cosine = 1.0;
};

class GoldenMeter {
public:
    // `outputs` without a block of their own are compared whole.
    GoldenMeter(const Golden& golden, const std::vector<std::string>& outputs);

    // One sample: an output and what was expected of it. Throws Error (verification failed) for another
    // shape, a value that is not finite, or a block that does not fit.
    void add(const std::string& output, const Tensor& expected, const Tensor& found);

    std::vector<BlockParity> parities() const;
    // What breaks the limits, in words; empty when nothing does.
    std::string problem(const GoldenLimits& limits) const;

private:
    struct Sums {
        double expected = 0.0, found = 0.0, product = 0.0;
        double max_error = 0.0, max_expected = 0.0;
    };
    std::vector<Block> blocks_;
    std::vector<Sums> sums_;
};

}  // namespace edgekit
