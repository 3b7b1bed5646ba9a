#include "backend/cuda/cuda_device.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <thread>

#include "backend/cuda/cuda_check.h"
#include "backend/cuda/cuda_ops.h"
#include "backend/cuda/kernels.h"
#include "backend/traced_ops.h"

namespace polar::backend {

Result<std::unique_ptr<Device>> make_cuda_device() {
  return cuda::CudaDevice::create();
}

bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

namespace cuda {

namespace {

std::string mebibytes(size_t bytes) {
  return std::to_string(bytes >> 20) + " MiB";
}

/// Runs f(begin, end) over [0, count) on a few threads.
template <typename F>
void in_parallel(int64_t count, F f) {
  const int64_t threads = std::clamp<int64_t>(std::thread::hardware_concurrency(), 1, 8);
  std::vector<std::thread> others;
  for (int64_t t = 1; t < threads; ++t)
    others.emplace_back([&, t] { f(count * t / threads, count * (t + 1) / threads); });
  f(0, count / threads);
  for (auto& other : others) other.join();
}

CudaWeight::Form form_of(bool gathers) {
  return gathers ? CudaWeight::Form::kTurned : CudaWeight::Form::kRows;
}

bool converted_on_device(DType type) {
  return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16;
}

}  // namespace

Result<std::unique_ptr<Device>> CudaDevice::create() {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess || count == 0) {
    return bad_input("device", "cuda", error != cudaSuccess ? cudaGetErrorString(error) : "no GPU",
                     "an NVIDIA GPU and a driver for CUDA 12.8 or newer");
  }
  std::unique_ptr<CudaDevice> device(new CudaDevice);
  POLAR_RETURN_IF_ERROR(device->start());
  return std::unique_ptr<Device>(std::move(device));
}

Status CudaDevice::start() {
  POLAR_CUDA(cudaSetDevice(0));
  POLAR_CUDA(cudaGetDeviceProperties(&properties_, 0));
  if (properties_.major < 8) {
    return bad_input("device", "cuda", std::string(properties_.name),
                     "a GPU of compute capability 8.0 or newer");
  }
  if (code_version() == 0) {
    const int wanted = properties_.major * 10 + properties_.minor;
    return bad_input("device", "cuda", std::string(properties_.name),
                     "a GPU that this build has kernels for (build it with "
                     "-DCMAKE_CUDA_ARCHITECTURES=" +
                         std::to_string(wanted) + ")");
  }
  POLAR_ASSIGN(const CublasLibrary* library, CublasLibrary::load());
  POLAR_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  POLAR_CUDA(cudaStreamCreateWithFlags(&side_, cudaStreamNonBlocking));
  POLAR_CUDA(cudaMallocHost(reinterpret_cast<void**>(&ring_), kRingBytes));
  POLAR_CUDA(cudaMallocHost(reinterpret_cast<void**>(&bounce_), kRingBytes));
  for (auto& event : ring_free_)
    POLAR_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  for (auto& event : marks_) POLAR_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  ops_ = std::make_unique<CudaOps>(*this, *library);
  active_ = ops_.get();
  return {};
}

CudaDevice::~CudaDevice() {
  cudaStreamSynchronize(stream_);
  ops_.reset();
  for (auto& [key, recorded] : recorded_)
    if (recorded.graph != nullptr) cudaGraphExecDestroy(recorded.graph);
  for (void* memory : owned_) cudaFree(memory);
  for (int i = 0; i < 2; ++i) {
    cudaFreeHost(stage_[i]);
    cudaFree(device_stage_[i]);
    if (stage_free_[i] != nullptr) cudaEventDestroy(stage_free_[i]);
  }
  cudaFreeHost(ring_);
  cudaFreeHost(bounce_);
  for (auto& event : ring_free_) cudaEventDestroy(event);
  for (auto& event : marks_) cudaEventDestroy(event);
  cudaStreamDestroy(stream_);
  cudaStreamDestroy(side_);
}

DeviceInfo CudaDevice::info() const {
  DeviceInfo info;
  info.name = properties_.name;
  info.is_cpu = false;
  info.activation = info.default_kv = DType::kBF16;
  POLAR_CUDA(cudaMemGetInfo(&info.free_bytes, &info.memory_bytes));
  return info;
}

Result<Buffer> CudaDevice::allocate(size_t bytes, const char* purpose) {
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, std::max<size_t>(bytes, 1));
  if (error == cudaSuccess) return Buffer(this, data, bytes);
  cudaGetLastError();
  const DeviceInfo now = info();
  return bad_input(
      "memory", purpose,
      mebibytes(now.free_bytes) + " free of " + mebibytes(now.memory_bytes) + " on " + now.name,
      mebibytes(bytes + (1 << 20)));
}

