// A small test runner: TEST(name) { CHECK(condition); } and a main that runs them all.
#pragma once

#include <cstdio>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#include "error.h"

namespace edgekit::test {

struct Case {
    const char* name;
    void (*body)();
};

inline std::vector<Case>& cases() {
    static std::vector<Case> all;
    return all;
}

inline int& failures() {
    static int count = 0;
    return count;
}

struct Registration {
    Registration(const char* name, void (*body)()) { cases().push_back({name, body}); }
};

inline void fail(const char* file, int line, const std::string& what) {
    failures()++;
    std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
}

// The message of the Error that the call throws; anything else is a failure.
inline std::string error_of(const std::function<void()>& call) {
    try {
        call();
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

}  // namespace edgekit::test

#define TEST(name)                                                                      \
    static void test_##name();                                                          \
    static const edgekit::test::Registration registration_##name(#name, test_##name);   \
    static void test_##name()

#define CHECK(condition)                                                                \
    do {                                                                                \
        if (!(condition)) edgekit::test::fail(__FILE__, __LINE__, "not true: " #condition); \
    } while (false)

// The call must throw an Error whose message holds `words`.
#define REFUSED(call, words)                                                            \
    do {                                                                                \
        const std::string message = edgekit::test::error_of([&] { (void)(call); });     \
        if (message.empty()) edgekit::test::fail(__FILE__, __LINE__, "not refused: " #call); \
        else if (message.find(words) == std::string::npos)                              \
            edgekit::test::fail(__FILE__, __LINE__, "another message: " + message);     \
    } while (false)
