#include "io/mmap.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

#include "io/test_files.h"

namespace polar::io {
namespace {

TEST(MappedFileTest, ShowsTheFilesBytesAlsoAfterMoves) {
  const TempFolder folder;
  const std::string path = folder.write("a", "hello");
  auto opened = MappedFile::open(path);
  ASSERT_TRUE(opened.ok());
  MappedFile file = std::move(opened).value();
  const std::byte* data = file.data();
  MappedFile moved = std::move(file);
  EXPECT_EQ(moved.data(), data);
  EXPECT_EQ(moved.size(), 5U);
  EXPECT_EQ(moved.path(), path);
  auto other = MappedFile::open(folder.write("b", "other"));
  ASSERT_TRUE(other.ok());
  moved = std::move(other).value();
  EXPECT_EQ(std::memcmp(moved.data(), "other", 5), 0);
}

TEST(MappedFileTest, RefusesWhatIsNotARegularFileWithContent) {
  const TempFolder folder;
  auto missing = MappedFile::open(folder.path() + "/none");
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().message,
            folder.path() + "/none: cannot open: No such file or directory");
  auto directory = MappedFile::open(folder.path());
  ASSERT_FALSE(directory.ok());
  expect_sentence(directory.error(), folder.path());
  auto empty = MappedFile::open(folder.write("empty", ""));
  ASSERT_FALSE(empty.ok());
  expect_sentence(empty.error(), folder.path() + "/empty");
  const std::string pipe = folder.path() + "/pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  auto special = MappedFile::open(pipe);  // and does not wait for a writer
  ASSERT_FALSE(special.ok());
  expect_sentence(special.error(), pipe);
}

TEST(MappedFileDeathTest, AFileThatShrinksEndsTheProcessWithItsName) {
  const TempFolder folder;
  const std::string path = folder.write("shrinks", std::string(64 * 1024, 'x'));
  EXPECT_EXIT(
      {
        explain_bus_errors();
        auto file = MappedFile::open(path);
        if (::truncate(path.c_str(), 10) != 0) std::_Exit(3);
        volatile char sum = 0;
        for (size_t i = 0; i < file->size(); i += 4096) {
          sum = static_cast<char>(sum + static_cast<char>(file->data()[i]));
        }
        std::_Exit(2);
      },
      testing::ExitedWithCode(1), "polar: error: .*shrinks: the file was truncated");
}

}  // namespace
}  // namespace polar::io
