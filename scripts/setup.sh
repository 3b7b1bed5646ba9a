#!/usr/bin/env bash
# Installs what a step needs and is missing, from the distribution's packages (Debian 12, Ubuntu
# 24.04). Silent when all is there.
# usage: scripts/setup.sh build|demo|test|page|lint|tidy|fuzz
set -euo pipefail

build="g++ cmake ninja-build libfmt-dev nlohmann-json3-dev libcli11-dev libpcre2-dev libutf8proc-dev
  libboost-dev libeigen3-dev libxxhash-dev"
test="$build libgtest-dev libgmock-dev libbenchmark-dev librapidcheck-dev python3 python3-yaml"
case "${1:-}" in
  build) packages="$build" ;;
  demo) packages="$build python3 python3-pip ca-certificates" ;;
  test) packages="$test" ;;
  page) packages="chromium python3 python3-venv" ;;
  lint) packages="clang-format-14" ;;
  tidy) packages="$test clang-tidy-14" ;;
  fuzz) packages="$build clang" ;;
  *) echo "usage: scripts/setup.sh build|demo|test|page|lint|tidy|fuzz" >&2; exit 2 ;;
esac

# A machine without apt brings its own packages (scripts/vendor.sh); CMake says what it misses.
command -v apt-get >/dev/null && command -v dpkg-query >/dev/null || exit 0
[ -z "${POLAR_VENDOR:-}" ] || exit 0
missing=()
for package in $packages; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "ok installed" || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

sudo=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "setup: missing ${missing[*]}; install them as root" >&2; exit 1; }
  sudo=(sudo)
fi
echo "setup: installing ${missing[*]}" >&2
log=$(mktemp)
if ! { "${sudo[@]}" apt-get update &&
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 5 "$log" >&2
  echo "setup: apt-get could not install ${missing[*]} (the whole log: $log)" >&2
  exit 1
fi
rm -f "$log"
