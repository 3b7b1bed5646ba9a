#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "backend/device.h"

namespace polar::backend::cuda {

class CudaOps;

/// A matrix in bf16 on the device: [rows][columns], or turned, [columns][rows], when it gathers. Or
/// of four bits a value: codes, and behind them the blocks' scales (FourBitLaunch).
class CudaWeight : public Weight {
 public:
  enum class Form { kRows, kTurned, kFourBits };
  CudaWeight(int64_t rows, int64_t columns, Buffer data, Form form, float unit = 1.0f)
      : Weight(rows, columns, data.bytes()), data_(std::move(data)), form_(form), unit_(unit) {}
  const void* data() const { return data_.data(); }
  bool gathers() const { return form_ == Form::kTurned; }
  bool four_bits() const { return form_ == Form::kFourBits; }
  float unit() const { return unit_; }  // of four bits' scales

 private:
  Buffer data_;
  Form form_;
  float unit_;
};

inline const CudaWeight& cuda(const Weight& weight) {
  return static_cast<const CudaWeight&>(weight);
}

class CudaDevice : public Device {
 public:
  static Result<std::unique_ptr<Device>> create();
  ~CudaDevice() override;

  DeviceInfo info() const override;
  Result<Buffer> allocate(size_t bytes, const char* purpose) override;
  void free(void* data) override;
  void upload(void* destination, const void* source, size_t bytes) override;
  void download(void* destination, const void* source, size_t bytes) override;
  void download_later(void* destination, const void* source, size_t bytes) override;
  void fill_zero(void* destination, size_t bytes) override;
  void synchronize() override;
  uint64_t mark() override;
  void wait(uint64_t mark) override;
  void replay(uint64_t key, const std::function<void()>& step) override;
  std::vector<VerbCost> trace(const std::function<void()>& step) override;
  Result<std::unique_ptr<Weight>> prepare(const WeightSource& source) override;
  Result<std::unique_ptr<Weight>> dummy(int64_t rows, int64_t columns, DType dtype,
                                        bool gather_columns, uint64_t seed) override;
  Ops& ops() override;
  double measure_read_bandwidth() override;

  cudaStream_t stream() const { return stream_; }
  bool capturing() const { return capturing_; }
  /// Whether the step at hand will be recorded: what is found by trial in it pays.
  bool tries() const { return tries_; }
  int processors() const { return properties_.multiProcessorCount; }
  const cudaDeviceProp& properties() const { return properties_; }
  /// Memory of the backend's own that lives as long as the device and is zero at first. Also inside
  /// a capture.
  void* own(size_t bytes);

 private:
  CudaDevice() = default;
  Status start();
  Result<std::unique_ptr<Weight>> prepare_four_bits(const WeightSource& source);
  void finish_downloads();

  static constexpr size_t kRingBytes = size_t{8} << 20;  // pinned, for uploads
  static constexpr int kRingParts = 4;
  static constexpr size_t kStageBytes = size_t{32} << 20;  // pinned, for weights
  static constexpr int kMarks = 64;

  cudaDeviceProp properties_{};
  cudaStream_t stream_ = nullptr, side_ = nullptr;
  std::byte* ring_ = nullptr;
  size_t ring_at_ = 0;
  std::array<cudaEvent_t, kRingParts> ring_free_{};
  std::byte* stage_[2] = {nullptr, nullptr};
  void* device_stage_[2] = {nullptr, nullptr};
  cudaEvent_t stage_free_[2] = {nullptr, nullptr};
  std::array<cudaEvent_t, kMarks> marks_{};
  uint64_t last_mark_ = 0;
  /// Copies out land in pinned memory first; a wait for a later mark hands them on.
  struct Download {
    void* destination;
    const std::byte* from;
    size_t bytes;
    uint64_t mark;
  };
  std::byte* bounce_ = nullptr;
  size_t bounce_at_ = 0;
  std::vector<Download> downloads_;
  bool capturing_ = false, tries_ = false;
  struct Recorded {
    int runs = 0;
    cudaGraphExec_t graph = nullptr;
  };
  std::map<uint64_t, Recorded> recorded_;
  std::vector<void*> owned_;
  std::unique_ptr<CudaOps> ops_;
  Ops* active_ = nullptr;  // ops_, or another while a step is traced
};

}  // namespace polar::backend::cuda
