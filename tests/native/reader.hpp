#pragma once

#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <vector>

// Reads arrays in the order in which the scripts beside it write them.
struct Reader {
    std::vector<char> bytes;
    size_t at = 0;

    template <class T>
    std::vector<T> take(size_t count) {
        std::vector<T> values(count);
        if (at + count * sizeof(T) > bytes.size()) throw std::runtime_error("the vector file is too short");
        if (count) std::memcpy(values.data(), bytes.data() + at, count * sizeof(T));
        at += count * sizeof(T);
        return values;
    }
    explicit Reader(const char* path) {
        std::ifstream file(path, std::ios::binary);
        bytes.assign(std::istreambuf_iterator<char>(file), {});
    }
    bool done() const { return at == bytes.size(); }
};
