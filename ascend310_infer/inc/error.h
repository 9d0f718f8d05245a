// The two kinds of error that end the program.
#ifndef ASCEND310_INFER_ERROR_H_
#define ASCEND310_INFER_ERROR_H_

#include <stdexcept>
#include <string>

namespace detector {

// A mistake the user can fix: the message says what, where, what was expected and what to do. Exit code 1.
class UserError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A wrong command line. Exit code 2.
class UsageError : public UserError {
 public:
  using UserError::UserError;
};

}  // namespace detector

#endif  // ASCEND310_INFER_ERROR_H_
