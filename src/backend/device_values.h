#pragma once

#include <vector>

#include "backend/device.h"

namespace polar::backend {

/// Downloads an activation tensor as f32.
std::vector<float> download_values(Device& device, const Tensor& tensor);

/// A stored tensor as f32; nothing where there is none.
std::vector<float> host_values(const Tensor& tensor);

}  // namespace polar::backend
