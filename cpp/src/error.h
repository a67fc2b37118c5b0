// The one way in which this program fails on purpose: a message, a next step and an exit code.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace edgekit {

// The exit codes of every edgekit program that this one can answer with.
enum class Exit : int {
    ok = 0,
    bug = 1,
    usage = 2,
    not_possible = 4,
    run_failed = 5,
    latency_missed = 7,
    bad_input = 8,
    verification_failed = 9,
    no_space = 11,
};

class Error : public std::runtime_error {
public:
    Error(Exit code, const std::string& message, std::string hint = "")
        : std::runtime_error(message), code_(code), hint_(std::move(hint)) {}

    Exit code() const { return code_; }
    const std::string& hint() const { return hint_; }

private:
    Exit code_;
    std::string hint_;
};

inline Error bad_input(const std::string& message, std::string hint = "") {
    return Error(Exit::bad_input, message, std::move(hint));
}

inline Error usage_error(const std::string& message, std::string hint = "") {
    return Error(Exit::usage, message, std::move(hint));
}

inline Error not_possible(const std::string& message, std::string hint = "") {
    return Error(Exit::not_possible, message, std::move(hint));
}

}  // namespace edgekit
