// JSON, .npy, SHA-256 and the command line.
#include <cmath>
#include <cstring>

#include "check.h"
#include "json.h"
#include "npy.h"
#include "options.h"
#include "sha256.h"

using namespace edgekit;

namespace {
Json parse(const std::string& text) { return Json::parse(text, "text"); }
}  // namespace

TEST(formats_json_values) {
    const Json value = parse(R"( {"a": [1, -2.5e3, true, false, null], "b": {"c": "x\n\u00e9\ud83d\ude00"}} )");
    const std::vector<Json>& items = value.find("a")->items();
    CHECK(items.size() == 5);
    CHECK(items[0].is_integer() && items[0].integer() == 1);
    CHECK(items[1].is_number() && items[1].number() == -2500.0);
    CHECK(items[2].boolean() && !items[3].boolean() && items[4].is_null());
    CHECK(value.find("b")->find("c")->text() == "x\n\xc3\xa9\xf0\x9f\x98\x80");
    CHECK(value.find("nothing") == nullptr);
    CHECK(parse("9223372036854775807").integer() == INT64_MAX);
    CHECK(parse("9223372036854775808").kind() == Json::Kind::real);
    CHECK(parse("1e-400").number() == 0.0);
    CHECK(parse("0").integer() == 0 && parse("-0.5").number() == -0.5);
}

TEST(formats_json_refuses) {
    for (const char* text :
         {"", "{", "[1,]", "{\"a\":1,}", "{\"a\" 1}", "{a:1}", "01", "+1", "1.", ".5", "1e", "NaN", "Infinity",
          "-", "tru", "\"", "\"\x01\"", "\"\\x\"", "\"\\u12\"", "\"\\ud800\"", "\"\\udc00\"", "\"\xff\"",
          "\"\xc0\xaf\"", "\"\xed\xa0\x80\"", "1 2", "[1 2]", "1e999", "'a'"}) {
        REFUSED(parse(text), "is not valid JSON");
    }
    REFUSED(parse("{\"a\": 1, \"a\": 2}"), "stands twice");
    REFUSED(parse(std::string(100, '[') + std::string(100, ']')), "nested too deeply");
    REFUSED(parse("{\n  \"a\": 1,\n  b"), "line 3, column 3");
    CHECK(parse(std::string(60, '[') + std::string(60, ']')).is_array());
}

TEST(formats_json_writer) {
    JsonWriter json;
    json.begin_object().field("text", "a\"\\\n\x7f\xff").field("flag", true).field("number", 0.1);
    json.field("float", 0.1f).field("whole", int64_t(-7)).field("nan", std::nan(""));
    json.key("empty").begin_array().end_array();
    json.key("list").begin_array().value(1).null().end_array().end_object();
    const Json back = parse(json.text());
    CHECK(back.find("text")->text() == "a\"\\\n\x7f\xef\xbf\xbd");
    CHECK(back.find("flag")->boolean());
    CHECK(back.find("number")->number() == 0.1);
    CHECK(float(back.find("float")->number()) == 0.1f);
    CHECK(back.find("whole")->integer() == -7);
    CHECK(back.find("nan") == nullptr);
    CHECK(back.find("empty")->items().empty() && back.find("list")->items().size() == 2);
}

