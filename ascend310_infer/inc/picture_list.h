// Which pictures a folder holds.
#ifndef ASCEND310_INFER_PICTURE_LIST_H_
#define ASCEND310_INFER_PICTURE_LIST_H_

#include <filesystem>
#include <vector>

namespace detector {

// The JPEG, PNG, BMP and WEBP files of a folder by their extension, sorted by name; folders below it are not entered.
// Throws UserError when the folder is none or holds no picture, and when two pictures differ in their extension alone:
// their result files would have one name.
std::vector<std::filesystem::path> ListPictures(const std::filesystem::path& folder);

}  // namespace detector

#endif  // ASCEND310_INFER_PICTURE_LIST_H_
