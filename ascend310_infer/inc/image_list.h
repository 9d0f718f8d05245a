// Which images a folder holds.
#ifndef ASCEND310_INFER_IMAGE_LIST_H_
#define ASCEND310_INFER_IMAGE_LIST_H_

#include <filesystem>
#include <string>
#include <vector>

namespace detector {

struct ImageList {
  std::vector<std::filesystem::path> images;
  std::vector<std::filesystem::path> left_out;  // all else in the folder
};

// The files of a folder whose extension, in any case, is one of IMAGE_SUFFIXES in src/data/image_files.py, sorted by
// name; but no TIFF, which only Python reads, and no hidden ones (".name"). Folders in it are not entered. Throws
// UserError when there is no such folder or no image in it, and when two images differ in their extension alone: their
// result files would have one name.
ImageList ListImages(const std::filesystem::path& folder);

// One line about what is left out, the first few by name; empty when nothing is.
std::string LeftOutLine(const std::vector<std::filesystem::path>& left_out);

}  // namespace detector

#endif  // ASCEND310_INFER_IMAGE_LIST_H_
