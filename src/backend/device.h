#pragma once
// Memory, order and replay on one side (Device), the verbs on the other (Ops, in ops.h).

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/tensor.h"

namespace polar::backend {

class Device;
class Ops;

/// Device memory with one owner. Move only; frees itself. The device must outlive it.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device* device, void* data, size_t bytes) : device_(device), data_(data), bytes_(bytes) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~Buffer();

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void swap(Buffer& other) {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  Device* device_ = nullptr;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

/// Where a matrix [rows][columns] comes from: host views stacked by rows (Q, K and V; gate and up),
/// each in its own stored type.
struct WeightSource {
  std::string name;           // for messages
  std::vector<Tensor> parts;  // each [rows_i][columns], in mapped memory that outlives the Weight
  /// Asks for rows that can be gathered along the reduced dimension: y = x W^T reads column j of W
  /// as one contiguous row. The FC2 of a ReLU model is prepared so, and only so.
  bool gather_columns = false;
  /// Asks for four bits a value, if the source has them (Q4_0): what routers read. A backend may
  /// keep more; only the neurons verb reads such a matrix.
  bool keep_four_bits = false;
};

/// A matrix as its backend wants it. Only its backend looks inside.
class Weight {
 public:
  virtual ~Weight() = default;
  int64_t rows() const { return rows_; }        // outputs
  int64_t columns() const { return columns_; }  // inputs
  size_t bytes() const { return bytes_; }       // what one product reads

 protected:
  Weight(int64_t rows, int64_t columns, size_t bytes)
      : rows_(rows), columns_(columns), bytes_(bytes) {}

 private:
  int64_t rows_, columns_;
  size_t bytes_;
};

struct DeviceInfo {
  std::string name;  // "cpu (avx2, 2 threads)", "NVIDIA H200"
  bool is_cpu = true;
  DType activation = DType::kF32;  // f32 on the CPU, bf16 on the GPU
  /// Of the residual stream and what is added to it: every layer adds, so that rounding adds up.
  DType residual = DType::kF32;
  DType default_kv = DType::kF16;  // f16 on the CPU, bf16 on the GPU
  size_t memory_bytes = 0;         // all of it
  size_t free_bytes = 0;           // what could be allocated now
};

/// What the verbs of one kind cost in a step.
struct VerbCost {
  std::string verb;    // as in ops.h; "other": what stands before the first
  int calls = 0;       // in the step
  int nodes = 0;       // kernels, fills and copies of a recorded step; 0 where none is recorded
  double seconds = 0;  // from its beginning to the next verb's
};

/// One device and its one ordered stream of work. Calls come from one thread. Work is queued in
/// order; only `synchronize`, `download` and `wait` block.
class Device {
 public:
  virtual ~Device() = default;

  virtual DeviceInfo info() const = 0;

  /// Device memory, 64-byte aligned (256 on a GPU), not initialised. Out of memory is an Error that
  /// says what was wanted and what is there.
  virtual Result<Buffer> allocate(size_t bytes, const char* purpose) = 0;
  virtual void free(void* data) = 0;

  /// Copies host memory in, in order. The source may be reused at once.
  virtual void upload(void* destination, const void* source, size_t bytes) = 0;
  /// Copies device memory out; returns when it is there.
  virtual void download(void* destination, const void* source, size_t bytes) = 0;
  /// Queues a copy out, in order: it is there when a mark taken behind it has been waited for. The
  /// destination must stay until then.
  virtual void download_later(void* destination, const void* source, size_t bytes) {
    download(destination, source, bytes);
  }
  virtual void fill_zero(void* destination, size_t bytes) = 0;
  virtual void synchronize() = 0;

  /// Marks this point of the stream; `wait(mark)` returns when all before it is done.
  virtual uint64_t mark() = 0;
  virtual void wait(uint64_t mark) = 0;

  /// Runs `step`, which only queues verbs. A device that can records it under `key` the first time
  /// and replays the record afterwards: then everything that differs between two steps of one key
  /// must stand in device memory.
  virtual void replay(uint64_t key, const std::function<void()>& step) = 0;
  /// A key that nobody else names: for steps that are timed.
  uint64_t own_key() { return (uint64_t{1} << 63) | ++own_keys_; }

  /// Runs `step`, as `replay` does, and says what its verbs cost. It has run before, so that
  /// nothing is allocated or chosen in it. Nodes that overlap otherwise are kept apart by the
  /// measurement.
  virtual std::vector<VerbCost> trace(const std::function<void()>& step) = 0;

  /// Prepares a matrix. The source's memory must stay mapped as long as the Weight lives.
  virtual Result<std::unique_ptr<Weight>> prepare(const WeightSource& source) = 0;
  /// A matrix of seeded random values, made where it lives: for benchmarks of shapes.
  virtual Result<std::unique_ptr<Weight>> dummy(int64_t rows, int64_t columns, DType dtype,
                                                bool gather_columns, uint64_t seed) = 0;

  virtual Ops& ops() = 0;

  /// Bytes per second that this machine reads from memory with this device's own threads, measured
  /// now over a buffer much larger than its caches: the denominator of every bandwidth share.
  virtual double measure_read_bandwidth() = 0;

 private:
  uint64_t own_keys_ = 0;
};

inline Buffer::~Buffer() {
  if (data_ != nullptr) device_->free(data_);
}

struct CpuOptions {
  int threads = 0;  // 0: all cores of the machine
};

/// The CPU backend. The instruction set is chosen by CPU feature bits;
/// POLAR_CPU_ISA=portable|avx2|avx512|amx forces one.
Result<std::unique_ptr<Device>> make_cpu_device(const CpuOptions& options);

/// The CUDA backend, or an Error that says why there is none (not built, no GPU, driver too old).
Result<std::unique_ptr<Device>> make_cuda_device();

/// Whether the machine has a GPU and a driver, even where make_cuda_device() cannot use it.
bool has_gpu();

}  // namespace polar::backend
