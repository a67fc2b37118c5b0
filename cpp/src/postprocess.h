// From candidates to answers: suppression, boxes in source pixels, class probabilities, and whether the
// candidates can be true at all.
#pragma once

#include <string>
#include <vector>

#include "heads.h"
#include "preprocess.h"

namespace edgekit {

// The settings that detections depend on.
struct Suppression {
    Limits limits;
    float iou = 0.65f;
    size_t max_det = 300;
};

// Indices of the kept candidates, best first: class-wise greedy suppression. Candidates are taken by
// falling score (of equal ones the earlier first); one is kept unless a kept one of its class overlaps
// it by more than `iou`; the first `max_det` kept are the answer.
std::vector<size_t> nms(const std::vector<Candidate>& found, const Suppression& rule);

// Candidates to detections, best first, with boxes in source pixels, clipped to the image. Heads that
// suppress inside the model are only sorted and cut.
std::vector<Candidate> suppress(const std::vector<Candidate>& found, const HeadMatch& match,
                                const Placement& placement, const Suppression& rule);

// Probabilities that sum to 1: softmax, unless the values are that already.
std::vector<float> probabilities(const std::vector<float>& logits);

// The `count` largest values' indices, best first; of equal ones the lower first.
std::vector<size_t> ranked(const std::vector<float>& values, size_t count);

// Watches the answers of one run. Throws Error (bad input) on what no right decoding gives.
class Plausibility {
public:
    Plausibility(const HeadMatch& match, InputSize size, int64_t classes)
        : match_(match), size_(size), classes_(classes) {}

    void see(const Tensor& output, const std::vector<Candidate>& found, const std::string& image);

private:
    const HeadMatch match_;
    const InputSize size_;
    const int64_t classes_;
    int64_t candidates_ = 0;
    int64_t outside_ = 0;
};

// Throws Error (bad input) when a value is not finite, saying where the first one is.
void check_finite(const Tensor& output, const std::string& name, const std::string& image);

}  // namespace edgekit
