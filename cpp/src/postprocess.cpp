#include "postprocess.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "error.h"

namespace edgekit {

namespace {

constexpr float kScoreTolerance = 0.02f;  // quantized sigmoids may step a little over 1
constexpr int64_t kEnough = 20;           // candidates before a share of them means anything

float area(const std::array<float, 4>& box) {
    return (box[2] - box[0]) * (box[3] - box[1]);
}

std::vector<size_t> by_score(const std::vector<Candidate>& found) {
    std::vector<size_t> order(found.size());
    std::iota(order.begin(), order.end(), size_t(0));
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return found[a].score > found[b].score; });
    return order;
}

}  // namespace

std::vector<size_t> nms(const std::vector<Candidate>& found, const Suppression& rule) {
    std::vector<size_t> order = by_score(found);
    if (order.size() > rule.limits.count) order.resize(rule.limits.count);
    std::vector<size_t> kept;
    std::vector<float> kept_areas;
    for (const size_t index : order) {
        if (kept.size() >= rule.max_det) break;
        const Candidate& other = found[index];
        const float other_area = area(other.box);
        bool suppressed = false;
        for (size_t k = 0; k < kept.size() && !suppressed; k++) {
            const Candidate& one = found[kept[k]];
            if (one.class_id != other.class_id) continue;
            const float width = std::max(std::min(one.box[2], other.box[2]) - std::max(one.box[0], other.box[0]), 0.0f);
            const float height = std::max(std::min(one.box[3], other.box[3]) - std::max(one.box[1], other.box[1]), 0.0f);
            const float common = width * height;
            const float joined = (kept_areas[k] + other_area) - common;
            suppressed = common > joined * rule.iou;
        }
        if (suppressed) continue;
        kept.push_back(index);
        kept_areas.push_back(other_area);
    }
    return kept;
}

std::vector<Candidate> suppress(const std::vector<Candidate>& found, const HeadMatch& match,
                                const Placement& placement, const Suppression& rule) {
    std::vector<size_t> kept;
    if (match.head == Head::yolo26) {
        kept = by_score(found);
        if (kept.size() > rule.max_det) kept.resize(rule.max_det);
    } else {
        kept = nms(found, rule);
    }
    std::vector<Candidate> out;
    for (const size_t index : kept) {
        Candidate answer = found[index];
        for (size_t i = 0; i < 4; i++) {
            const bool across = i % 2 == 0;
            const double offset = across ? placement.offset_x : placement.offset_y;
            const double scale = across ? placement.scale_x : placement.scale_y;
            const double most = across ? placement.source_width : placement.source_height;
            answer.box[i] = float(std::clamp((double(answer.box[i]) - offset) / scale, 0.0, most));
        }
        out.push_back(answer);
    }
    return out;
}

std::vector<float> probabilities(const std::vector<float>& logits) {
    if (logits.empty()) return {};
    double sum = 0.0;
    float low = logits[0], high = logits[0];
    for (const float value : logits) {
        sum += double(value);
        low = std::min(low, value);
        high = std::max(high, value);
    }
    if (low >= 0 && std::fabs(sum - 1) < 1e-3) return logits;
    std::vector<double> powers;
    sum = 0.0;
    for (const float value : logits) {
        powers.push_back(std::exp(double(value) - double(high)));
        sum += powers.back();
    }
    std::vector<float> out;
    for (const double power : powers) out.push_back(float(power / sum));
    return out;
}

std::vector<size_t> ranked(const std::vector<float>& values, size_t count) {
    std::vector<size_t> order(values.size());
    std::iota(order.begin(), order.end(), size_t(0));
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return values[a] > values[b]; });
    if (order.size() > count) order.resize(count);
    return order;
}

void check_finite(const Tensor& output, const std::string& name, const std::string& image) {
    for (size_t i = 0; i < output.values.size(); i++) {
        if (!std::isfinite(output.values[i])) {
            throw bad_input("The model's output '" + name + "' holds values that are not finite (on " + image +
                                ", first at element " + std::to_string(i) + ").",
                            "The model is broken, or fed the wrong input.");
        }
    }
}

void Plausibility::see(const Tensor& output, const std::vector<Candidate>& found, const std::string& image) {
    const std::string head = name_of(match_.head);
    const auto [low, high] = score_range(output, match_, classes_);
    if (low < -kScoreTolerance || high > 1.0f + kScoreTolerance) {
        throw bad_input("Read as the head '" + head + "', scores lie in " + std::to_string(low) + " to " +
                            std::to_string(high) + " instead of 0 to 1 (on " + image + ").",
                        "Choose another --head, or export the model with its sigmoid.");
    }
    for (const Candidate& candidate : found) {
        if (candidate.class_id < 0 || candidate.class_id >= classes_) {
            throw bad_input("Read as the head '" + head + "', the model finds class " +
                                std::to_string(candidate.class_id) + ", but there are " +
                                std::to_string(classes_) + " names (on " + image + ").",
                            "Choose another --head.");
        }
        const auto& [x1, y1, x2, y2] = candidate.box;
        const float cx = (x1 + x2) / 2, cy = (y1 + y2) / 2;
        const float width = float(size_.width), height = float(size_.height);
        const bool outside = cx < -0.5f * width || cx > 1.5f * width || cy < -0.5f * height ||
                             cy > 1.5f * height || x2 < x1 || y2 < y1 || x2 - x1 > 4 * width ||
                             y2 - y1 > 4 * height;
        outside_ += outside;
    }
    candidates_ += int64_t(found.size());
    if (candidates_ >= kEnough && double(outside_) > 0.9 * double(candidates_)) {
        throw bad_input("Read as the head '" + head + "', " + std::to_string(outside_) + " of " +
                            std::to_string(candidates_) + " boxes lie outside the image or are inside out.",
                        "Choose another --head: these outputs are not such boxes.");
    }
}

}  // namespace edgekit
