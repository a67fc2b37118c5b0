#include "files.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>

#include "error.h"
#include "sha256.h"

namespace fs = std::filesystem;

namespace edgekit {

namespace {

struct Closer {
    void operator()(std::FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<std::FILE, Closer>;

File open_file(const std::string& path) {
    std::error_code code;
    const fs::file_status status = fs::status(path, code);
    if (status.type() == fs::file_type::not_found) throw bad_input(path + " does not exist.");
    // opening a pipe would wait for its writer
    if (!fs::is_regular_file(status)) throw bad_input(path + " is not a plain file.");
    File file(std::fopen(path.c_str(), "rb"));
    if (!file) throw bad_input(path + " cannot be read: " + std::strerror(errno) + ".");
    return file;
}

}  // namespace

std::string read_file(const std::string& path, uint64_t most) {
    const File file = open_file(path);
    std::error_code code;
    const uintmax_t size = fs::file_size(path, code);
    if (code) throw bad_input(path + " cannot be read: " + code.message() + ".");
    if (size > most) {
        throw bad_input(path + " has " + std::to_string(size) + " bytes; at most " +
                        std::to_string(most) + " are read.");
    }
    std::string data(size_t(size), '\0');
    if (std::fread(data.data(), 1, data.size(), file.get()) != data.size()) {
        throw bad_input(path + " cannot be read: it changed while being read, or the disk failed.");
    }
    return data;
}

std::string sha256_file(const std::string& path) {
    const File file = open_file(path);
    std::vector<char> piece(size_t(1) << 16);
    Sha256 sum;
    while (true) {
        const size_t got = std::fread(piece.data(), 1, piece.size(), file.get());
        sum.add(piece.data(), got);
        if (got < piece.size()) break;
    }
    if (std::ferror(file.get())) throw bad_input(path + " cannot be read: the disk failed.");
    return sum.hex();
}

void write_file(const std::string& path, std::string_view data) {
    const std::string temporary = path + ".part" + std::to_string(::getpid());
    auto fail = [&](const std::string& problem, int code) {
        std::remove(temporary.c_str());
        return Error(code == ENOSPC || code == EDQUOT ? Exit::no_space : Exit::bad_input,
                     path + " cannot be written: " + problem + ".",
                     "Choose another folder, or make room.");
    };
    File file(std::fopen(temporary.c_str(), "wb"));
    if (!file) throw fail(std::strerror(errno), errno);
    const bool done = std::fwrite(data.data(), 1, data.size(), file.get()) == data.size() &&
                      std::fflush(file.get()) == 0 && ::fsync(::fileno(file.get())) == 0;
    const int code = errno;
    file.reset();
    if (!done) throw fail(std::strerror(code), code);
    if (std::rename(temporary.c_str(), path.c_str()) != 0) throw fail(std::strerror(errno), errno);
}

bool is_folder(const std::string& path) {
    std::error_code code;
    return fs::is_directory(path, code);
}

bool has_image_suffix(const std::string& path) {
    std::string suffix = fs::path(path).extension().string();
    for (char& c : suffix) {
        if (c >= 'A' && c <= 'Z') c = char(c - 'A' + 'a');
    }
    for (const char* known :
         {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2"}) {
        if (suffix == known) return true;
    }
    return false;
}

std::vector<std::string> list_images(const std::string& path) {
    std::error_code code;
    if (!fs::exists(path, code)) {
        throw bad_input("The image " + path + " does not exist.", "Give an image or a folder of images.");
    }
    if (!is_folder(path)) return {path};
    std::vector<std::string> found;
    fs::recursive_directory_iterator walk(path, code), end;
    if (code) throw bad_input("The folder " + path + " cannot be read: " + code.message() + ".");
    while (walk != end) {
        const fs::path& entry = walk->path();
        const bool hidden = entry.filename().string().compare(0, 1, ".") == 0;
        std::error_code ignored;
        if (hidden && walk->is_directory(ignored)) walk.disable_recursion_pending();
        if (!hidden && has_image_suffix(entry.string()) && walk->is_regular_file(ignored)) {
            found.push_back(entry.string());
        }
        walk.increment(code);
        if (code) throw bad_input("The folder " + path + " cannot be read: " + code.message() + ".");
    }
    if (found.empty()) {
        throw bad_input("No image in " + path + ".", "Known suffixes: .bmp .jpeg .jpg .pgm .png .ppm");
    }
    std::sort(found.begin(), found.end());
    return found;
}

}  // namespace edgekit
