#include "heads.h"

#include <algorithm>
#include <set>

#include "error.h"
#include "strides.h"

namespace edgekit {

namespace {

constexpr int64_t kUnknown = 0;
constexpr int64_t kEndToEndLimit = 2000;
constexpr Head kHeads[] = {Head::yolov5, Head::yolov8, Head::yolo26, Head::yolox, Head::logits};

std::set<int64_t> cell_counts(InputSize size, int per_cell) {
    std::set<int64_t> out;
    for (const std::vector<int>& strides : stride_sets()) out.insert(per_cell * cells(size, strides));
    return out;
}

// The number of classes of an output of `shape` under the head, kUnknown where the shape does not say,
// -1 where it does not fit; with `exact` the number of predictions must fit the input's size as well.
int64_t classes_of(Head head, const Shape& shape, InputSize size, bool exact) {
    if (head == Head::logits) {
        const bool flat = shape.size() == 2;
        const bool map = shape.size() == 4 && shape[2] == 1 && shape[3] == 1;
        return (flat || map) && shape[1] >= 2 ? shape[1] : -1;
    }
    if (shape.size() != 3) return -1;
    const std::set<int64_t> single = cell_counts(size, 1), anchored = cell_counts(size, 3);
    switch (head) {
    case Head::yolov5:
        if (shape[2] < 6 || (exact && anchored.count(shape[1]) == 0)) return -1;
        return shape[2] - 5;
    case Head::yolox:
        if (shape[2] < 6 || single.count(shape[1]) == 0) return -1;
        return shape[2] - 5;
    case Head::yolov8:
        if (exact) {
            if (single.count(shape[2]) && shape[1] >= 5) return shape[1] - 4;
            return single.count(shape[1]) && shape[2] >= 5 ? shape[2] - 4 : -1;
        }
        return std::min(shape[1], shape[2]) > 4 ? std::min(shape[1], shape[2]) - 4 : -1;
    case Head::yolo26:
        if (shape[2] != 6) return -1;
        if (exact && (single.count(shape[1]) || anchored.count(shape[1]) || shape[1] > kEndToEndLimit)) {
            return -1;
        }
        return kUnknown;
    case Head::logits: break;
    }
    return -1;
}

std::string task_of(Head head) {
    return head == Head::logits ? "classify" : "detect";
}

std::vector<HeadMatch> matches(const std::vector<Shape>& shapes, InputSize size, const std::string& task,
                               bool exact) {
    std::vector<HeadMatch> found;
    for (const Head head : kHeads) {
        if (!task.empty() && task_of(head) != task) continue;
        for (size_t i = 0; i < shapes.size(); i++) {
            // where only the classes are left, a batch axis is put in front
            Shape shape = shapes[i];
            if (shape.size() == 1) shape.insert(shape.begin(), 1);
            const int64_t classes = classes_of(head, shape, size, exact);
            if (classes >= 0) found.push_back({head, i, classes});
        }
    }
    return found;
}

// Those with the right number of classes; a shape that proves it beats one that is silent. A classifier
// may have more outputs than the data has classes, so logits agree with any number.
std::vector<HeadMatch> agreeing(const std::vector<HeadMatch>& found, int64_t classes) {
    if (classes == 0) return found;
    std::vector<HeadMatch> proved, silent;
    for (const HeadMatch& match : found) {
        if (match.classes == classes) proved.push_back(match);
        if (match.classes == kUnknown || match.classifies()) silent.push_back(match);
    }
    return proved.empty() ? silent : proved;
}

}  // namespace

const char* name_of(Head head) {
    switch (head) {
    case Head::yolov5: return "yolov5";
    case Head::yolov8: return "yolov8";
    case Head::yolo26: return "yolo26";
    case Head::yolox: return "yolox";
    case Head::logits: return "logits";
    }
    return "";
}

Head head_named(const std::string& name) {
    for (const Head head : kHeads) {
        if (name == name_of(head)) return head;
    }
    throw usage_error("Unknown head '" + name + "'.", "Known: logits, yolo26, yolov5, yolov8, yolox");
}

HeadMatch choose_head(const std::vector<Shape>& shapes, InputSize size, const std::string& name,
                      int64_t classes, const std::string& task) {
    std::string outputs;
    for (const Shape& shape : shapes) outputs += (outputs.empty() ? "" : ", ") + text_of(shape);
    std::vector<HeadMatch> found;
    if (!name.empty()) {
        const Head head = head_named(name);
        if (!task.empty() && task_of(head) != task) {
            throw bad_input("The head '" + name + "' does not serve the task " + task + ".");
        }
        for (const bool exact : {true, false}) {
            for (const HeadMatch& match : matches(shapes, size, "", exact)) {
                if (match.head == head) found.push_back(match);
            }
            if (!found.empty()) break;
        }
        if (found.empty()) {
            throw bad_input("The outputs " + outputs + " do not have the layout of the head '" + name + "'.");
        }
    } else {
        found = matches(shapes, size, task, true);
    }
    const std::vector<HeadMatch> fitting = agreeing(found, classes);
    std::set<std::string> names;
    for (const HeadMatch& match : fitting) names.insert(name_of(match.head));
    if (names.size() == 1) return fitting[0];
    if (!fitting.empty()) {
        std::string listed;
        for (const std::string& each : names) listed += (listed.empty() ? "" : " and ") + each;
        throw bad_input("The outputs " + outputs + " fit the heads " + listed + ".", "Choose one with --head.");
    }
    if (!found.empty()) {
        throw bad_input("The outputs " + outputs + " look like the head '" + name_of(found[0].head) +
                            "' with " + std::to_string(found[0].classes) + " classes, but there are " +
                            std::to_string(classes) + " names.",
                        "Give another --head.");
    }
    throw bad_input("The outputs " + outputs + " fit no head" + (task.empty() ? "" : " for the task " + task) + ".",
                    "Choose one with --head, or give --raw to leave them as they are.");
}

}  // namespace edgekit
