// What is checked of a model before ncnn sees it: manifest, sidecar, graph, weights and shapes.
#include <cmath>
#include <cstring>

#include "check.h"
#include "manifest.h"
#include "model.h"
#include "shapes.h"
#include "weights.h"

using namespace edgekit;

namespace {

const char* const kParam =
    "7767517\n"
    "5 6\n"
    "Input            in0   0 1 in0\n"
    "Convolution      conv  1 1 in0 a 0=4 1=3 3=2 4=1 5=1 6=108 9=1\n"
    "Split            split 1 2 a b c\n"
    "Slice            slice 1 1 b d -23300=1,2 1=0\n"
    "BinaryOp         add   2 1 c d out0 0=0\n";

const char* const kSmall =
    "7767517\n"
    "2 2\n"
    "Input            in0   0 1 in0\n"
    "Convolution      conv  1 1 in0 out0 0=4 1=3 3=2 4=1 5=1 6=108 9=1\n";

std::string sidecar_text(const std::string& out_shape = "[1, 4, 4, 4]", const std::string& options = "") {
    const std::string hash(64, 'a');
    return R"({"format": "edgekit-ncnn", "schema": 1, "precision": "fp32",
        "param": {"file": "m.param", "size": 1, "sha256": ")" + hash + R"("},
        "bin": {"file": "m.bin", "size": 1, "sha256": ")" + hash + R"("},
        "inputs": [{"blob": "in0", "name": "images", "shape": [1, 3, 8, 8]}],
        "outputs": [{"blob": "out0", "name": "output0", "shape": )" + out_shape + R"(}],
        "options": {)" + options + R"(}, "versions": {"ncnn": "1.0.20261020"}})";
}

std::string weights_text(int count = 108, int biases = 4) {
    std::string out(4, '\0');
    for (int i = 0; i < count + biases; i++) {
        const float value = i < count ? 0.01f * float(i % 7) : 1.0f;
        out.append(reinterpret_cast<const char*>(&value), 4);
    }
    return out;
}

ModelFiles files_of(const std::string& param = kSmall, const std::string& sidecar = sidecar_text(),
                    const std::string& bin = weights_text()) {
    return {sidecar, param, bin, "model.json"};
}

// A graph of an input [3, 8, 8] and one layer.
void shapes_with(const std::string& layer, const std::string& out_shape = "[1, 1]") {
    const ParamGraph graph = parse_param("7767517\n2 2\nInput in0 0 1 in0\n" + layer + "\n", "param");
    check_shapes(graph, parse_sidecar(sidecar_text(out_shape), "model.json"), "model.json");
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
    return text.replace(text.find(from), from.size(), to);
}

}  // namespace

TEST(models_param) {
    const ParamGraph graph = parse_param(kParam, "param");
    CHECK(graph.layers.size() == 5 && graph.inputs() == std::vector<std::string>{"in0"});
    CHECK(graph.layers[1].integer(6) == 108 && graph.layers[1].integer(99, 7) == 7);
    CHECK(graph.layers[3].integers(0) == std::vector<int64_t>{2});
    REFUSED(graph.layers[3].integer(0), "not an integer");
    const std::string text = kParam;
    REFUSED(parse_param("", "param"), "first line is not 7767517");
    REFUSED(parse_param(replaced(text, "7767517", "7767518"), "param"), "first line");
    REFUSED(parse_param(replaced(text, "5 6", "6 6"), "param"), "another number of layers");
    REFUSED(parse_param(replaced(text, "5 6", "5 7"), "param"), "another number of blobs");
    REFUSED(parse_param(replaced(text, "5 6", "99999999999 6"), "param"), "LAYERS BLOBS");
    REFUSED(parse_param(replaced(text, "5 6", "5 -6"), "param"), "cannot be");
    REFUSED(parse_param(replaced(text, "1 1 in0 a", "1 1 nope a"), "param"), "which nothing has made");
    REFUSED(parse_param(replaced(text, "1 2 a b c", "1 2 a b b"), "param"), "a second time");
    REFUSED(parse_param(replaced(text, "0=4", "0="), "param"), "no usable value");
    REFUSED(parse_param(replaced(text, "0=4", "77=4"), "param"), "cannot be, or stands twice");
    REFUSED(parse_param(replaced(text, "0=4", "1=4"), "param"), "cannot be, or stands twice");
    REFUSED(parse_param(replaced(text, "-23300=1,2", "-23300=3,2"), "param"), "another length");
    REFUSED(parse_param(replaced(text, "-23300=1,2", "-23300=1,x"), "param"), "not an array");
    REFUSED(parse_param(replaced(text, "conv ", "c\xc3\xa9 "), "param"), "not ASCII");
    for (size_t size = 0; size + 7 < text.size(); size++) {
        // a cut can fall between two parameters of the last layer, and is then no error of the text's
        if (size < text.find("add")) REFUSED(parse_param(text.substr(0, size), "param"), "");
    }
    CHECK(parse_param(replaced(text, "\n5 6", "\r\n5 6\r"), "param").layers.size() == 5);
}

