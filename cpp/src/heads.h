// Model heads, told apart by structure, and their decoders: the raw output of one image becomes
// candidate boxes in pixels of the model's input, before suppression.
//
// The layouts are those of edgekit/metrics/heads.py (yolov5, yolov8, yolo26, yolox, logits), the
// arithmetic that of edgekit/metrics/decoders.py: the same outputs give the same candidates in the same
// order. One exception: YOLOX's exp comes from the C library here and from numpy there, which may differ
// in the last bit.
#pragma once

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "tensor.h"

namespace edgekit {

struct Candidate {
    std::array<float, 4> box{};  // x1, y1, x2, y2
    float score = 0.0f;
    int64_t class_id = 0;
};

// Which candidates a decoder gives: scores above `conf`, the `count` best at most. With `multi_label` a
// prediction counts once for every class above `conf`, else for its best only.
struct Limits {
    float conf = 0.25f;
    size_t count = 10'000;
    bool multi_label = false;
};

struct InputSize {
    int height = 0;
    int width = 0;
};

enum class Head { yolov5, yolov8, yolo26, yolox, logits };

const char* name_of(Head head);
// Throws Error (usage) for an unknown name.
Head head_named(const std::string& name);

// A head, the output it decodes, and the number of classes (0 where the shape does not say).
struct HeadMatch {
    Head head = Head::logits;
    size_t output = 0;
    int64_t classes = 0;

    bool classifies() const { return head == Head::logits; }
};

// The head called `name`, or the one that the shapes show when it is empty. `shapes` include the batch
// axis; `classes` and `task` are of the manifest, 0 and empty where it names none. Throws Error (bad
// input) when nothing fits, more than one head fits, or the number of classes differs.
HeadMatch choose_head(const std::vector<Shape>& shapes, InputSize size, const std::string& name,
                      int64_t classes, const std::string& task);

// The candidates of one image. Throws Error (bad input) when the output does not fit the head.
std::vector<Candidate> decode(const Tensor& output, const HeadMatch& match, InputSize size,
                              int64_t classes, const Limits& limits);

// The part of a head's output that must lie in 0..1: smallest and largest value; 0 and 0 for logits.
std::pair<float, float> score_range(const Tensor& output, const HeadMatch& match, int64_t classes);

}  // namespace edgekit
