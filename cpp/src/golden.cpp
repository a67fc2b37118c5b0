#include "golden.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "error.h"

namespace edgekit {

namespace {

Error failed(const std::string& message) {
    return Error(Exit::verification_failed, message, "Copy the bundle again, or export it again.");
}

// The indices that a block takes on one axis of this size.
std::vector<int64_t> indices(const Block& block, size_t axis, int64_t size) {
    std::vector<int64_t> out;
    if (axis >= block.axes.size() || block.axes[axis].empty()) {
        for (int64_t i = 0; i < size; i++) out.push_back(i);
        return out;
    }
    for (const auto& [start, stop, step] : block.axes[axis]) {
        if (stop > size) throw failed("The golden block '" + block.name + "' does not fit its output.");
        for (int64_t i = start; i < stop; i += step) out.push_back(i);
    }
    return out;
}

std::string short_number(double value) {
    char text[32];
    std::snprintf(text, sizeof(text), "%.3g", value);
    return text;
}

}  // namespace

GoldenMeter::GoldenMeter(const Golden& golden, const std::vector<std::string>& outputs) {
    for (const Block& block : golden.blocks) {
        if (std::find(outputs.begin(), outputs.end(), block.output) != outputs.end()) blocks_.push_back(block);
    }
    for (const std::string& output : outputs) {
        const bool named = std::any_of(blocks_.begin(), blocks_.end(),
                                       [&](const Block& block) { return block.output == output; });
        if (!named) blocks_.push_back({output, output, {}});
    }
    if (blocks_.empty()) throw failed("There is no golden output.");
    sums_.resize(blocks_.size());
}

void GoldenMeter::add(const std::string& output, const Tensor& expected, const Tensor& found) {
    if (expected.shape != found.shape) {
        throw failed("The output '" + output + "' has the shape " + text_of(found.shape) + ", the golden one " +
                     text_of(expected.shape) + ".");
    }
    for (size_t i = 0; i < found.values.size(); i++) {
        if (!std::isfinite(found.values[i]) || !std::isfinite(expected.values[i])) {
            throw failed("The output '" + output + "' holds values that are not finite.");
        }
    }
    for (size_t b = 0; b < blocks_.size(); b++) {
        const Block& block = blocks_[b];
        if (block.output != output) continue;
        if (block.axes.size() > expected.shape.size()) {
            throw failed("The golden block '" + block.name + "' does not fit its output.");
        }
        // offsets of the elements, axis by axis
        std::vector<size_t> offsets{0};
        size_t stride = expected.values.size();
        for (size_t axis = 0; axis < expected.shape.size(); axis++) {
            stride /= size_t(std::max<int64_t>(1, expected.shape[axis]));
            std::vector<size_t> next;
            const std::vector<int64_t> taken = indices(block, axis, expected.shape[axis]);
            if (offsets.size() * taken.size() > expected.values.size()) {
                throw failed("The golden block '" + block.name + "' takes elements twice.");
            }
            for (const size_t base : offsets) {
                for (const int64_t index : taken) next.push_back(base + size_t(index) * stride);
            }
            offsets = std::move(next);
        }
        Sums& sums = sums_[b];
        for (const size_t at : offsets) {
            const double a = double(expected.values[at]), c = double(found.values[at]);
            sums.expected += a * a;
            sums.found += c * c;
            sums.product += a * c;
            sums.max_error = std::max(sums.max_error, std::fabs(a - c));
            sums.max_expected = std::max(sums.max_expected, std::fabs(a));
        }
    }
}

std::vector<BlockParity> GoldenMeter::parities() const {
    std::vector<BlockParity> out;
    for (size_t b = 0; b < blocks_.size(); b++) {
        const Sums& sums = sums_[b];
        BlockParity parity;
        parity.name = blocks_[b].name;
        if (sums.max_error > 0.0) {
            const double norm = std::sqrt(sums.expected) * std::sqrt(sums.found);
            parity.cosine = norm > 0.0 ? std::clamp(sums.product / norm, -1.0, 1.0) : 0.0;
            parity.max_rel_error = sums.max_expected > 0.0 ? sums.max_error / sums.max_expected : INFINITY;
        }
        out.push_back(parity);
    }
    return out;
}

std::string GoldenMeter::problem(const GoldenLimits& limits) const {
    std::string out;
    int count = 0;
    for (const BlockParity& parity : parities()) {
        std::string broken;
        if (!(parity.max_rel_error <= limits.max_rel_error)) {
            broken = "max_rel_error " + short_number(parity.max_rel_error) + " (limit " +
                     short_number(limits.max_rel_error) + ")";
        } else if (!(parity.cosine >= limits.min_cosine)) {
            broken = "cosine " + short_number(parity.cosine) + " (at least " + short_number(limits.min_cosine) + ")";
        }
        if (broken.empty() || ++count > 3) continue;
        out += (out.empty() ? "block '" : "; block '") + parity.name + "' has " + broken;
    }
    return out;
}

}  // namespace edgekit
