#pragma once

#include "backend/cpu/cpu_ops.h"
#include "backend/device.h"
#include "core/thread_pool.h"

namespace polar::backend::cpu {

/// Verbs run at once on the pool; so order, marks and replay are trivial.
class CpuDevice : public Device {
 public:
  CpuDevice(const Kernels& kernels, int threads)
      : kernels_(kernels), pool_(threads), ops_(kernels, pool_) {}

  DeviceInfo info() const override;
  Result<Buffer> allocate(size_t bytes, const char* purpose) override;
  void free(void* data) override;
  void upload(void* destination, const void* source, size_t bytes) override;
  void download(void* destination, const void* source, size_t bytes) override;
  void fill_zero(void* destination, size_t bytes) override;
  void synchronize() override {}
  uint64_t mark() override { return 0; }
  void wait(uint64_t) override {}
  void replay(uint64_t, const std::function<void()>& step) override { step(); }
  std::vector<VerbCost> trace(const std::function<void()>& step) override;
  Result<std::unique_ptr<Weight>> prepare(const WeightSource& source) override;
  Result<std::unique_ptr<Weight>> dummy(int64_t rows, int64_t columns, DType dtype,
                                        bool gather_columns, uint64_t seed) override;
  Ops& ops() override { return *active_; }
  double measure_read_bandwidth() override;

  const Kernels& kernels() const { return kernels_; }
  ThreadPool& pool() { return pool_; }

 private:
  const Kernels& kernels_;
  ThreadPool pool_;
  CpuOps ops_;
  Ops* active_ = &ops_;  // another while a step is traced
};

}  // namespace polar::backend::cpu
