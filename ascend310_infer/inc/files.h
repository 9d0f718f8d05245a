// Files as a whole: read at once, written beside their place and renamed into it.
#ifndef ASCEND310_INFER_FILES_H_
#define ASCEND310_INFER_FILES_H_

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace detector {

using Bytes = std::vector<uint8_t>;

// Throws UserError naming the file when it cannot be read, is empty, or holds more than `limit` bytes.
Bytes ReadFile(const std::filesystem::path& path, uintmax_t limit);

// The file appears with all its bytes or not at all; UserError, naming it, when it cannot be written.
void WriteFile(const std::filesystem::path& path, const void* data, size_t num_bytes);

// Makes a folder and those above it; UserError, naming it, when that fails.
void MakeFolder(const std::filesystem::path& path);

}  // namespace detector

#endif  // ASCEND310_INFER_FILES_H_
