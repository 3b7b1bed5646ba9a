#include "study/device_values.h"

namespace polar::study {

std::vector<float> download_values(backend::Device& device, const Tensor& tensor) {
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

}  // namespace polar::study
