#include "backend/device_values.h"

namespace polar::backend {

std::vector<float> download_values(Device& device, const Tensor& tensor) {
  const auto count = static_cast<size_t>(tensor.values());
  std::vector<float> values(count);
  if (tensor.dtype == DType::kF32) {
    device.download(values.data(), tensor.data, count * sizeof(float));
    return values;
  }
  std::vector<uint16_t> stored(count);
  device.download(stored.data(), tensor.data, count * sizeof(uint16_t));
  dequantize_row(tensor.dtype, stored.data(), values.data(), count);
  return values;
}

std::vector<float> host_values(const Tensor& tensor) {
  std::vector<float> values(tensor.data != nullptr ? tensor.values() : 0);
  if (!values.empty()) dequantize_row(tensor.dtype, tensor.data, values.data(), values.size());
  return values;
}

}  // namespace polar::backend
