// An ncnn model: opened after every check that can be made without ncnn, run with every code checked.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "param.h"
#include "sidecar.h"
#include "tensor.h"

namespace edgekit {

// How a model is run. `precision` "" keeps what the model was exported with; "fp16" and "bf16" hold
// weights and activations in 16 bits.
struct RunSettings {
    int threads = 1;
    int powersave = -1;  // -1 leaves the kernel's choice; 0 all cores, 1 little ones, 2 big ones
    bool light_mode = true;
    std::string precision;
    bool vulkan = false;
};

// The three files of a model, and what to call them in messages.
struct ModelFiles {
    std::string sidecar;
    std::string param;
    std::string bin;
    std::string where;
};

// The checks alone: sidecar, graph, weights and shapes fit each other. Throws Error.
struct CheckedModel {
    Sidecar sidecar;
    ParamGraph graph;
};
CheckedModel check_model(const ModelFiles& files);

class Model {
public:
    // Throws Error: bad input for files that do not fit, not possible for settings that this machine or
    // this build of ncnn does not have, run failed when ncnn refuses the model.
    Model(ModelFiles files, const RunSettings& settings);
    ~Model();
    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

    const Sidecar& sidecar() const;
    // Outputs in the model's order, float32 with a batch axis. Throws Error: bad input for another input
    // shape, run failed when ncnn does not compute an output. Not to be called by two threads at once.
    std::vector<Tensor> run(const Tensor& input) const;

private:
    struct State;
    std::unique_ptr<State> state_;
};

// Version of the ncnn that is linked in, as its Python wheel names it: "1.0.20261020".
std::string ncnn_version();
bool vulkan_compiled_in();

struct CoreCounts {
    int all = 0, big = 0, little = 0;
};
CoreCounts core_counts();

}  // namespace edgekit
