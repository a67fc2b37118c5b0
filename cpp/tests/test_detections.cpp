// Heads, decoders and suppression on outputs that are worked out by hand. That they agree with the
// Python package on real outputs is tested there (tests/integration/test_runner_*.py).
#include <cmath>

#include "check.h"
#include "golden.h"
#include "heads.h"
#include "postprocess.h"

using namespace edgekit;

namespace {

constexpr InputSize kSize{64, 64};  // 64 + 16 + 4 cells

Tensor zeros(const Shape& shape) {
    Tensor tensor;
    tensor.shape = shape;
    tensor.values.assign(size_t(count_of(shape)), 0.0f);
    return tensor;
}

Candidate candidate(float x1, float y1, float x2, float y2, float score, int64_t id) {
    Candidate out;
    out.box = {x1, y1, x2, y2};
    out.score = score;
    out.class_id = id;
    return out;
}

}  // namespace

TEST(detections_heads_by_shape) {
    CHECK(choose_head({{1, 7, 84}}, kSize, "", 3, "detect").head == Head::yolov8);
    CHECK(choose_head({{1, 84, 7}}, kSize, "", 3, "detect").head == Head::yolov8);
    CHECK(choose_head({{1, 84, 8}}, kSize, "", 3, "detect").head == Head::yolox);
    CHECK(choose_head({{1, 252, 8}}, kSize, "", 3, "detect").head == Head::yolov5);
    CHECK(choose_head({{1, 300, 6}}, kSize, "", 3, "detect").head == Head::yolo26);
    CHECK(choose_head({{1, 10}}, kSize, "", 10, "classify").head == Head::logits);
    CHECK(choose_head({{1, 10, 1, 1}}, kSize, "", 0, "").head == Head::logits);
    const HeadMatch second = choose_head({{1, 99, 99}, {1, 7, 84}}, kSize, "", 3, "");
    CHECK(second.output == 1 && second.classes == 3);
    REFUSED(choose_head({{1, 84, 8}}, kSize, "", 0, ""), "fit the heads");
    REFUSED(choose_head({{1, 7, 84}}, kSize, "", 5, "detect"), "5 names");
    REFUSED(choose_head({{1, 7, 83}}, kSize, "", 3, "detect"), "fit no head");
    REFUSED(choose_head({{1, 7, 84}}, kSize, "yolo26", 3, "detect"), "layout of the head");
    REFUSED(choose_head({{1, 7, 84}}, kSize, "logits", 3, "detect"), "does not serve");
    CHECK(choose_head({{1, 7, 50}}, kSize, "yolov8", 3, "detect").classes == 3);
}

TEST(detections_yolov8) {
    for (const bool turned : {false, true}) {
        Tensor output = zeros(turned ? Shape{1, 84, 7} : Shape{1, 7, 84});
        auto at = [&](size_t row, size_t i) -> float& { return output.values[turned ? i * 7 + row : row * 84 + i]; };
        at(0, 5) = 10, at(1, 5) = 20, at(2, 5) = 4, at(3, 5) = 6, at(5, 5) = 0.9f, at(6, 5) = 0.8f;
        at(4, 70) = 0.3f;
        const HeadMatch match = choose_head({output.shape}, kSize, "yolov8", 3, "detect");
        Limits limits;
        std::vector<Candidate> found = decode(output, match, kSize, 3, limits);
        CHECK(found.size() == 2);
        CHECK(found[0].class_id == 1 && found[0].score == 0.9f);
        CHECK((found[0].box == std::array<float, 4>{8, 17, 12, 23}));
        CHECK(found[1].class_id == 0);
        limits.multi_label = true;
        found = decode(output, match, kSize, 3, limits);
        CHECK(found.size() == 3);
        limits.count = 1;
        found = decode(output, match, kSize, 3, limits);
        CHECK(found.size() == 1 && found[0].score == 0.9f);
        CHECK(score_range(output, match, 3).second == 0.9f);
    }
}

TEST(detections_objectness) {
    Tensor output = zeros({1, 252, 8});
    float* row = output.values.data() + 9 * 8;
    const float values[] = {10, 20, 4, 6, 0.5f, 0.1f, 0.8f, 0.2f};
    std::copy(values, values + 8, row);
    const HeadMatch match = choose_head({output.shape}, kSize, "yolov5", 3, "detect");
    const std::vector<Candidate> found = decode(output, match, kSize, 3, Limits());
    CHECK(found.size() == 1 && found[0].class_id == 1 && found[0].score == 0.5f * 0.8f);
    // YOLOX: the tenth cell of the first map lies at x 1, y 1
    Tensor raw = zeros({1, 84, 8});
    std::copy(values, values + 8, raw.values.data() + 9 * 8);
    raw.values[9 * 8 + 2] = 0;
    raw.values[9 * 8 + 3] = 1000;
    const HeadMatch yolox = choose_head({raw.shape}, kSize, "yolox", 3, "detect");
    const std::vector<Candidate> decoded = decode(raw, yolox, kSize, 3, Limits());
    CHECK(decoded.size() == 1 && decoded[0].box[0] == (10 + 1) * 8 - 4 && decoded[0].box[2] == (10 + 1) * 8 + 4);
    CHECK(std::isfinite(decoded[0].box[3]));
}

