#!/usr/bin/env bash
# clang-tidy (.clang-tidy says what for) over the host's translation units of build/compile_commands.json, or over those of the
# given files and folders alone. Looks at all of them, then fails if there was a finding.
# usage: scripts/tidy.sh [--analyze] [src/FOLDER|src/FOLDER/FILE.cc ...]
#   --analyze   also runs clang's analyzer, which follows paths through functions: four times as long
set -euo pipefail
cd "$(dirname "$0")/.."
tidy=$(command -v clang-tidy-14 || command -v clang-tidy)
checks=
if [ "${1:-}" = --analyze ]; then
  checks='clang-analyzer-core.*,clang-analyzer-cplusplus.*,clang-analyzer-deadcode.*,clang-analyzer-unix.*'
  shift
fi
mapfile -t files < <(sed -n "s|^  \"file\": \"$PWD/\(.*[.]cc\)\",\?$|\1|p" build/compile_commands.json | grep -v '^build' | sort -u)
if [ $# -gt 0 ]; then
  printf -v wanted '|%s' "${@%/}"
  mapfile -t files < <(printf '%s\n' "${files[@]}" | grep -E "^(${wanted#|})(/|\$)")
fi
[ ${#files[@]} -gt 0 ] || { echo "tidy: no such files: ${*:-build/compile_commands.json names none}" >&2; exit 2; }
# The database is g++'s, and clang does not know all of its warnings.
check() {
  "$1" -p build --quiet --checks="$2" --extra-arg=-Wno-unknown-warning-option "$3" 2> >(grep -v ' warnings\? generated\.$' >&2)
}
export -f check
printf '%s\n' "${files[@]}" | xargs -P "${JOBS:-$(nproc)}" -I{} bash -c 'check "$@"' _ "$tidy" "$checks" {}
echo "tidy: ${#files[@]} files, no findings"