void CudaDevice::free(void* data) {
  ops_->forget(data);
  cudaFree(data);  // waits for work that may still use it
}

void* CudaDevice::own(size_t bytes) {
  void* data = nullptr;
  // A capture must not see these calls as its own.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  POLAR_CUDA(cudaThreadExchangeStreamCaptureMode(&mode));
  POLAR_CUDA(cudaMalloc(&data, bytes));
  POLAR_CUDA(cudaMemsetAsync(data, 0, bytes, side_));
  POLAR_CUDA(cudaStreamSynchronize(side_));
  POLAR_CUDA(cudaThreadExchangeStreamCaptureMode(&mode));
  owned_.push_back(data);
  return data;
}

void CudaDevice::upload(void* destination, const void* source, size_t bytes) {
  ops_->changed(destination);
  constexpr size_t kPart = kRingBytes / kRingParts;
  const auto* from = static_cast<const std::byte*>(source);
  auto* to = static_cast<std::byte*>(destination);
  while (bytes > 0) {
    const size_t part = ring_at_ / kPart;
    if (ring_at_ % kPart == 0) POLAR_CUDA(cudaEventSynchronize(ring_free_[part]));
    const size_t count = std::min(bytes, (part + 1) * kPart - ring_at_);
    std::memcpy(ring_ + ring_at_, from, count);
    POLAR_CUDA(cudaMemcpyAsync(to, ring_ + ring_at_, count, cudaMemcpyHostToDevice, stream_));
    ring_at_ = std::min((ring_at_ + count + 63) / 64 * 64, (part + 1) * kPart);
    if (ring_at_ % kPart == 0) {
      POLAR_CUDA(cudaEventRecord(ring_free_[part], stream_));
      ring_at_ %= kRingBytes;
    }
    from += count;
    to += count;
    bytes -= count;
  }
}

void CudaDevice::finish_downloads() {
  for (const Download& d : downloads_) std::memcpy(d.destination, d.from, d.bytes);
  downloads_.clear();
  bounce_at_ = 0;
}

void CudaDevice::download(void* destination, const void* source, size_t bytes) {
  if (bytes == 0) return;
  if (bytes > kRingBytes - bounce_at_) {
    POLAR_CUDA(cudaMemcpyAsync(destination, source, bytes, cudaMemcpyDeviceToHost, stream_));
  } else {
    download_later(destination, source, bytes);
  }
  synchronize();
}

void CudaDevice::download_later(void* destination, const void* source, size_t bytes) {
  if (bytes == 0) return;
  if (bytes > kRingBytes - bounce_at_) synchronize();
  if (bytes > kRingBytes) return download(destination, source, bytes);
  POLAR_CUDA(cudaMemcpyAsync(bounce_ + bounce_at_, source, bytes, cudaMemcpyDeviceToHost, stream_));
  downloads_.push_back({destination, bounce_ + bounce_at_, bytes, last_mark_ + 1});
  bounce_at_ += (bytes + 63) / 64 * 64;
}

void CudaDevice::fill_zero(void* destination, size_t bytes) {
  ops_->changed(destination);
  POLAR_CUDA(cudaMemsetAsync(destination, 0, bytes, stream_));
}

