#include <cstdio>

#include "backend/device.h"
#include "cli/command.h"

namespace polar::cli {

void add_version(CLI::App& app, Run& run) {
  auto* command = app.add_subcommand("version", "Print Polar's version and what it can compute on");
  command->callback([&run] {
    run = []() -> Result<int> {
      std::printf("polar %s\n", POLAR_VERSION);
      auto cpu = backend::make_cpu_device({});
      std::printf("cpu:  %s\n",
                  cpu.ok() ? cpu.value()->info().name.c_str() : cpu.error().message.c_str());
      auto cuda = backend::make_cuda_device();
      std::printf("cuda: %s\n",
                  cuda.ok() ? cuda.value()->info().name.c_str() : cuda.error().message.c_str());
      return kOk;
    };
  });
}

}  // namespace polar::cli
