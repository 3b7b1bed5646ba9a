# Thin: each target names the script or the CMake call that does the work.
JOBS ?= $(shell nproc)

.PHONY: build demo test test-page soak bench format lint tidy sanitize fuzz clean

build:  ## the product only: build/polar
	@scripts/setup.sh build
	@cmake --preset release --log-level=WARNING
	@cmake --build build --target polar -j $(JOBS)

demo:  ## a real model, eight prompts in one batch, dense beside sparse (POLAR_MODEL=path for your own)
	@scripts/demo.sh

test:  ## everything, through CTest
	@scripts/setup.sh test
	@cmake --preset release --log-level=WARNING -DPOLAR_TESTS=ON
	@cmake --build build -j $(JOBS)
	@ctest --test-dir build --output-on-failure -j $(JOBS)

test-page: build  ## the page in a headless Chromium, which this installs
	@scripts/setup.sh page
	@scripts/page-test.sh

soak: build  ## 20,000 requests of good, rude, slow and broken clients against a real server; `make test` runs 500
	@python3 tests/e2e/soak.py build/polar tests/golden/models/qwen2

bench:  ## the kernel benchmarks (docs/results.md says which number comes from which)
	@scripts/setup.sh test
	@cmake --preset release --log-level=WARNING -DPOLAR_BENCHMARKS=ON
	@cmake --build build -j $(JOBS)
	@scripts/bench.sh

tidy:  ## clang-tidy over every host source: some minutes on two cores
	@scripts/setup.sh tidy
	@cmake --preset release --log-level=WARNING -DPOLAR_TESTS=ON
	@scripts/tidy.sh

sanitize:  ## ASan and UBSan over the suite, TSan over the tests with threads
	@scripts/setup.sh test
	@scripts/sanitize.sh

fuzz:  ## libFuzzer targets, a minute each
	@scripts/setup.sh fuzz
	@scripts/fuzz.sh

format:  ## rewrites the sources with clang-format
	@scripts/lint.sh --fix

lint:  ## fails where the sources are not formatted
	@scripts/setup.sh lint
	@scripts/lint.sh

clean:
	rm -rf build build-asan build-tsan build-fuzz
