#include "cli/open_model.h"

#include "cli/open_device.h"

namespace polar::cli {

Result<OpenModel> open_model(const ModelFlags& flags, int max_batch) {
  engine::EngineOptions options;
  if (!flags.kv_memory.empty()) {
    POLAR_ASSIGN(options.kv_bytes, parse_bytes("--kv-memory", flags.kv_memory));
  }
  options.max_batch = flags.max_batch > 0 ? flags.max_batch : max_batch;
  options.max_length = flags.max_model_len;
  POLAR_ASSIGN(auto device, open_device(flags));
  options.kv_dtype = kv_dtype(flags, *device);
  OpenModel open;
  POLAR_ASSIGN(open.model, engine::load_model(flags.model, flags.profile, std::move(device)));
  POLAR_ASSIGN(open.point, open.model->point(flags.point));
  POLAR_ASSIGN(open.engine, open.model->make_engine(options));
  return open;
}

}  // namespace polar::cli