TEST(detections_end_to_end) {
    Tensor output = zeros({1, 300, 6});
    const float rows[] = {1, 2, 30, 40, 0.6f, 2, 1, 2, 30, 40, 0.9f, 2, 5, 5, 9, 9, 0.1f, 0};
    std::copy(rows, rows + 18, output.values.data());
    const HeadMatch match = choose_head({output.shape}, kSize, "", 3, "detect");
    const std::vector<Candidate> found = decode(output, match, kSize, 3, Limits());
    Placement place;
    place.source_height = place.source_width = 64;
    const std::vector<Candidate> kept = suppress(found, match, place, Suppression());
    // suppressed inside the model: only sorted
    CHECK(kept.size() == 2 && kept[0].score == 0.9f && kept[1].class_id == 2);
}

TEST(detections_nms) {
    const std::vector<Candidate> found = {
        candidate(0, 0, 10, 10, 0.5f, 0), candidate(0, 0, 10, 9, 0.9f, 0), candidate(0, 0, 10, 10, 0.8f, 1),
        candidate(20, 20, 30, 30, 0.9f, 0), candidate(0, 4, 10, 13, 0.4f, 0)};
    Suppression rule;
    CHECK((nms(found, rule) == std::vector<size_t>{1, 3, 2, 4}));
    rule.iou = 1.0f;
    CHECK(nms(found, rule).size() == 5);
    rule.max_det = 2;
    CHECK((nms(found, rule) == std::vector<size_t>{1, 3}));
    rule.limits.count = 1;
    CHECK((nms(found, rule) == std::vector<size_t>{1}));
    CHECK(nms({}, rule).empty());
}

TEST(detections_to_source) {
    Placement place;
    place.scale_x = place.scale_y = 0.5;
    place.offset_x = 10;
    place.source_height = 50;
    place.source_width = 100;
    HeadMatch match;
    match.head = Head::yolov8;
    const auto kept = suppress({candidate(0, 10, 60, 40, 0.9f, 0)}, match, place, Suppression());
    CHECK((kept[0].box == std::array<float, 4>{0, 20, 100, 50}));
}

TEST(detections_classes) {
    const std::vector<float> found = probabilities({1, 2, 3});
    CHECK(std::fabs(found[0] + found[1] + found[2] - 1) < 1e-6 && found[2] > found[1]);
    CHECK((probabilities({0.25f, 0.75f}) == std::vector<float>{0.25f, 0.75f}));
    CHECK(probabilities({1000, 0})[0] == 1.0f);
    CHECK((ranked({0.1f, 0.5f, 0.5f, 0.2f}, 3) == std::vector<size_t>{1, 2, 3}));
}

TEST(detections_plausible) {
    Tensor output = zeros({1, 7, 84});
    const HeadMatch match = choose_head({output.shape}, kSize, "yolov8", 3, "detect");
    output.values[3] = NAN;
    REFUSED(check_finite(output, "output0", "a.png"), "not finite (on a.png, first at element 3)");
    output.values[3] = 0;
    Plausibility watch(match, kSize, 3);
    watch.see(output, {candidate(0, 0, 5, 5, 0.5f, 2)}, "a.png");
    REFUSED(watch.see(output, {candidate(0, 0, 5, 5, 0.5f, 3)}, "a.png"), "finds class 3");
    std::vector<Candidate> junk(30, candidate(1000, 1000, 1010, 1010, 0.5f, 0));
    REFUSED(watch.see(output, junk, "a.png"), "lie outside");
    output.values[4 * 84] = 7;
    REFUSED(watch.see(output, {}, "a.png"), "instead of 0 to 1");
}

TEST(detections_golden_blocks) {
    Golden golden;
    Block boxes, scores;
    boxes.name = "boxes", boxes.output = "out", boxes.axes = {{}, {{0, 1, 1}}};
    scores.name = "scores", scores.output = "out", scores.axes = {{}, {{1, 3, 1}}, {{0, 4, 2}}};
    golden.blocks = {boxes, scores};
    Tensor expected = zeros({1, 3, 4});
    for (size_t i = 0; i < 12; i++) expected.values[i] = i < 4 ? 100.0f : 0.5f;
    Tensor found = expected;
    found.values[4] = 0.25f;   // within the scores' block
    found.values[5] = 0.0f;    // between its steps
    GoldenMeter meter(golden, {"out"});
    meter.add("out", expected, found);
    const auto parities = meter.parities();
    CHECK(parities[0].max_rel_error == 0 && parities[1].max_rel_error == 0.5);
    CHECK(meter.problem({0.5, 0.9}).empty());
    CHECK(meter.problem({0.4, 0.9}).find("block 'scores' has max_rel_error 0.5") != std::string::npos);
    CHECK(meter.problem({0.5, 0.99}).find("cosine") != std::string::npos);
    found.shape = {1, 4, 3};
    REFUSED(meter.add("out", expected, found), "has the shape");
    found.shape = expected.shape;
    found.values[0] = INFINITY;
    REFUSED(meter.add("out", expected, found), "not finite");
    golden.blocks[0].axes = {{}, {{0, 9, 1}}};
    GoldenMeter wide(golden, {"out"});
    REFUSED(wide.add("out", expected, expected), "does not fit");
    REFUSED(GoldenMeter(golden, {}), "no golden output");
    // an output without blocks is compared whole
    GoldenMeter whole(Golden(), {"out"});
    whole.add("out", expected, expected);
    CHECK(whole.parities().size() == 1 && whole.problem({0, 1}).empty());
}
