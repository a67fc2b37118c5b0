#include <algorithm>
#include <cmath>
#include <functional>

#include "error.h"
#include "heads.h"
#include "strides.h"

namespace edgekit {

namespace {

// Scores laid out as [predictions, classes]; `at(prediction, class)` reads one.
struct Scores {
    size_t predictions = 0;
    size_t classes = 0;
    const float* data = nullptr;
    size_t prediction_step = 0;
    size_t class_step = 0;

    float at(size_t prediction, size_t k) const { return data[prediction * prediction_step + k * class_step]; }
};

struct Pick {
    size_t prediction = 0;
    size_t class_id = 0;
    float score = 0.0f;
};

// The `count` highest; of equal scores at the border the first are kept, so that equal inputs give equal
// outputs. The order of the others stays.
void keep_best(std::vector<Pick>& picks, size_t count) {
    if (picks.size() <= count) return;
    std::vector<float> scores;
    for (const Pick& pick : picks) scores.push_back(pick.score);
    std::nth_element(scores.begin(), scores.begin() + long(count) - 1, scores.end(), std::greater<float>());
    const float border = scores[count - 1];
    size_t above = 0;
    for (const Pick& pick : picks) above += pick.score > border;
    size_t ties = count - above;
    std::vector<Pick> kept;
    for (const Pick& pick : picks) {
        if (pick.score > border || (pick.score == border && ties > 0)) {
            ties -= pick.score == border;
            kept.push_back(pick);
        }
    }
    picks = std::move(kept);
}

// Candidates by prediction, then class; with `classes_first` by class, then prediction.
std::vector<Pick> pick(const Scores& scores, const Limits& limits, bool classes_first) {
    std::vector<Pick> picks;
    auto add = [&](size_t prediction, size_t k) {
        const float score = scores.at(prediction, k);
        if (score > limits.conf) picks.push_back({prediction, k, score});
    };
    if (!limits.multi_label) {
        std::vector<float> best(scores.predictions, 0.0f);
        std::vector<size_t> which(scores.predictions, 0);
        for (size_t i = 0; i < scores.predictions; i++) best[i] = scores.at(i, 0);
        // class by class runs along memory where classes are rows
        for (size_t k = 1; k < scores.classes; k++) {
            for (size_t i = 0; i < scores.predictions; i++) {
                const float score = scores.at(i, k);
                if (score > best[i]) {
                    best[i] = score;
                    which[i] = k;
                }
            }
        }
        for (size_t i = 0; i < scores.predictions; i++) {
            if (best[i] > limits.conf) picks.push_back({i, which[i], best[i]});
        }
    } else if (classes_first) {
        for (size_t k = 0; k < scores.classes; k++) {
            for (size_t i = 0; i < scores.predictions; i++) add(i, k);
        }
    } else {
        for (size_t i = 0; i < scores.predictions; i++) {
            for (size_t k = 0; k < scores.classes; k++) add(i, k);
        }
    }
    keep_best(picks, limits.count);
    return picks;
}

std::array<float, 4> corners(float cx, float cy, float w, float h) {
    const float half_w = w * 0.5f, half_h = h * 0.5f;
    return {cx - half_w, cy - half_h, cx + half_w, cy + half_h};
}

// Rows that can exceed the threshold (class scores are at most 1), with class scores times objectness.
struct Likely {
    std::vector<size_t> rows;
    std::vector<float> scores;
};

Likely with_objectness(const Tensor& output, float conf) {
    const size_t count = size_t(output.shape[1]), width = size_t(output.shape[2]);
    Likely out;
    for (size_t i = 0; i < count; i++) {
        const float* row = output.values.data() + i * width;
        if (!(row[4] > conf)) continue;
        out.rows.push_back(i);
        for (size_t k = 5; k < width; k++) out.scores.push_back(row[k] * row[4]);
    }
    return out;
}

Scores scores_of(const Likely& likely, size_t classes) {
    return {likely.rows.size(), classes, likely.scores.data(), classes, 1};
}

std::vector<Candidate> decode_yolov5(const Tensor& output, const Limits& limits) {
    const size_t width = size_t(output.shape[2]);
    const Likely likely = with_objectness(output, limits.conf);
    std::vector<Candidate> out;
    for (const Pick& found : pick(scores_of(likely, width - 5), limits, false)) {
        const float* row = output.values.data() + likely.rows[found.prediction] * width;
        out.push_back({corners(row[0], row[1], row[2], row[3]), found.score, int64_t(found.class_id)});
    }
    return out;
}

struct Cell {
    float x, y, stride;
};

// Map by map and row by row.
std::vector<Cell> grid(InputSize size, const std::vector<int>& strides) {
    std::vector<Cell> out;
    for (const int stride : strides) {
        const int64_t height = cells_of(size.height, stride), width = cells_of(size.width, stride);
        for (int64_t y = 0; y < height; y++) {
            for (int64_t x = 0; x < width; x++) out.push_back({float(x), float(y), float(stride)});
        }
    }
    return out;
}

std::vector<Candidate> decode_yolox(const Tensor& output, InputSize size, const Limits& limits) {
    const size_t width = size_t(output.shape[2]);
    const std::vector<int>* strides = nullptr;
    for (const std::vector<int>& set : stride_sets()) {
        if (cells(size, set) == output.shape[1]) {
            strides = &set;
            break;
        }
    }
    if (!strides) {
        throw bad_input("A YOLOX head of " + std::to_string(output.shape[1]) +
                        " predictions fits no strides of a " + std::to_string(size.height) + "x" +
                        std::to_string(size.width) + " input.");
    }
    const std::vector<Cell> places = grid(size, *strides);
    const Likely likely = with_objectness(output, limits.conf);
    std::vector<Candidate> out;
    for (const Pick& found : pick(scores_of(likely, width - 5), limits, false)) {
        const size_t index = likely.rows[found.prediction];
        const float* row = output.values.data() + index * width;
        const Cell& cell = places[index];
        const float cx = (row[0] + cell.x) * cell.stride, cy = (row[1] + cell.y) * cell.stride;
        // exp overflows in float32 at 88; no side is e^20 strides long
        const float w = std::exp(std::min(row[2], 20.0f)) * cell.stride;
        const float h = std::exp(std::min(row[3], 20.0f)) * cell.stride;
        out.push_back({corners(cx, cy, w, h), found.score, int64_t(found.class_id)});
    }
    return out;
}

// Whether a yolov8 output is [4 + K, N]; it may be turned round.
bool by_rows(const Tensor& output, int64_t classes) {
    return output.shape[1] == 4 + classes;
}

Scores yolov8_scores(const Tensor& output, int64_t classes) {
    const bool rows = by_rows(output, classes);
    const size_t predictions = size_t(rows ? output.shape[2] : output.shape[1]);
    const size_t width = size_t(output.shape[2]);
    const float* data = output.values.data();
    return {predictions, size_t(classes), rows ? data + 4 * predictions : data + 4, rows ? 1 : width,
            rows ? width : 1};
}

std::vector<Candidate> decode_yolov8(const Tensor& output, int64_t classes, const Limits& limits) {
    const bool rows = by_rows(output, classes);
    const size_t width = size_t(output.shape[2]);
    std::vector<Candidate> out;
    for (const Pick& found : pick(yolov8_scores(output, classes), limits, rows)) {
        float box[4];
        for (size_t i = 0; i < 4; i++) {
            box[i] = output.values[rows ? i * width + found.prediction : found.prediction * width + i];
        }
        out.push_back({corners(box[0], box[1], box[2], box[3]), found.score, int64_t(found.class_id)});
    }
    return out;
}

std::vector<Candidate> decode_yolo26(const Tensor& output, const Limits& limits) {
    const size_t count = size_t(output.shape[1]);
    std::vector<Candidate> out;
    for (const Pick& found : pick({count, 1, output.values.data() + 4, 6, 1}, limits, false)) {
        const float* row = output.values.data() + found.prediction * 6;
        // a class that no integer holds is refused where classes are checked
        const double class_id = std::fabs(row[5]) < 1e9f ? std::nearbyint(double(row[5])) : -1.0;
        out.push_back({{row[0], row[1], row[2], row[3]}, found.score, int64_t(class_id)});
    }
    return out;
}

}  // namespace

std::vector<Candidate> decode(const Tensor& output, const HeadMatch& match, InputSize size,
                              int64_t classes, const Limits& limits) {
    const bool fits = output.shape.size() == 3 && output.shape[0] == 1 &&
                      int64_t(output.values.size()) == count_of(output.shape);
    if (!fits) throw bad_input("An output " + text_of(output.shape) + " is not one image's.");
    const bool wide = output.shape[2] >= 6;
    switch (match.head) {
    case Head::yolov5:
        if (wide) return decode_yolov5(output, limits);
        break;
    case Head::yolox:
        if (wide) return decode_yolox(output, size, limits);
        break;
    case Head::yolo26:
        if (output.shape[2] == 6) return decode_yolo26(output, limits);
        break;
    case Head::yolov8:
        if (classes >= 1 && (output.shape[1] == 4 + classes || output.shape[2] == 4 + classes)) {
            return decode_yolov8(output, classes, limits);
        }
        break;
    case Head::logits: break;
    }
    throw bad_input("An output " + text_of(output.shape) + " does not fit the head '" + name_of(match.head) + "'.");
}

std::pair<float, float> score_range(const Tensor& output, const HeadMatch& match, int64_t classes) {
    float low = 0.0f, high = 0.0f;
    auto see = [&](float value) {
        low = std::min(low, value);
        high = std::max(high, value);
    };
    const size_t width = size_t(output.shape.back());
    if (match.head == Head::yolov8) {
        const Scores scores = yolov8_scores(output, classes);
        for (size_t k = 0; k < scores.classes; k++) {
            for (size_t i = 0; i < scores.predictions; i++) see(scores.at(i, k));
        }
    } else if (match.head == Head::yolo26) {
        for (size_t i = 4; i < output.values.size(); i += width) see(output.values[i]);
    } else if (match.head != Head::logits) {
        for (size_t i = 0; i < output.values.size(); i++) {
            if (i % width >= 4) see(output.values[i]);
        }
    }
    return {low, high};
}

}  // namespace edgekit