TEST(formats_sha256) {
    // NIST's examples, and every way to cut a message
    CHECK(sha256_hex("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(sha256_hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
          "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    CHECK(sha256_hex(std::string(1'000'000, 'a')) ==
          "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    for (size_t size = 0; size < 200; size++) {
        const std::string text(size, 'x');
        Sha256 pieces;
        for (size_t at = 0; at < size; at += 7) pieces.add(text.data() + at, std::min<size_t>(7, size - at));
        CHECK(pieces.hex() == sha256_hex(text));
    }
}

TEST(formats_npy) {
    Tensor tensor;
    tensor.shape = {2, 3};
    tensor.values = {1, -2, 3.5f, 0, 1e-30f, 6};
    const std::string bytes = npy_bytes(tensor);
    CHECK(bytes.size() % 64 == 24 && bytes.substr(10, 20) == "{'descr': '<f4', 'fo");
    const Tensor back = read_npy(bytes, "file");
    CHECK(back.shape == tensor.shape && back.values == tensor.values);
    tensor.shape = {6};
    CHECK(read_npy(npy_bytes(tensor), "file").shape == Shape{6});
    CHECK(is_npy(bytes) && !is_npy("1234567890"));

    auto with = [&](const std::string& from, const std::string& to) {
        std::string out = bytes;
        return out.replace(out.find(from), from.size(), to);
    };
    REFUSED(read_npy(bytes.substr(0, bytes.size() - 1), "file"), "does not hold the [2, 3]");
    REFUSED(read_npy(bytes + "x", "file"), "does not hold");
    REFUSED(read_npy(with("False", "True "), "file"), "not a .npy");
    REFUSED(read_npy(with("<f4", ">f4"), "file"), "'>f4'");
    REFUSED(read_npy(with("(2, 3)", "(2, x)"), "file"), "not a .npy");
    REFUSED(read_npy(with("(2, 3), }", "(4294967296, 4294967296), }"), "file"), "not a .npy");
    for (size_t size = 0; size < 80; size++) REFUSED(read_npy(bytes.substr(0, size), "file"), "");
    // float16: 1, -2, the smallest subnormal, the largest value
    const std::string half = with("<f4", "<f2").substr(0, bytes.size() - 24) +
                             std::string("\x00\x3c\x00\xc0\x01\x00\xff\x7b\x00\x00\x00\x80", 12);
    const Tensor halves = read_npy(half, "file");
    CHECK(halves.values[0] == 1.0f && halves.values[1] == -2.0f && halves.values[3] == 65504.0f);
    CHECK(halves.values[2] == std::ldexp(1.0f, -24));
}

TEST(formats_options) {
    const Options options = parse_options({"b", "--bench", "--threads=4", "--runs", "7", "--max-p99-ms", "2.5"});
    CHECK(options.bundle == "b" && options.job == Job::bench && options.threads == 4);
    CHECK(options.runs == 7 && options.max_p99_ms == 2.5 && !options.warmup);
    const Options images = parse_options({"b", "x.jpg", "--score-threshold", "0.5", "--", "-odd.png"});
    CHECK(images.images.size() == 2 && images.images[1] == "-odd.png" && images.rule.limits.conf == 0.5f);
    CHECK(parse_options({"--help"}).job == Job::help && parse_options({"x", "--version"}).job == Job::version);
    REFUSED(parse_options({}), "bundle is missing");
    REFUSED(parse_options({"b"}), "no image was given");
    REFUSED(parse_options({"b", "--sef-test"}), "Unknown option '--sef-test'");
    REFUSED(parse_options({"b", "--threads"}), "needs a value");
    REFUSED(parse_options({"b", "--bench", "--threads", "0"}), "from 1 to 256");
    REFUSED(parse_options({"b", "--bench", "--threads", "4x"}), "from 1 to 256");
    REFUSED(parse_options({"b", "--bench", "--golden"}), "exclude each other");
    REFUSED(parse_options({"b", "--bench", "x.jpg"}), "takes no images");
    REFUSED(parse_options({"b", "--golden=1"}), "takes no value");
    REFUSED(parse_options({"b", "x", "--runs", "3"}), "go with --bench");
    REFUSED(parse_options({"b", "--self-test", "--bf16"}), "as it was exported");
    REFUSED(parse_options({"b", "x", "--fp16", "--bf16"}), "exclude each other");
    REFUSED(parse_options({"b", "x", "--head", "yolo99"}), "Unknown head");
    REFUSED(parse_options({"b", "x", "--nms-iou", "nan"}), "from 0");
}
