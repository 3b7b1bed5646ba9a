#!/usr/bin/env bash
# Fills vendor/ with the headers and static libraries that the build needs, for a machine without a
# package manager. Run it where apt-get works, take the folder along, build with -DPOLAR_VENDOR=vendor.
# usage: scripts/vendor.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-vendor}  # relative to the repository
packages="libfmt-dev nlohmann-json3-dev libcli11-dev libpcre2-dev libutf8proc-dev libboost1.81-dev libeigen3-dev libxxhash-dev"
apt-cache show libboost1.81-dev >/dev/null 2>&1 || packages=${packages/libboost1.81-dev/libboost1.83-dev}

packages="$packages $(apt-cache depends libfmt-dev | awk "/Depends: libfmt[0-9]/ {print \$2}")"  # its CMake files look for the library
downloads=$(mktemp -d)
trap 'rm -rf "$downloads"' EXIT
(cd "$downloads" && apt-get download $packages >/dev/null)
rm -rf "$folder"
mkdir -p "$folder"
for deb in "$downloads"/*.deb; do dpkg -x "$deb" "$folder"; done
# What no build reads: documents, tools, shared libraries' links.
rm -rf "$folder"/usr/share/doc "$folder"/usr/share/man "$folder"/usr/bin
find "$folder" -type l ! -exec test -e {} \; -delete
# Of Boost only what the server includes, as the compiler lists it.
boost=$folder/usr/include/boost
if [ -d "$boost" ] && grep -rqs 'include <boost/' src; then
  used=$(grep -rls 'include <boost/' src | while read -r file; do
    g++ -std=c++20 -DFMT_HEADER_ONLY=1 -DBOOST_ERROR_CODE_HEADER_ONLY -M -Isrc -I"$folder/usr/include" "$file" 2>/dev/null
  done | tr ' \\' '\n\n' | grep "^$folder/usr/include/boost/" | sort -u)
  [ -n "$used" ] || { echo "vendor: the compiler lists no Boost header" >&2; exit 1; }
  echo "$used" | tar -cf "$downloads/boost.tar" -T -
  rm -rf "$boost"
  tar -xf "$downloads/boost.tar"
fi
du -sh "$folder" | sed 's/^/vendor: /'