TEST(models_sidecar) {
    const Sidecar sidecar = parse_sidecar(sidecar_text("[1, 4, 4, 4]", "\"use_int8_inference\": false"), "m");
    CHECK(sidecar.inputs[0].inner() == (Shape{3, 8, 8}) && !sidecar.option("use_int8_inference", true));
    const std::string text = sidecar_text();
    for (const auto& change : std::vector<std::pair<std::string, std::string>>{
             {"edgekit-ncnn", "other"}, {"\"schema\": 1", "\"schema\": 2"}, {"fp32", "fp64"},
             {"m.param", "../m.param"}, {"m.param", "/etc/passwd"}, {"[1, 3, 8, 8]", "[2, 3, 8, 8]"},
             {"[1, 3, 8, 8]", "[1, 3, 0, 8]"}, {"[1, 3, 8, 8]", "[1, 3, 1000000, 1000000]"}, {"[1, 3, 8, 8]", "[]"},
             {"\"blob\": \"in0\", ", ""}, {"\"options\": {}", "\"options\": {\"rm\": true}"}, {"aaaa", "AAAA"}}) {
        REFUSED(parse_sidecar(replaced(text, change.first, change.second), "model.json"), "model.json");
    }
}

TEST(models_weights) {
    const ParamGraph graph = parse_param(kSmall, "param");
    check_weights(weights_text(), graph, "bin");
    REFUSED(check_weights("", graph, "bin"), "ends within the weight of layer 'conv'");
    REFUSED(check_weights(weights_text(107), graph, "bin"), "ends within the bias");
    REFUSED(check_weights(weights_text(109), graph, "bin"), "left over");
    std::string marked = weights_text();
    marked[0] = 1;
    REFUSED(check_weights(marked, graph, "bin"), "unknown mark");
    std::string broken = weights_text();
    const float nan = NAN;
    std::memcpy(&broken[broken.size() - 4], &nan, 4);
    REFUSED(check_weights(broken, graph, "bin"), "not finite");
    const ParamGraph huge = parse_param(replaced(kSmall, "6=108", "6=2147483647"), "param");
    REFUSED(check_weights(weights_text(), huge, "bin"), "ends within");
    const ParamGraph negative = parse_param(replaced(kSmall, "6=108", "6=-108"), "param");
    REFUSED(check_weights(weights_text(), negative, "bin"), "a weight of -108");
}

