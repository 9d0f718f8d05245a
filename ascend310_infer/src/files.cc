#include "files.h"

#include <fstream>
#include <system_error>

#include "error.h"

namespace detector {

namespace fs = std::filesystem;

Bytes ReadFile(const fs::path& path, uintmax_t limit) {
  std::error_code error;
  if (fs::is_directory(path, error)) throw UserError(path.string() + ": is a folder; expected a file");
  const uintmax_t size = fs::file_size(path, error);
  if (error) throw UserError(path.string() + ": cannot be read (" + error.message() + ")");
  if (size == 0) throw UserError(path.string() + ": is empty");
  if (size > limit) {
    throw UserError(path.string() + ": has " + std::to_string(size) + " bytes; the limit is " + std::to_string(limit));
  }
  Bytes content(size);
  std::ifstream file(path, std::ios::binary);
  if (!file.read(reinterpret_cast<char*>(content.data()), static_cast<std::streamsize>(size))) {
    throw UserError(path.string() + ": cannot be read. Check its permissions");
  }
  return content;
}

void WriteFile(const fs::path& path, const void* data, size_t num_bytes) {
  fs::path part = path;
  part += ".part";
  std::ofstream file(part, std::ios::binary | std::ios::trunc);
  file.write(static_cast<const char*>(data), static_cast<std::streamsize>(num_bytes));
  file.close();  // a full disk may show only here
  std::error_code error;
  if (file) {
    fs::rename(part, path, error);
    if (!error) return;
  }
  std::error_code ignored;
  fs::remove(part, ignored);
  throw UserError(path.string() + ": cannot be written. Check the folder's permissions and the free space");
}

void MakeFolder(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error || !fs::is_directory(path)) {
    throw UserError(path.string() + ": is not a folder and cannot be made one (" + error.message() + ")");
  }
}

}  // namespace detector
