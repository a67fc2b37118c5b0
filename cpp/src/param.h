// ncnn's .param, read and checked before ncnn sees it.
//
//     7767517
//     LAYERS BLOBS
//     TYPE NAME N_INPUTS N_OUTPUTS input… output… id=value…
//
// The same checks as edgekit/formats/ncnn_param.py: counts that fit, blobs that something before makes
// and that are made once, values that are values. Source of the format: ncnn 1.0.20261020, src/net.cpp
// (Net::load_param) and src/paramdict.cpp.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace edgekit {

struct ParamLayer {
    std::string type;
    std::string name;
    std::vector<std::string> inputs;
    std::vector<std::string> outputs;
    std::map<int, std::string> params;  // id to the text of its value; arrays under their plain id

    bool has(int key) const { return params.count(key) > 0; }
    // The whole number `key`. Throws Error (bad input) when its value is something else.
    int64_t integer(int key, int64_t otherwise = 0) const;
    // The number `key`.
    double number(int key, double otherwise = 0.0) const;
    // The array `key`, empty where there is none.
    std::vector<double> numbers(int key) const;
    // The array `key` of whole numbers of 32 bits.
    std::vector<int64_t> integers(int key) const;
};

struct ParamGraph {
    std::vector<ParamLayer> layers;

    std::vector<std::string> blobs() const;
    // Blobs that are fed: what the Input layers make.
    std::vector<std::string> inputs() const;
};

// Parses the text; `what` names it in messages. Throws Error (bad input) with the line.
ParamGraph parse_param(std::string_view text, const std::string& what);

}  // namespace edgekit