TEST(models_shapes) {
    const Sidecar sidecar = parse_sidecar(sidecar_text(), "model.json");
    const auto shapes = check_shapes(parse_param(kSmall, "param"), sidecar, "model.json");
    CHECK(*shapes.at("out0") == (Shape{4, 4, 4}));
    shapes_with("Pooling p 1 1 in0 out0 0=0 1=2 2=2", "[1, 3, 4, 4]");
    shapes_with("Pooling p 1 1 in0 out0 0=0 1=3 2=2", "[1, 3, 4, 4]");       // full padding
    shapes_with("Pooling p 1 1 in0 out0 0=0 1=3 2=2 5=1", "[1, 3, 3, 3]");   // valid
    shapes_with("Pooling p 1 1 in0 out0 0=1 4=1", "[1, 3]");
    shapes_with("Reshape r 1 1 in0 out0 0=-1 1=3", "[1, 3, 64]");
    shapes_with("Flatten f 1 1 in0 out0", "[1, 192]");
    shapes_with("Permute p 1 1 in0 out0 0=3", "[1, 8, 8, 3]");
    shapes_with("Interp i 1 1 in0 out0 0=1 1=2.0 2=2.0", "[1, 3, 16, 16]");
    shapes_with("Padding p 1 1 in0 out0 0=1 1=1 7=2 8=3", "[1, 8, 10, 8]");
    shapes_with("Slice s 1 1 in0 out0 -23300=1,2 1=1", "[1, 3, 2, 8]");
    REFUSED(shapes_with("Slice s 1 1 in0 out0 -23300=1,9 1=1"), "cuts more than there is");
    REFUSED(shapes_with("Slice s 1 1 in0 out0 -23300=1,-3 1=1"), "cuts more than there is");
    REFUSED(shapes_with("Slice s 1 1 in0 out0 -23300=1,2 1=3"), "works on axis 3");
    REFUSED(shapes_with("Slice s 1 1 in0 out0"), "too few slices");
    REFUSED(shapes_with("Convolution c 1 1 in0 out0 0=4 1=3 6=36"), "36 weights where its input needs 108");
    REFUSED(shapes_with("Convolution c 1 1 in0 out0 0=4 1=9 6=972"), "larger than its input");
    REFUSED(shapes_with("Convolution c 1 1 in0 out0 0=4 1=0 6=108"), "unusable value 1=0");
    REFUSED(shapes_with("Convolution c 1 1 in0 out0 0=4 1=3 3=0 6=108"), "unusable value 3=0");
    REFUSED(shapes_with("Convolution c 1 1 in0 out0 0=4 1=3 6=108 9=3"), "unusable activation");
    REFUSED(shapes_with("Convolution c 1 1 in0 out0 0=4 1=3 6=108 8=7"), "8=7");
    REFUSED(shapes_with("ConvolutionDepthWise c 1 1 in0 out0 0=4 1=3 6=36 7=2"), "splits 3 channels into 2");
    REFUSED(shapes_with("Reshape r 1 1 in0 out0 0=5"), "makes [5] of [3, 8, 8]");
    REFUSED(shapes_with("Reshape r 1 1 in0 out0 0=-1 1=-1"), "two sizes open");
    REFUSED(shapes_with("Permute p 1 1 in0 out0 0=6"), "unknown order");
    REFUSED(shapes_with("Softmax s 1 1 in0 out0 0=3"), "works on axis 3");
    REFUSED(shapes_with("BinaryOp b 1 1 in0 out0 0=0"), "which it cannot");
    REFUSED(shapes_with("BatchNorm b 1 1 in0 out0 0=4"), "4 channels, its input 3");
    REFUSED(shapes_with("Interp i 1 1 in0 out0 0=1 1=0.01 2=0.01"), "makes a blob of [3, 0, 0]");
    REFUSED(shapes_with("Interp i 1 1 in0 out0 0=1 3=900000 4=900000"), "makes a blob");
    REFUSED(shapes_with("Flatten f 1 1 in0 out0", "[1, 3]"), "becomes [192], not [3]");
    REFUSED(shapes_with("Flatten f 1 1 in0 other"), "no blob 'out0'");
    // a blob serves one layer only
    const std::string twice = "7767517\n3 3\nInput in0 0 1 in0\nReLU a 1 1 in0 a\nReLU b 1 1 in0 out0\n";
    REFUSED(check_shapes(parse_param(twice, "p"), sidecar, "model.json"), "used up");
    const std::string other = replaced(kSmall, "Input            in0   0 1 in0", "Input            in0   0 1 in1");
    REFUSED(check_shapes(parse_param(replaced(other, "1 1 in0", "1 1 in1"), "p"), sidecar, "m"), "inputs are not those");
}