void CudaDevice::synchronize() {
  POLAR_CUDA(cudaStreamSynchronize(stream_));
  finish_downloads();
}

uint64_t CudaDevice::mark() {
  ++last_mark_;
  POLAR_CUDA(cudaEventRecord(marks_[last_mark_ % kMarks], stream_));
  return last_mark_;
}

void CudaDevice::wait(uint64_t mark) {
  // An event that was taken over by a later mark only waits longer.
  POLAR_CUDA(cudaEventSynchronize(marks_[mark % kMarks]));
  const auto done = [mark](const Download& d) { return d.mark <= mark; };
  for (const Download& d : downloads_)
    if (done(d)) std::memcpy(d.destination, d.from, d.bytes);
  std::erase_if(downloads_, done);
  if (downloads_.empty()) bounce_at_ = 0;
}

void CudaDevice::replay(uint64_t key, const std::function<void()>& step) {
  Recorded& recorded = recorded_[key];
  ops_->changed(nullptr);  // what one step left behind holds for no other
  // The first run is eager: it allocates, and it times the algorithms of products it has not seen.
  if (recorded.runs++ == 0) {
    tries_ = true;
    step();
    tries_ = false;
    return;
  }
  if (recorded.graph == nullptr) {
    cudaGraph_t graph = nullptr;
    POLAR_CUDA(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    capturing_ = true;
    step();
    capturing_ = false;
    POLAR_CUDA(cudaStreamEndCapture(stream_, &graph));
    POLAR_CUDA(cudaGraphInstantiate(&recorded.graph, graph, 0));
    POLAR_CUDA(cudaGraphDestroy(graph));
  }
  POLAR_CUDA(cudaGraphLaunch(recorded.graph, stream_));
}

std::vector<VerbCost> CudaDevice::trace(const std::function<void()>& step) {
  struct Mark {
    const char* verb;
    cudaEvent_t event;
    size_t nodes;  // of the graph so far
  };
  std::vector<Mark> marks;
  cudaGraph_t graph = nullptr;
  POLAR_CUDA(cudaGraphCreate(&graph, 0));
  const auto mark = [&](const char* verb) {
    Mark now{verb, nullptr, 0};
    POLAR_CUDA(cudaGraphGetNodes(graph, nullptr, &now.nodes));
    POLAR_CUDA(cudaEventCreate(&now.event));
    POLAR_CUDA(cudaEventRecordWithFlags(now.event, stream_, cudaEventRecordExternal));
    marks.push_back(now);
  };
  TracedOps traced(*ops_, mark);
  ops_->changed(nullptr);
  POLAR_CUDA(cudaStreamBeginCaptureToGraph(stream_, graph, nullptr, nullptr, 0,
                                           cudaStreamCaptureModeThreadLocal));
  capturing_ = true;
  active_ = &traced;
  mark("other");
  step();
  mark("end");
  active_ = ops_.get();
  capturing_ = false;
  POLAR_CUDA(cudaStreamEndCapture(stream_, &graph));
  cudaGraphExec_t executable = nullptr;
  POLAR_CUDA(cudaGraphInstantiate(&executable, graph, 0));
  for (int run = 0; run < 3; ++run) POLAR_CUDA(cudaGraphLaunch(executable, stream_));
  synchronize();
  std::vector<VerbCost> costs;
  for (size_t i = 0; i + 1 < marks.size(); ++i) {
    float milliseconds = 0;
    POLAR_CUDA(cudaEventElapsedTime(&milliseconds, marks[i].event, marks[i + 1].event));
    const auto nodes = static_cast<int>(marks[i + 1].nodes - marks[i].nodes - 1);  // less the mark
    if (nodes > 0) add_cost(costs, {marks[i].verb, 1, nodes, milliseconds * 1e-3});
  }
  for (const Mark& m : marks) cudaEventDestroy(m.event);
  POLAR_CUDA(cudaGraphExecDestroy(executable));
  POLAR_CUDA(cudaGraphDestroy(graph));
  return costs;
}

/// A Q4_0 matrix, rearranged on the way to what launch_four_bit reads.
Result<std::unique_ptr<Weight>> CudaDevice::prepare_four_bits(const WeightSource& source) {
  constexpr int64_t kBlock = 32, kStored = 18;  // of a Q4_0 block: values, bytes
  constexpr int kBlocks = kFourBitInputs / kBlock;
  const Tensor& part = source.parts[0];
  const int64_t rows = part.shape[0], columns = part.shape[1], in_row = columns / kBlock,
                pieces = four_bit_pieces(columns);
  std::vector<std::byte> host((rows + kFourBitRows - 1) / kFourBitRows * pieces * kFourBitPiece);
  POLAR_ASSIGN(Buffer data, allocate(host.size(), source.name.c_str()));
  const auto scale_of = [&](int64_t i) {
    uint16_t bits;
    std::memcpy(&bits, part.as<std::byte>() + i * kStored, sizeof(bits));
    return f16_to_f32(bits);
  };
  float most = 0.0f;
  for (int64_t i = 0; i < rows * in_row; ++i) most = std::max(most, std::abs(scale_of(i)));
  int exponent = 0;
  std::frexp(most / kFourBitMost, &exponent);
  const float unit = std::ldexp(1.0f, exponent);
  in_parallel(rows * in_row, [&](int64_t low, int64_t high) {
    for (int64_t i = low; i < high; ++i) {
      const int64_t row = i / in_row, block = i % in_row;
      const int inside = static_cast<int>(row % kFourBitRows),
                of_piece = static_cast<int>(block % kBlocks);
      std::byte* piece =
          host.data() + (row / kFourBitRows * pieces + block / kBlocks) * kFourBitPiece;
      const auto* stored = part.as<uint8_t>() + i * kStored;
      const uint16_t scale = f32_to_f16(scale_of(i) / unit);
      std::memcpy(piece + kFourBitScales + (inside * kBlocks + of_piece) * sizeof(scale), &scale,
                  sizeof(scale));
      const auto code = [&](int of) {
        return of < 16 ? stored[2 + of] & 15u : stored[2 + of - 16] >> 4u;
      };
      for (int word = 0; word < 4; ++word) {
        uint32_t codes = 0;
        for (int j = 0; j < 8; ++j) codes |= code(word * 8 + j) << (j % 2 * 16 + j / 2 * 4);
        std::memcpy(piece + four_bit_word(inside, of_piece, word) * sizeof(codes), &codes,
                    sizeof(codes));
      }
    }
  });
  upload(data.data(), host.data(), host.size());
  return std::unique_ptr<Weight>(std::make_unique<CudaWeight>(rows, columns, std::move(data),
                                                              CudaWeight::Form::kFourBits, unit));
}

Result<std::unique_ptr<Weight>> CudaDevice::prepare(const WeightSource& source) {
  POLAR_CHECK(!source.parts.empty());
  if (source.keep_four_bits && source.parts.size() == 1 && source.parts[0].dtype == DType::kQ4_0)
    return prepare_four_bits(source);
  int64_t rows = 0;
  const int64_t columns = source.parts[0].shape[1];
  for (const Tensor& part : source.parts) rows += part.shape[0];
  POLAR_ASSIGN(Buffer data, allocate(static_cast<size_t>(rows) * columns * 2, source.name.c_str()));
  for (int i = 0; i < 2; ++i) {
    if (stage_[i] != nullptr) continue;
    POLAR_CUDA(cudaMallocHost(reinterpret_cast<void**>(&stage_[i]), kStageBytes));
    POLAR_CUDA(cudaMalloc(&device_stage_[i], kStageBytes));
    POLAR_CUDA(cudaEventCreateWithFlags(&stage_free_[i], cudaEventDisableTiming));
  }
  int64_t first = 0;  // row of the matrix
  int turn = 0;
  for (const Tensor& part : source.parts) {
    const bool direct = converted_on_device(part.dtype);
    const DType type = direct ? part.dtype : DType::kF32;
    const size_t value_bytes = type == DType::kF32 ? 4 : 2;
    const size_t stored_row = dtype_bytes(part.dtype, columns), staged_row = columns * value_bytes;
    POLAR_CHECK(staged_row <= kStageBytes);
    const auto chunk = static_cast<int64_t>(kStageBytes / staged_row);
    for (int64_t begin = 0; begin < part.shape[0]; begin += chunk, turn ^= 1) {
      const int64_t count = std::min(chunk, part.shape[0] - begin);
      POLAR_CUDA(cudaEventSynchronize(stage_free_[turn]));
      const std::byte* from = part.as<std::byte>() + begin * stored_row;
      std::byte* stage = stage_[turn];
      in_parallel(count, [&](int64_t low, int64_t high) {
        if (direct) {
          std::memcpy(stage + low * staged_row, from + low * stored_row, (high - low) * stored_row);
          return;
        }
        for (int64_t r = low; r < high; ++r)
          dequantize_row(part.dtype, from + r * stored_row,
                         reinterpret_cast<float*>(stage + r * staged_row), columns);
      });
      const bool copy_only = type == DType::kBF16 && !source.gather_columns;
      auto* to = static_cast<std::byte*>(data.data()) +
                 (first + begin) * (source.gather_columns ? 2 : columns * 2);
      POLAR_CUDA(cudaMemcpyAsync(copy_only ? to : device_stage_[turn], stage, count * staged_row,
                                 cudaMemcpyHostToDevice, stream_));
      if (source.gather_columns) {
        launch_transpose(type, device_stage_[turn], to, count, columns, rows, stream_);
      } else if (!copy_only) {
        launch_convert(type, device_stage_[turn], to, static_cast<size_t>(count) * columns,
                       stream_);
      }
      POLAR_CUDA(cudaGetLastError());
      POLAR_CUDA(cudaEventRecord(stage_free_[turn], stream_));
    }
    first += part.shape[0];
  }
  return std::unique_ptr<Weight>(
      std::make_unique<CudaWeight>(rows, columns, std::move(data), form_of(source.gather_columns)));
}

Result<std::unique_ptr<Weight>> CudaDevice::dummy(int64_t rows, int64_t columns, DType,
                                                  bool gather_columns, uint64_t seed) {
  const size_t values = static_cast<size_t>(rows) * columns;
  POLAR_ASSIGN(Buffer data, allocate(values * 2, "dummy weights"));
  launch_dummy(data.data(), values, 1.0f / __builtin_sqrtf(static_cast<float>(columns)), seed,
               stream_);
  POLAR_CUDA(cudaGetLastError());
  return std::unique_ptr<Weight>(
      std::make_unique<CudaWeight>(rows, columns, std::move(data), form_of(gather_columns)));
}

Ops& CudaDevice::ops() {
  return *active_;
}

double CudaDevice::measure_read_bandwidth() {
  size_t bytes = std::min(info().free_bytes / 2, size_t{4} << 30);
  auto buffer = allocate(bytes, "measuring the read bandwidth");
  if (!buffer.ok()) return 0;
  fill_zero(buffer->data(), bytes);
  cudaEvent_t begin, end;
  POLAR_CUDA(cudaEventCreate(&begin));
  POLAR_CUDA(cudaEventCreate(&end));
  double best = 0;
  for (int round = 0; round < 8; ++round) {
    POLAR_CUDA(cudaEventRecord(begin, stream_));
    launch_read(buffer->data(), bytes, processors(), buffer->data(), stream_);
    POLAR_CUDA(cudaGetLastError());
    POLAR_CUDA(cudaEventRecord(end, stream_));
    POLAR_CUDA(cudaEventSynchronize(end));
    float milliseconds = 0;
    POLAR_CUDA(cudaEventElapsedTime(&milliseconds, begin, end));
    best = std::max(best, static_cast<double>(bytes) / milliseconds * 1e3);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return best;
}

}  // namespace cuda
}  // namespace polar::backend
