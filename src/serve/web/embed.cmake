# cmake -DOUT=web_files.cc "-DFILES=index.html|app.js" -P embed.cmake
# Writes the page's files into one source, as bytes, so that the server needs nothing beside its binary.
string(REPLACE "|" ";" FILES "${FILES}")
set(arrays "")
set(table "")
set(count 0)
foreach(file ${FILES})
  get_filename_component(name ${file} NAME)
  if(name STREQUAL "index.html")
    set(name "")
  endif()
  file(READ ${file} bytes HEX)
  string(REGEX REPLACE "(..)" "0x\\1," bytes "${bytes}")
  string(APPEND arrays "const unsigned char kFile${count}[] = {${bytes}};\n")
  string(APPEND table "    {\"/${name}\", kFile${count}, sizeof kFile${count}},\n")
  math(EXPR count "${count} + 1")
endforeach()
file(WRITE ${OUT} "// Made by embed.cmake.
#include \"serve/web_files.h\"

namespace polar::serve {
namespace {
${arrays}const EmbeddedFile kFiles[] = {
${table}};
}  // namespace

const EmbeddedFile* const kEmbeddedFiles = kFiles;
const unsigned kEmbeddedFileCount = ${count};

}  // namespace polar::serve
")