TEST(models_open_and_run) {
    Model model(files_of(), RunSettings());
    Tensor input;
    input.shape = {1, 3, 8, 8};
    input.values.assign(192, 0.0f);
    const std::vector<Tensor> outputs = model.run(input);
    CHECK(outputs.size() == 1 && outputs[0].shape == (Shape{1, 4, 4, 4}));
    for (const float value : outputs[0].values) CHECK(value == 1.0f);  // the bias
    // one weight a channel, on one pixel
    input.values[9] = 1.0f;  // channel 0, row 1, column 1: the first window's (2, 2)
    CHECK(std::fabs(model.run(input)[0].values[0] - (1.0f + 0.01f * (8 % 7))) < 1e-6f);
    input.shape = {1, 3, 8, 9};
    REFUSED(model.run(input), "ncnn models are made for one size");
    REFUSED(Model(files_of(replaced(kSmall, "Convolution", "Konvolution")), RunSettings()), "no layer 'Konvolution'");
    REFUSED(Model(files_of(kSmall, sidecar_text(), weights_text(100)), RunSettings()), "ends within");
    REFUSED(Model(files_of(kSmall, sidecar_text("[1, 4, 4, 5]")), RunSettings()), "becomes [4, 4, 4]");
    REFUSED(Model(files_of(kSmall, sidecar_text("[1, 4, 4, 4]", "\"use_magic\": true")), RunSettings()), "use_magic");
    RunSettings vulkan;
    vulkan.vulkan = true;
    if (!vulkan_compiled_in()) REFUSED(Model(files_of(), vulkan), "Vulkan is not compiled");
    RunSettings half;
    half.precision = "bf16";
    const Model other(files_of(), half);
    input.shape = {1, 3, 8, 8};
    CHECK(std::fabs(other.run(input)[0].values[0] - 1.01f) < 0.02f);
}

TEST(models_int8_needs_its_option) {
    // weight, bias, four weight scales and the input's
    std::string bin("\x38\x4b\x0d\x00", 4);
    bin += std::string(108, '\x01');
    const float ones[9] = {0, 0, 0, 0, 1, 1, 1, 1, 1};
    bin.append(reinterpret_cast<const char*>(ones), sizeof(ones));
    const std::string param = replaced(kSmall, "9=1", "8=2");
    const Model model(files_of(param, sidecar_text(), bin), RunSettings());
    Tensor input;
    input.shape = {1, 3, 8, 8};
    input.values.assign(192, 2.0f);
    CHECK(model.run(input)[0].values[5] == 54.0f);  // 27 products of 2
    REFUSED(Model(files_of(param, sidecar_text("[1, 4, 4, 4]", "\"use_int8_inference\": false"), bin), RunSettings()),
            "gives NaN");
}

TEST(models_paths) {
    for (const char* good : {"a", "a/b.bin", "golden/000/input.npy", "_x", "a+b-c_1.2"}) CHECK(path_problem(good).empty());
    for (const char* bad : {"", "/a", "a/", "a//b", "../a", "a/../b", "./a", "a\\b", "C:a", "-a", ".a", "a/.b", "a b", "a\n"}) {
        CHECK(!path_problem(bad).empty());
    }
    CHECK(!path_problem(std::string(201, 'a')).empty());
    REFUSED(read_manifest("/nonexistent-folder"), "is not a folder");
    for (const char* text : {"{}", "[]", "3", "{\"format\": \"edgekit-bundle\", \"schema\": 2}",
                             "{\"format\": \"edgekit-bundle\", \"schema\": 1}"}) {
        CHECK(!test::error_of([&] { parse_manifest(text, "folder"); }).empty());
    }
}
